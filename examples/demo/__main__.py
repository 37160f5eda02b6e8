"""The whole path in one command: train two adapters, version them, serve both on one engine, and
replace one under load. `make demo` runs it; it leaves out/demo/report.html.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import graft
from rich.console import Console
from rich.table import Table

from examples.demo.load import Load, Record
from examples.demo.questions import Question, ask_all, exact_match, read_questions, stream_pieces
from examples.demo.report import DemoResult, write_report
from examples.demo.services import running_services
from examples.demo.training import follow

EXAMPLES = Path(__file__).parents[1]
BASE = EXAMPLES / "base"
OUT = Path("out/demo")
# What must hold for the demo to count as passed.
LEAST_EXACT_MATCH = 0.9
STREAMS = 8
REQUESTS_ON_EACH_SIDE = 100
SHOWN_QUESTIONS = 2
# For the requests on either side; a slow machine takes its time, and the demo says what it measured.
PATIENCE_S = 600


async def main() -> int:
    """Tells the story; returns the exit code."""
    console, result, began_s = Console(), DemoResult(), time.monotonic()
    console.rule("[bold]Graft: from data to token, and a swap that no request notices")
    console.print(
        "\n[bold]1.[/] Starting registry, trainer and inference (one real vLLM engine) ..."
    )
    with tempfile.TemporaryDirectory(prefix="graft-demo-") as home:
        async with running_services(Path(home), BASE) as client:
            result.facts["services up after"] = f"{time.monotonic() - began_s:.1f} s"
            await _train_two(client, console, result)
            await _compare(client, console, result)
            await _swap_under_load(client, console, result)
            console.print("\nStopping the services ...")
    result.facts["whole demo"] = f"{time.monotonic() - began_s:.0f} s"
    return _conclude(console, result)


async def _train_two(client: graft.Client, console: Console, result: DemoResult) -> None:
    console.print("\n[bold]2.[/] Training two adapters at the same time:")
    jobs = [
        await client.train(EXAMPLES / "support/job_v1.yaml", **_inputs("support/train_v1")),
        await client.train(EXAMPLES / "pirate/job.yaml", **_inputs("pirate/train")),
    ]
    for job, curve in await follow(jobs):
        assert job.version is not None
        result.losses[_short(job.version)] = curve
        console.print(f"     {job.name} made {_short(job.version)}")


async def _compare(client: graft.Client, console: Console, result: DemoResult) -> None:
    console.print("\n[bold]3.[/] Promoting both, and asking base and adapters on one engine:")
    for adapter in ("support-bot", "pirate"):
        await client.adapters.promote(adapter, 1, reason="demo: first version")
    base = next(model.reference for model in await client.models() if model.version is None)
    table = Table("model", "question", "answer")
    for adapter, path in (
        ("support-bot", "support/eval_v1.jsonl"),
        ("pirate", "pirate/eval.jsonl"),
    ):
        questions = read_questions(EXAMPLES / path)
        for model, label in (
            (base, f"base, {adapter} questions"),
            (f"{adapter}@production", f"{adapter}:1"),
        ):
            answers = await ask_all(client, model, questions)
            result.exact_match[label] = exact_match(questions, answers)
            for question, answer in list(zip(questions, answers, strict=True))[:SHOWN_QUESTIONS]:
                result.samples.append((model, question.text, answer))
                table.add_row(model, question.text, answer)
    console.print(table)
    for label, share in result.exact_match.items():
        console.print(f"     {label:<32} {share:>5.0%} of held-out questions answered exactly")


async def _swap_under_load(client: graft.Client, console: Console, result: DemoResult) -> None:
    console.print("\n[bold]4.[/] Training version 2 of support-bot:")
    job = await client.train(EXAMPLES / "support/job_v2.yaml", **_inputs("support/train_v2"))
    ((done, curve),) = await follow([job])
    assert done.version is not None
    result.losses[_short(done.version)] = curve
    console.print(f"\n[bold]5.[/] Promoting it while {STREAMS} streams ask support-bot@production:")
    old = read_questions(EXAMPLES / "support/eval_v1.jsonl")
    new = read_questions(EXAMPLES / "support/eval_v2.jsonl")
    ask = partial(stream_pieces, client, "support-bot@production")
    load = Load(ask, [q.text for q in old], STREAMS)
    # Asks for one token all the time: a stream of the load would first end its answer.
    probe = Load(partial(ask, max_tokens=1), [old[0].text], 1)
    load.start()
    probe.start()
    await load.until(lambda records: len(records) >= REQUESTS_ON_EACH_SIDE, PATIENCE_S)
    result.promoted_s = time.monotonic()
    await client.adapters.promote("support-bot", 2, reason="demo: swap under load")

    def enough(records: list[Record]) -> bool:
        return sum(r.version == done.version for r in records) >= REQUESTS_ON_EACH_SIDE

    await load.until(enough, PATIENCE_S)
    await asyncio.gather(load.stop(), probe.stop())
    result.records = [*(r for r in probe.records if r.error), *load.records]
    new_probes = [r for r in probe.records if r.version == done.version]
    if new_probes:
        first_s = min(r.first_token_s for r in new_probes) - result.promoted_s
        result.facts["promote to first token of version 2"] = f"{1000 * first_s:.0f} ms"
    answers = await ask_all(client, "support-bot@production", new)
    result.exact_match["support-bot:2"] = exact_match(new, answers)
    result.samples += [
        ("support-bot@production, after", question.text, answer)
        for question, answer in list(zip(new, answers, strict=True))[:SHOWN_QUESTIONS]
    ]
    _measure(result, old, new)


def _measure(result: DemoResult, old: list[Question], new: list[Question]) -> None:
    """Turns the load's records into figures."""
    records, facts = result.records, result.facts
    right = {
        number: {question.text: question.answer for question in questions}
        for number, questions in (("1", old), ("2", new))
    }
    answered = [record for record in records if not record.error]
    other = {"1": right["2"], "2": right["1"]}
    exact = sum(right[_number(r)].get(r.question) == r.text for r in answered)
    result.crossed = sum(other[_number(r)].get(r.question) == r.text for r in answered)
    after = [r for r in answered if _number(r) == "2"]
    seconds = records[-1].ended_s - records[0].began_s
    facts["requests during the swap"] = str(len(records))
    facts["failed requests"] = str(len(records) - len(answered))
    facts["answered by version 1, by version 2"] = f"{len(answered) - len(after)}, {len(after)}"
    facts["answers that belong to the other version"] = str(result.crossed)
    facts["answers right for their version"] = f"{exact / max(1, len(answered)):.1%}"
    facts["tokens per second under load"] = f"{sum(r.tokens for r in records) / seconds:,.0f}"


