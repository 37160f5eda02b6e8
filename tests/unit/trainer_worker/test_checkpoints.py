"""Checkpoints: whole or not there, verified before use, the one before when the last is damaged, kept by policy."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from graft.errors import GraftError, Reason

from services.trainer.run.checkpoints import CheckpointStore, Keep
from services.trainer.run.exits import ExitCode, exit_of
from services.trainer.run.manifests import Score

Open = Callable[..., CheckpointStore]
MANIFEST = "manifest.json"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def open_store(tmp_path: Path, said: list[str]) -> Open:
    def run(keep: int = 2, run_key: str = "spec-1", **rules: int) -> CheckpointStore:
        return CheckpointStore(tmp_path / "checkpoints", Keep(keep, **rules), run_key, said.append)

    return run


def write(store: CheckpointStore, step: int, score: float | None = None) -> Path:
    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(b"w" * step)

    worth = None if score is None else Score("eval_loss", score)
    return store.write(step, fill, worth).path


def steps(tmp_path: Path) -> list[int]:
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    return sorted(int(name.removeprefix("step-")) for name in names)


def last_step(store: CheckpointStore) -> int:
    """0 where none can be used."""
    last = store.last_good()
    return last.step if last else 0


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def damage(path: Path, how: str) -> None:
    if how == "flipped":
        flip(path / "weights", -1)
    elif how == "short":
        (path / "weights").write_bytes((path / "weights").read_bytes()[:-1])
    elif how == "missing":
        (path / "weights").unlink()
    elif how == "no manifest":
        (path / MANIFEST).unlink()
    elif how == "short manifest":
        (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes()[:-1])
    else:
        where = (path / MANIFEST).read_bytes().index(how.encode())
        flip(path / MANIFEST, where + len(how))


def test_the_newest_is_gone_on_with_and_only_so_many_are_kept(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store(keep=2)
    assert store.last_good() is None
    for step in (5, 10, 15):
        write(store, step)
    last = open_store().last_good()
    assert last is not None
    assert (last.step, (last.path / "weights").read_bytes()) == (15, b"w" * 15)
    assert steps(tmp_path) == [10, 15]


@pytest.mark.parametrize(
    "how",
    # The last ones are places in the manifest, behind which one bit is flipped.
    ["flipped", "short", "missing", "no manifest", "short manifest",
     '"step": ', '"weights": "sha256:', '"run_key": "', '"score": ["eval_loss", '],
)  # fmt: skip
def test_a_damaged_one_is_skipped_for_the_one_before_and_it_is_said(
    open_store: Open, said: list[str], how: str
) -> None:
    store = open_store()
    write(store, 5, 2.5)
    damage(write(store, 10, 1.5), how)
    assert last_step(open_store()) == 5
    assert len(said) == 1
    assert said[0].startswith("The checkpoint of step 10 is not used: ")


def test_when_all_are_damaged_the_training_begins_anew_and_says_so(
    open_store: Open, said: list[str]
) -> None:
    store = open_store()
    for step in (5, 10):
        damage(write(store, step), "flipped")
    assert last_step(store) == 0
    assert [line.split(":")[0] for line in said] == [
        "The checkpoint of step 10 is not used",
        "The checkpoint of step 5 is not used",
        "No checkpoint can be used",
    ]


def test_damaged_ones_take_no_place_of_good_ones_and_are_removed_with_the_next(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store(keep=2)
    for step in (5, 10):
        path = write(store, step)
    damage(path, "flipped")
    assert last_step(store) == 5
    write(store, 7)
    assert steps(tmp_path) == [5, 7]


def test_one_of_another_spec_or_other_data_is_not_used_and_makes_no_new_one_go(
    open_store: Open, said: list[str], tmp_path: Path
) -> None:
    for step in (50, 60):
        write(open_store(), step)
    store = open_store(run_key="spec-2")
    assert store.last_good() is None
    assert "another spec, base or data" in said[0]
    write(store, 5)
    assert steps(tmp_path) == [5]


def test_one_of_a_release_whose_manifests_had_no_digest_is_used(open_store: Open) -> None:
    path = write(open_store(), 5)
    words = (path / MANIFEST).read_text("utf-8")
    (path / MANIFEST).write_text(words[: words.index(', "digest"')] + "}", "utf-8")
    assert last_step(open_store()) == 5


def test_the_best_ones_are_kept_beside_the_newest(open_store: Open, tmp_path: Path) -> None:
    store = open_store(keep=1, best=2)
    for step, score in ((1, 3.0), (2, 1.0), (3, 2.0), (4, float("nan")), (5, None), (6, 2.0)):
        write(store, step, score)
    assert steps(tmp_path) == [2, 3, 6]
    # What is worth what is read from the disk again.
    again = open_store(keep=1, best=2)
    assert again.among_best(Score("eval_loss", 1.5), 2)
    assert not again.among_best(Score("eval_loss", 2.5), 2)
    write(again, 7, 0.5)
    assert steps(tmp_path) == [2, 7]


def test_the_best_is_the_best_that_is_whole(open_store: Open, said: list[str]) -> None:
    store = open_store(keep=9)
    paths = {step: write(store, step, score) for step, score in ((1, 2.0), (2, 1.0), (3, 3.0))}
    damage(paths[2], "flipped")
    best = store.best()
    assert best is not None
    assert (best.step, best.score) == (1, Score("eval_loss", 2.0))
    assert said == ["The checkpoint of step 2 is not used: its file weights is damaged."]


def test_more_is_better_where_the_metric_says_so() -> None:
    low, high = (Score("accuracy", value, higher_is_better=True) for value in (0.2, 0.9))
    assert high.beats(low)
    assert not low.beats(high)
    assert low.beats(Score("accuracy", float("nan"), higher_is_better=True))


def test_some_are_kept_for_good(open_store: Open, tmp_path: Path) -> None:
    store = open_store(keep=1, every_steps=10)
    for step in range(5, 36, 5):
        write(store, step)
    assert steps(tmp_path) == [10, 20, 30, 35]


def test_a_full_disk_keeps_the_last_good_one_and_pauses_with_path_and_bytes(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    write(store, 5)

    def fill(folder: Path) -> None:
        (folder / "half").write_bytes(b"h")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(GraftError) as caught:
        store.write(10, fill, needed_bytes=12_345)
    error = caught.value
    assert error.reason is Reason.STORAGE_FULL
    assert error.metadata["needed_bytes"] == "12345"
    assert not store.partial.exists()
    assert last_step(store) == 5
    code, finished = exit_of(error, tmp_path)
    assert (code, int(code)) == (ExitCode.PAUSED, 74)
    assert finished.paused
    for words in (str(tmp_path), "12,345 bytes are needed", "step 5 is kept", "Make room there"):
        assert words in finished.message


def test_a_full_disk_elsewhere_pauses_too(tmp_path: Path) -> None:
    code, finished = exit_of(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    assert code is ExitCode.PAUSED
    assert "the last good checkpoint is kept" in finished.message


def test_what_a_killed_worker_left_half_written_is_cleared_away(open_store: Open) -> None:
    store = open_store()
    write(store, 5)
    (store.partial / "x").mkdir(parents=True)
    again = open_store()
    assert not again.partial.exists()
    assert last_step(again) == 5
