"""A base is recognized by its content, and what is no model is refused in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from graft.bases import read_base
from graft.errors import GraftError, Reason

NAME = "namespaces/default/bases/tiny"


def test_shapes_come_from_the_weights(tiny_base: Path) -> None:
    modules = {module.path: module for module in read_base(tiny_base, NAME).modules}
    key = modules["model.layers.1.self_attn.k_proj"]
    assert (key.in_features, key.out_features) == (64, 32)


def test_a_copy_has_the_same_fingerprint_and_one_changed_weight_another(
    tiny_base: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    original = read_base(tiny_base, NAME).fingerprint.digest
    assert read_base(copy, NAME).fingerprint.digest == original
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert read_base(copy, NAME).fingerprint.digest != original


def test_what_a_save_changes_does_not_change_the_fingerprint(
    tiny_base: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({"transformers_version": "9", **config}))
    assert read_base(copy, NAME).fingerprint == read_base(tiny_base, NAME).fingerprint


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no config.json"),
        ({"config.json": "{}"}, "no .safetensors"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, "pickles"),
        ({"config.json": "{", "model.safetensors": "x"}, "not JSON"),
        ({"config.json": "{}", "model.safetensors": "x"}, "model_type"),
        ({"config.json": '{"model_type": "llama"}', "model.safetensors": "x"}, "not a safetensors"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_with_the_reason(
    files: dict[str, str], says: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(GraftError, match=says) as caught:
        read_base(tmp_path, NAME)
    assert caught.value.reason is Reason.NOT_A_MODEL
