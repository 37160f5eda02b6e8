"""PEFT folders: what is taken, and that a new one is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from graft.errors import GraftError, Reason
from graft.folders import adapter_files, inside, new_folder


def test_a_training_runs_leftovers_are_not_part_of_an_adapter(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md", "optimizer.pt"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in adapter_files(tmp_path)] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    ]


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(GraftError, match=r"adapter_model\.bin") as caught:
        adapter_files(tmp_path)
    assert caught.value.reason is Reason.ADAPTER_UNUSABLE
    assert "save_pretrained" in caught.value.next_step


def test_a_folder_without_an_adapter_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(GraftError, match=r"no adapter_config\.json and no adapter_model"):
        adapter_files(tmp_path)


def test_a_folder_that_could_not_be_filled_never_appears(tmp_path: Path) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "new") as part:
            (part / "half").write_text("x")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(GraftError, match="exists already"), new_folder(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "x"


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ""])
def test_a_file_cannot_leave_its_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(GraftError, match="outside its folder"):
        inside(tmp_path, path)
