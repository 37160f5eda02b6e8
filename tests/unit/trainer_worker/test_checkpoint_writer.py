"""Checkpoints beside the training: it goes on meanwhile, hears what went wrong, and waits where it must."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from graft.errors import GraftError, Reason
from safetensors.torch import load_file

from services.trainer.run.checkpoint_writer import CheckpointWriter, spare_memory_bytes
from services.trainer.run.checkpoints import CheckpointStore, Keep
from services.trainer.run.snapshots import Snapshot, State
from services.trainer.run.trainers.saving import Schedule
from services.trainer.spec import Checkpointing
from tests.support.waiting import eventually

PATIENCE_S = 60.0
Make = Callable[..., CheckpointWriter]


class Slow(Snapshot):
    """A snapshot whose copy is written when it is let go."""

    def __init__(self, files: dict[str, bytes], let_go: threading.Event) -> None:
        super().__init__(files)
        self._content = files
        self._let_go = let_go

    def on_host(self) -> Snapshot:
        return self

    def write(self, folder: Path) -> None:
        assert self._let_go.wait(PATIENCE_S)
        super().write(folder)


class Failing(Snapshot):
    """A snapshot that finds the disk full."""

    def on_host(self) -> Snapshot:
        return self

    def write(self, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def written() -> list[int]:
    return []


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", Keep(9), "spec", lambda line: None)


@pytest.fixture
def make(store: CheckpointStore, written: list[int]) -> Make:
    def run(spare_bytes: int = 10**9) -> CheckpointWriter:
        return CheckpointWriter(store, written.append, lambda: spare_bytes)

    return run


def test_what_training_does_next_is_not_in_the_checkpoint(
    make: Make, store: CheckpointStore
) -> None:
    weights, moments = torch.ones(3), {"state": {0: {"average": torch.ones(2)}}}
    writer = make()
    writer.submit(1, Snapshot({"weights": {"w": weights}, "optimizer": State(moments)}))
    weights += 1
    moments["state"][0]["average"] += 1
    writer.wait()
    last = store.last_good()
    assert last is not None
    assert load_file(last.path / "weights")["w"].tolist() == [1.0, 1.0, 1.0]
    assert torch.load(last.path / "optimizer")["state"][0]["average"].tolist() == [1.0, 1.0]


def test_training_goes_on_meanwhile_and_the_next_one_waits_for_the_one_before(
    make: Make, written: list[int]
) -> None:
    writer, let_go = make(), threading.Event()
    writer.submit(1, Slow({"weights": b"1"}, let_go))
    writer.check()
    assert written == []
    threading.Timer(0.05, let_go.set).start()
    writer.submit(2, Slow({"weights": b"2"}, let_go))
    assert written[:1] == [1]
    writer.wait()
    assert written == [1, 2]


def test_what_is_too_large_to_be_copied_is_written_while_training_waits(
    make: Make, written: list[int]
) -> None:
    writer = make(spare_bytes=8)
    writer.submit(1, Snapshot({"weights": {"w": torch.ones(3)}}))
    assert written == [1]


async def test_a_full_disk_is_heard_once_at_the_next_step_and_the_last_good_one_stays(
    make: Make, store: CheckpointStore
) -> None:
    writer = make()
    writer.submit(1, Snapshot({"weights": b"1"}))
    writer.submit(2, Failing({"weights": b"2"}))

    errors: list[GraftError] = []

    def heard() -> bool:
        try:
            writer.check()
        except GraftError as error:
            errors.append(error)
        return bool(errors)

    await eventually(heard, "the error", within_s=PATIENCE_S)
    assert errors[0].reason is Reason.STORAGE_FULL
    assert "step 1 is kept" in errors[0].message
    writer.wait()
    last = store.last_good()
    assert last is not None
    assert last.step == 1


def test_the_end_waits_for_the_last_one_and_hides_no_other_error(
    make: Make, written: list[int]
) -> None:
    with make() as writer:
        writer.submit(1, Snapshot({"weights": b"1"}))
    assert written == [1]
    with pytest.raises(GraftError, match="step 2"), make() as writer:
        writer.submit(2, Failing({"weights": b"2"}))
    writer = make()
    writer.submit(3, Failing({"weights": b"3"}))
    with pytest.raises(ZeroDivisionError), writer:
        raise ZeroDivisionError


def test_numbers_that_are_none_make_no_checkpoint(make: Make, written: list[int]) -> None:
    writer = make()
    writer.submit(1, Snapshot({"weights": {"w": torch.tensor([float("nan")])}}))
    with pytest.raises(GraftError, match="tensor w holds NaN"):
        writer.wait()
    assert written == []


def test_a_containers_limit_is_seen_and_a_cache_of_files_counts_as_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 300000\n")
    assert spare_memory_bytes(tmp_path) == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert spare_memory_bytes(tmp_path) > 400_000


def test_one_is_due_after_so_many_steps_or_so_much_time_since_the_last() -> None:
    now = [0.0]
    schedule = Schedule(Checkpointing(every_steps=10, keep=1, every_s=60.0), lambda: now[0])
    assert [step for step in range(1, 31) if schedule.due(step)] == [10, 20, 30]
    now[0] = 61.0
    assert schedule.due(31)
    schedule.begin()
    assert not schedule.due(32)
    never = Schedule(Checkpointing(every_steps=10, keep=1), lambda: now[0])
    now[0] = 1e6
    assert not never.due(33)