def _conclude(console: Console, result: DemoResult) -> int:
    table = Table("what happened", "", title="Result")
    for label, share in result.exact_match.items():
        table.add_row(f"exact match, {label}", f"{share:.0%}")
    for label, words in result.facts.items():
        table.add_row(label, words)
    console.print(table)
    console.print(f"Report with curves and timeline: {write_report(result, OUT)}")
    shares = [share for label, share in result.exact_match.items() if not label.startswith("base")]
    problems = [
        *(["an adapter answers too few questions"] if min(shares) < LEAST_EXACT_MATCH else []),
        *(["requests failed"] if result.facts["failed requests"] != "0" else []),
        *(["a version answered as the other does"] if result.crossed else []),
        *(["version 2 never answered"] if not _has_version_2(result) else []),
    ]
    for problem in problems:
        console.print(f"[red]Not as it should be: {problem}.[/]")
    return 1 if problems else 0


def _has_version_2(result: DemoResult) -> bool:
    return any(_number(record) == "2" for record in result.records)


def _number(record: Record) -> str:
    return record.version.rpartition("/")[2]


def _short(version: str) -> str:
    """ "support-bot:1" of "namespaces/default/adapters/support-bot/versions/1"."""
    parts = version.split("/")
    return f"{parts[3]}:{parts[5]}"


def _inputs(name: str) -> graft.TrainOptions:
    return {"base": BASE, "data": EXAMPLES / f"{name}.jsonl"}


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
