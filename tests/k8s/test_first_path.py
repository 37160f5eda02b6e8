"""The demo's path on a cluster: train two adapters as Jobs, serve both, and swap one under load."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from functools import partial

import graft
import pytest

from examples.demo.__main__ import EXAMPLES, LEAST_EXACT_MATCH
from examples.demo.load import Load, Record
from examples.demo.questions import ask_all, exact_match, read_questions, stream_pieces
from tests.k8s.installation import Installation
from tests.support.processes import process_environment

pytestmark = pytest.mark.k8s

# Where the images have it; its files come from this machine.
BASE = "/opt/graft/examples/base"
STREAMS = 4
REQUESTS_ON_EACH_SIDE = 20


def test_the_doctor_finds_nothing_missing(installation: Installation) -> None:
    settings = installation.settings
    context = [f"--context={settings.context}"] if settings.context else []
    done = subprocess.run(
        [
            sys.executable, "-m", "graft.cli", "cluster", "doctor", "--json",
            f"--kube-namespace={settings.namespace}", *context,
        ],
        env=process_environment(),
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    missing = [one for one in told["findings"] if one["verdict"] == "missing"]
    assert (done.returncode, missing) == (0, [])


async def test_two_adapters_are_trained_served_and_one_is_swapped_under_load(
    installation: Installation, client: graft.Client
) -> None:
    try:
        async with asyncio.timeout(3 * installation.settings.timeout_s):
            await _path(client)
    except Exception as error:
        error.add_note(installation.situation())
        raise


async def _path(client: graft.Client) -> None:
    base = next(model.reference for model in await client.models() if model.version is None)
    first = [
        await _train(client, "support/job_v1.yaml", "support/train_v1.jsonl", base),
        await _train(client, "pirate/job.yaml", "pirate/train.jsonl", base),
    ]
    versions = [await _version(job) for job in first]
    assert [version.rpartition("/")[2] for version in versions] == ["1", "1"]
    for adapter, file in (("support-bot", "support/eval_v1"), ("pirate", "pirate/eval")):
        await client.adapters.promote(adapter, 1, reason="test-k8s")
        questions = read_questions(EXAMPLES / f"{file}.jsonl")
        answers = await ask_all(client, f"{adapter}@production", questions)
        assert exact_match(questions, answers) >= LEAST_EXACT_MATCH, adapter
        plain = await ask_all(client, base, questions)
        assert exact_match(questions, plain) < LEAST_EXACT_MATCH, "the base can do it by itself"
    second = await _train(client, "support/job_v2.yaml", "support/train_v2.jsonl", base)
    await _swap(client, await _version(second))


async def _train(client: graft.Client, spec: str, data: str, base: str) -> graft.JobHandle:
    return await client.train(
        EXAMPLES / spec, upload=True, base=BASE, base_name=base, data=str(EXAMPLES / data)
    )


async def _version(job: graft.JobHandle) -> str:
    done = await job.wait()
    assert done.version is not None, done
    return done.version


async def _swap(client: graft.Client, new: str) -> None:
    questions = read_questions(EXAMPLES / "support/eval_v1.jsonl")
    ask = partial(stream_pieces, client, "support-bot@production")
    load = Load(ask, [one.text for one in questions], STREAMS)
    load.start()
    assert await load.until(lambda records: len(records) >= REQUESTS_ON_EACH_SIDE, 300)
    await client.adapters.promote("support-bot", 2, reason="test-k8s: swap under load")

    def enough(records: list[Record]) -> bool:
        return sum(record.version == new for record in records) >= REQUESTS_ON_EACH_SIDE

    assert await load.until(enough, 300), "version 2 did not answer"
    await load.stop()
    assert [record.error for record in load.records if record.error] == []
    answered = [record.version for record in load.records]
    assert answered[0].endswith("/1")
    asked = read_questions(EXAMPLES / "support/eval_v2.jsonl")
    answers = await ask_all(client, "support-bot@production", asked)
    assert exact_match(asked, answers) >= LEAST_EXACT_MATCH
