"""A job's losses as a picture."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from graft.cli.curve_picture import Curves, collect, save_picture
from graft.errors import GraftError
from graft.results import JobEvent, Metrics


def event(step: int, loss: float, eval_loss: float | None = None) -> JobEvent:
    metrics = Metrics(
        step=step,
        total_steps=9,
        epoch=0.0,
        loss=loss,
        learning_rate=0.0,
        grad_norm=0.0,
        tokens=0,
        tokens_per_second=0.0,
        remaining_s=0.0,
        eval_loss=eval_loss,
    )
    return JobEvent(step, None, 1, metrics=metrics)


async def stream(*events: JobEvent) -> AsyncIterator[JobEvent]:
    for one in events:
        yield one


async def test_a_step_that_was_done_again_counts_once() -> None:
    events = [event(1, 4.0), event(2, 3.0), event(2, 2.5, 2.6), JobEvent(4, None, 1, log="x")]
    curves = await collect(stream(*events, event(3, 1.0)), None)
    assert curves == Curves({1: 4.0, 2: 2.5, 3: 1.0}, {2: 2.6})
    assert (await collect(stream(*events, event(3, 1.0)), 2)).loss == {1: 4.0, 2: 3.0}


@pytest.mark.filterwarnings("default")
def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    save_picture(
        Curves({1: 4.0, 2: float("nan"), 3: 1.0}, {3: 1.1}), "bot-1", tmp_path / "loss.png"
    )
    content = (tmp_path / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (960, 540)


def test_a_picture_goes_into_a_png_file_in_a_folder_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(GraftError, match="does not end in"):
        save_picture(Curves({1: 1.0}), "bot-1", tmp_path / "loss.jpg")
    with pytest.raises(GraftError, match="cannot be written"):
        save_picture(Curves({1: 1.0}), "bot-1", tmp_path / "nowhere" / "loss.png")
