"""A trainer with scripted workers, and a client of it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.support.processes import process_environment


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of one layer that preflight takes for a model: real headers, no meaning."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tensors, offset = {}, 0
    for name, outputs in (("self_attn.q_proj", 32), ("mlp.up_proj", 64)):
        size_bytes = 4 * outputs * 64
        tensors[f"model.layers.0.{name}.weight"] = {
            "dtype": "F32",
            "shape": [outputs, 64],
            "data_offsets": [offset, offset + size_bytes],
        }
        offset += size_bytes
    header = json.dumps(tensors).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(offset)
    (folder / "model.safetensors").write_bytes(data)
    return folder


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """Two good rows."""
    path = tmp_path / "train.jsonl"
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pythonpath(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets processes that this one starts import the services."""
    monkeypatch.setenv("PYTHONPATH", process_environment()["PYTHONPATH"])
