"""`graft preflight`: looks at a job's data as the model will see it, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from graft.cli.job_options import (
    BaseOption,
    BatchSizeOption,
    DataArgument,
    MaxLengthOption,
    ObjectiveOption,
    PackingOption,
    SpecOption,
    complete,
    given_options,
)
from graft.cli.output import Output, make_table
from graft.cli.session import JsonOption, run
from graft.cli.waiting import Waiting
from graft.client import Client
from graft.preflight import Bin, Example, Finding, Lengths, PreflightReport

EXIT_BAD_DATA = 65
_BAR_WIDTH = 40
_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}
_SHOWN_CHARACTERS = 1200
_GOOD_SCORE, _FAIR_SCORE = 80, 50


def preflight(
    ctx: typer.Context,
    data: DataArgument = None,
    base: BaseOption = None,
    spec: SpecOption = None,
    objective: ObjectiveOption = None,
    format: Annotated[str | None, typer.Option(help="Found out if not given.")] = None,
    chat_template: Annotated[
        str | None, typer.Option("--template", help="A named chat template.")
    ] = None,
    loss_on: Annotated[str | None, typer.Option(help="assistant, last_turn or everything.")] = None,
    max_length_tokens: MaxLengthOption = None,
    micro_batch_size: BatchSizeOption = None,
    packing: PackingOption = None,
    eval_fraction: Annotated[float | None, typer.Option(help="Rows held out, 0 to 0.5.")] = None,
    max_rows: Annotated[int | None, typer.Option(help="Only the first rows.")] = None,
    dedupe: Annotated[
        bool | None, typer.Option("--dedupe/--no-dedupe", help="Leave repeated rows out.")
    ] = None,
    examples: Annotated[int, typer.Option(help="Rows to show as the model sees them.")] = 3,
    upload: Annotated[
        bool, typer.Option(help="Send the data along, for a trainer elsewhere.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check DATA as the model will see it: lengths, what is learned, what to mend, and a score.

    Exit codes: 0 the job would be accepted, 65 it would fail.
    """
    out, chosen = Output(as_json), given_options(ctx.params)

    async def work(client: Client) -> int:
        complete(chosen, client, spec, upload=upload)
        with Waiting(out) as waiting:
            report = await client.preflight(
                spec,
                examples=examples,
                upload=upload,
                on_progress=lambda stage, rows: waiting.show(f"{stage}, {rows:,} rows"),
                **chosen,
            )
        if as_json:
            out.json(report)
        else:
            show_report(out, report)
        return 0 if report.passed else EXIT_BAD_DATA

    run(ctx, out, work)


def show_report(out: Output, report: PreflightReport) -> None:
    """The report for people: examples, lengths, findings and the score."""
    for example in report.examples:
        _show_example(out, example)
    share = report.learned_tokens / max(report.tokens, 1)
    out.fields(
        [
            ("format", report.format),
            (
                "rows",
                f"{report.rows:,} read, {report.kept_rows:,} to train on, {report.eval_rows:,} held out",
            ),
            ("tokens", f"{report.tokens:,}, of which {share:.0%} are learned"),
            ("longest", f"{report.max_length_tokens:,} tokens"),
            ("steps", f"{report.total_steps:,}, with {report.padding_fraction:.0%} padding"),
        ]
    )
    if report.lengths is not None:
        out.note("")
        out.show(_histogram(report.lengths, report.max_length_tokens))
    out.note("")
    for finding in report.findings:
        _show_finding(out, finding)
    out.show(_score(report))


def _show_example(out: Output, example: Example) -> None:
    title = f"{example.place}" + (f" ({example.answer})" if example.answer else "")
    out.show(
        Text(f"{title}: {example.tokens:,} tokens, {example.learned_tokens:,} learned", "bold")
    )
    body = Text()
    for segment in example.segments:
        style = "strike dim" if segment.cut else "green" if segment.learned else "dim"
        text = segment.text
        # Colours do not come through a pipe, so what is learned is bracketed as well.
        body.append(f"[[{text}]]" if segment.learned and not out.live else text, style)
    if len(body) > _SHOWN_CHARACTERS:
        body = body[:_SHOWN_CHARACTERS] + Text(
            f" ... and {len(body) - _SHOWN_CHARACTERS:,} more characters"
        )
    out.show(body)
    out.note("")


def _histogram(lengths: Lengths, longest: int) -> Group:
    most = max((one.rows for one in lengths.histogram), default=1)
    rows = [
        (f"{one.from_tokens:,} to {one.to_tokens - 1:,}", f"{one.rows:,}", _bar(one, most, longest))
        for one in lengths.histogram
    ]
    summary = (
        f"median {lengths.median:,}, mean {lengths.mean:,.0f}, 95 % up to {lengths.p95:,}, "
        f"99 % up to {lengths.p99:,}, longest {lengths.max:,}"
    )
    return Group(make_table(("tokens", "rows", ""), rows), Text(summary, "dim"))


def _bar(one: Bin, most: int, longest: int) -> Text:
    width = round(one.rows / most * _BAR_WIDTH)
    bar = Text("█" * width or ("▏" if one.rows else ""), "cyan")
    if one.from_tokens >= longest:
        bar.stylize("red")
        bar.append(" cut" if one.rows else "")
    return bar


def _show_finding(out: Output, finding: Finding) -> None:
    line = Text(f"{finding.severity}: ", _STYLES.get(finding.severity, "")) + Text(finding.message)
    out.show(line)
    places: Sequence[str] = finding.places
    if places:
        more = finding.rows - len(places)
        out.show(
            Text("  " + "; ".join(places) + (f"; and {more:,} more" if more > 0 else ""), "dim")
        )
    if finding.severity != "note":
        out.show(Text(f"  {finding.next_step}"))


def _score(report: PreflightReport) -> Text:
    if not report.passed:
        return Text("score 0 of 100: the job would fail", "bold red")
    good, fair = report.score >= _GOOD_SCORE, report.score >= _FAIR_SCORE
    style = "bold green" if good else "bold yellow" if fair else "bold red"
    words = "good to train" if good else "worth mending first" if fair else "mend it first"
    return Text(f"score {report.score} of 100: {words}", style)
