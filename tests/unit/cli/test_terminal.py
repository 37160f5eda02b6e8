"""At a real terminal: Ctrl-C while a job trains, and a conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from graft.trainer.v1 import trainer_service_pb2 as pb

from tests.support.fakes import FakeInference, FakeTrainer, serving
from tests.support.stack import environment
from tests.support.terminal import CTRL_C, CTRL_D, Terminal

_QUESTION = "[d]etach, [c]ancel"


@asynccontextmanager
async def _training(trainer: FakeTrainer, home: Path) -> AsyncIterator[Terminal]:
    """`graft train` at a terminal, with a job that has reported its first steps."""
    rows = home / "rows.jsonl"
    rows.write_text("{}\n")
    command = ["train", str(rows), "--base", "org/model", "--adapter", "bot"]
    async with serving(trainer=trainer) as address:
        variables = environment(home, GRAFT_TRAINER=address)
        async with Terminal(command, variables) as terminal:
            await terminal.see("job-1 is created")
            await trainer.change_state(pb.JOB_STATE_RUNNING)
            for step in (1, 2):
                await trainer.report_step(step, 50, 3.0 / step)
            await terminal.see("step 2/50  loss 1.5000  1,234 tokens/s")
            yield terminal


@pytest.fixture
def trainer() -> FakeTrainer:
    return FakeTrainer()


def _state(trainer: FakeTrainer) -> str:
    return pb.JobState.Name(trainer.jobs["namespaces/default/jobs/job-1"].state)


async def test_ctrl_c_asks_and_c_cancels_the_job(trainer: FakeTrainer, tmp_path: Path) -> None:
    async with _training(trainer, tmp_path) as terminal:
        terminal.press(CTRL_C)
        await terminal.see(_QUESTION)
        terminal.press("what?\n")
        await terminal.see(_QUESTION)
        terminal.press("c\n")
        await terminal.see("job-1 cancelled")
        assert await terminal.ended() == 79
    assert _state(trainer) == "JOB_STATE_CANCELLED"


@pytest.mark.parametrize("keys", ["d\n", CTRL_C, CTRL_D])
async def test_ctrl_c_and_then_d_or_ctrl_c_or_ctrl_d_detaches(
    trainer: FakeTrainer, tmp_path: Path, keys: str
) -> None:
    async with _training(trainer, tmp_path) as terminal:
        terminal.press(CTRL_C)
        await terminal.see(_QUESTION)
        terminal.press(keys)
        await terminal.see("Watch it: graft jobs watch job-1")
        assert await terminal.ended() == 0
    assert _state(trainer) == "JOB_STATE_RUNNING"


async def test_ctrl_c_and_k_goes_on_watching_to_the_end(
    trainer: FakeTrainer, tmp_path: Path
) -> None:
    async with _training(trainer, tmp_path) as terminal:
        terminal.press(CTRL_C)
        await terminal.see(_QUESTION)
        terminal.press("k\n")
        await trainer.report_step(3, 50, 0.5)
        await terminal.see("step 3/50")
        await trainer.change_state(
            pb.JOB_STATE_SUCCEEDED, version="namespaces/default/adapters/bot/versions/4"
        )
        await terminal.see("made bot:4")
        assert await terminal.ended() == 0


async def test_a_job_that_ends_while_the_question_stands_ends_the_command(
    trainer: FakeTrainer, tmp_path: Path
) -> None:
    async with _training(trainer, tmp_path) as terminal:
        terminal.press(CTRL_C)
        await terminal.see(_QUESTION)
        await trainer.change_state(
            pb.JOB_STATE_SUCCEEDED, version="namespaces/default/adapters/bot/versions/4"
        )
        await terminal.see("made bot:4")
        assert await terminal.ended() == 0


async def test_a_conversation_remembers_and_survives_a_broken_off_answer(tmp_path: Path) -> None:
    inference = FakeInference()
    async with serving(inference=inference) as address:
        variables = environment(tmp_path, GRAFT_INFERENCE=address)
        async with Terminal(["chat", "bot"], variables) as terminal:
            await terminal.see("> ")
            terminal.press("good morning\n")
            await terminal.see("good morning\r\ngood morning\r\n> ")
            terminal.press("again\n")
            await terminal.see("again\r\nagain\r\n> ")
            assert [one.content for one in inference.requests[-1].messages] == [  # type: ignore[union-attr]
                "good morning",
                "good morning",
                "again",
            ]
            terminal.press(CTRL_D)
            assert await terminal.ended() == 0


async def test_ctrl_c_breaks_off_an_answer_and_not_the_conversation(tmp_path: Path) -> None:
    inference = FakeInference()
    async with serving(inference=inference) as address:
        variables = environment(tmp_path, GRAFT_INFERENCE=address)
        async with Terminal(["chat", "endless"], variables) as terminal:
            await terminal.see("> ")
            terminal.press("on\n")
            await terminal.see("ononon")
            terminal.press(CTRL_C)
            await terminal.see("(broken off)")
            await terminal.see("> ")
            await inference.aborted.wait()
            terminal.press("/exit\n")
            assert await terminal.ended() == 0
