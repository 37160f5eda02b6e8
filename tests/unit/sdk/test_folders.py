"""PEFT folders: what is taken, and that a new one is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from graft.digests import digest_file
from graft.errors import GraftError, Reason
from graft.folders import inside, new_folder, read_folder
from graft.intake import intake


def _fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def test_what_people_keep_beside_an_adapter_is_left_out_and_named(tmp_path: Path) -> None:
    _fill(tmp_path, "adapter_config.json", "adapter_model.safetensors", "README.md", "NOTICE")
    _fill(tmp_path, "tokenizer.json", "chat_template.jinja")
    _fill(tmp_path, "optimizer.pt", "rng_state_0.pth", "trainer_state.json", "training_args.bin")
    _fill(tmp_path, ".git/config", ".gitattributes", "checkpoint-100/adapter_config.json")
    _fill(tmp_path, "adapter_model.bin", "train.py")
    (tmp_path / "empty.md").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"\xff")
    contents = read_folder(tmp_path)
    assert sorted(contents.files) == [
        "NOTICE",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
    ]
    assert contents.old_weights is None
    said = " ".join(contents.notes)
    for name in ("optimizer.pt", "training_args.bin", ".git", "checkpoint-100", "train.py"):
        assert name in said
    assert "adapter_model.bin" in said
    assert "empty.md, latin.txt" in said


def test_old_weights_are_taken_where_there_are_no_others(tmp_path: Path) -> None:
    _fill(tmp_path, "adapter_config.json", "adapter_model.bin")
    contents = read_folder(tmp_path)
    assert contents.old_weights == tmp_path / "adapter_model.bin"
    assert list(contents.files) == ["adapter_config.json"]


def test_other_pickles_are_not_taken_for_an_adapter(tmp_path: Path) -> None:
    _fill(tmp_path, "adapter_config.json", "pytorch_model.bin")
    with pytest.raises(GraftError, match=r"pytorch_model\.bin may be a pickle") as caught:
        read_folder(tmp_path)
    assert caught.value.reason is Reason.ADAPTER_UNUSABLE
    assert "adapter_model.bin" in caught.value.next_step


def test_a_folder_without_an_adapter_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(GraftError, match=r"no adapter_config\.json and no adapter_model"):
        read_folder(tmp_path)
    with pytest.raises(GraftError, match="is not a PEFT folder"):
        read_folder(tmp_path / "nothing")


def test_the_folder_of_a_training_points_to_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in (50, 100, 7):
        _fill(tmp_path, f"checkpoint-{step}/adapter_config.json")
    with pytest.raises(GraftError, match="checkpoints of a training") as caught:
        read_folder(tmp_path)
    assert str(tmp_path / "checkpoint-100") in caught.value.next_step


def test_a_whole_model_is_told_from_an_adapter(tmp_path: Path) -> None:
    _fill(tmp_path, "config.json", "model.safetensors")
    with pytest.raises(GraftError, match="whole model") as caught:
        read_folder(tmp_path)
    assert "graft bases add" in caught.value.next_step


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    _fill(tmp_path, "secret", "in/adapter_config.json")
    (tmp_path / "in/adapter_model.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(GraftError, match=r"link to .*secret"):
        read_folder(tmp_path / "in")


def test_links_within_the_folder_and_those_of_the_hubs_cache_are_taken(tmp_path: Path) -> None:
    snapshot = _fill(tmp_path / "models--a--b/snapshots/abc", "weights")
    _fill(tmp_path / "models--a--b/blobs", "123")
    (snapshot / "adapter_config.json").symlink_to("../../blobs/123")
    (snapshot / "adapter_model.safetensors").symlink_to("weights")
    assert sorted(read_folder(snapshot).files) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_pipe_or_a_link_to_nowhere_is_no_file(tmp_path: Path) -> None:
    _fill(tmp_path, "adapter_config.json")
    os.mkfifo(tmp_path / "README.md")
    (tmp_path / "adapter_model.safetensors").symlink_to("nowhere")
    with pytest.raises(GraftError, match=r"no adapter_model\.safetensors"):
        read_folder(tmp_path)


async def test_what_an_old_config_does_not_say_is_taken_from_the_tensors(
    tmp_path: Path, tiny_adapter: Path
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(tiny_adapter, folder)
    old = {"base_model_name_or_path": "/home/somebody/llama", "target_modules": None, "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(old))
    async with intake(folder) as taken:
        file, path = taken.files["adapter_config.json"]
        config = json.loads(path.read_text())
        assert file.digest == digest_file(path)
    assert config == old | {
        "peft_type": "LORA",
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
    }
    assert "peft_type LORA" in taken.notes[-1]
    assert json.loads((folder / "adapter_config.json").read_text()) == old
    assert not path.exists()


async def test_a_config_that_says_everything_stays_as_it_is(tiny_adapter: Path) -> None:
    async with intake(tiny_adapter) as taken:
        assert taken.files["adapter_config.json"][1] == tiny_adapter / "adapter_config.json"
    assert taken.notes == ()


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
