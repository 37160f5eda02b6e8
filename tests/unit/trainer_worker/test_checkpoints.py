"""Checkpoints: whole or not there, verified before use, and the one before when the last is damaged."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from services.trainer.run.checkpoints import CheckpointStore
from services.trainer.run.exits import ExitCode, exit_of


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def open_store(tmp_path: Path, said: list[str]) -> Callable[..., CheckpointStore]:
    def run(keep: int = 2, run_key: str = "spec-1") -> CheckpointStore:
        return CheckpointStore(tmp_path / "checkpoints", keep, run_key, said.append)

    return run


def write(store: CheckpointStore, step: int) -> Path:
    def fill() -> Path:
        folder = store.partial / "some-name"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"w" * step)
        return folder

    return store.write(step, fill).path


def test_the_newest_is_gone_on_with_and_only_so_many_are_kept(
    open_store: Callable[..., CheckpointStore], tmp_path: Path
) -> None:
    store = open_store(keep=2)
    assert store.last_good() is None
    for step in (5, 10, 15):
        write(store, step)
    last = open_store().last_good()
    assert last is not None
    assert (last.step, (last.path / "weights").read_bytes()) == (15, b"w" * 15)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000000010",
        "step-000000015",
    ]


@pytest.mark.parametrize("damage", ["flipped", "short", "missing", "manifest"])
def test_a_damaged_one_is_skipped_for_the_one_before_and_it_is_said(
    open_store: Callable[..., CheckpointStore], said: list[str], damage: str
) -> None:
    store = open_store()
    write(store, 5)
    path = write(store, 10)
    if damage == "flipped":
        (path / "weights").write_bytes(b"w" * 9 + b"v")
    elif damage == "short":
        (path / "weights").write_bytes(b"")
    elif damage == "missing":
        (path / "weights").unlink()
    else:
        (path / "manifest.json").write_text("{")
    last = store.last_good()
    assert last is not None
    assert last.step == 5
    assert len(said) == 1
    assert said[0].startswith("The checkpoint of step 10 is not used: ")


def test_one_of_another_spec_or_other_data_is_not_used(
    open_store: Callable[..., CheckpointStore], said: list[str]
) -> None:
    write(open_store(), 5)
    assert open_store(run_key="spec-2").last_good() is None
    assert "another spec, base or data" in said[0]


def test_a_full_disk_keeps_the_last_good_one_and_says_so(
    open_store: Callable[..., CheckpointStore], tmp_path: Path
) -> None:
    store = open_store()
    write(store, 5)

    def fill() -> Path:
        (store.partial / "x").mkdir(parents=True)
        (store.partial / "x" / "half").write_bytes(b"h")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        store.write(10, fill)
    last = store.last_good()
    assert last is not None
    assert last.step == 5
    assert not store.partial.exists()
    code, finished = exit_of(caught.value, tmp_path)
    assert code is ExitCode.INTERNAL
    assert "is full; the last good checkpoint is kept" in finished.message


def test_what_a_killed_worker_left_half_written_is_cleared_away(
    open_store: Callable[..., CheckpointStore],
) -> None:
    store = open_store()
    write(store, 5)
    (store.partial / "x").mkdir(parents=True)
    again = open_store()
    assert not again.partial.exists()
    last = again.last_good()
    assert last is not None
    assert last.step == 5
