"""Adapters as bytes, right ones and such that a test spoils, and their way into a blob store."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from graft.errors import Reason, RefusedError

from services.registry.admission.admit import Admission, Admitted, Limits
from services.registry.blobs.memory import MemoryBlobStore
from services.registry.domain import BaseContent, File, Fingerprint, Module

FINGERPRINT = "sha256:" + "f" * 64
MODULES = {
    f"model.layers.{layer}.self_attn.{name}": shape
    for layer in range(2)
    for name, shape in {"q_proj": (64, 64), "v_proj": (64, 32)}.items()
}
BASE = BaseContent(
    "namespaces/default/bases/tiny",
    Fingerprint(FINGERPRINT, "", "", ""),
    "{}",
    [Module(path, fan_in, fan_out) for path, (fan_in, fan_out) in MODULES.items()],
)
WIDTHS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
V1 = "base_model.model.model.layers.1.self_attn.v_proj"


def encode(values: np.ndarray[Any, Any], dtype: str) -> bytes:
    """Numbers as a safetensors file has them."""
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype(WIDTHS[dtype]).tobytes()


def pack(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@dataclass
class Folder:
    """An adapter's files while they are being spoiled."""

    tensors: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    dtype: str = "F32"
    extra: dict[str, bytes] = field(default_factory=dict)
    weights: bytes | None = None
    fingerprint: str = FINGERPRINT

    def header(self) -> dict[str, Any]:
        """The honest header."""
        found: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name, values in self.tensors.items():
            size = len(encode(values, self.dtype))
            found[name] = {
                "dtype": self.dtype,
                "shape": list(values.shape),
                "data_offsets": [position, position + size],
            }
            position += size
        return found

    def data(self) -> bytes:
        """All tensors' bytes."""
        return b"".join(encode(values, self.dtype) for values in self.tensors.values())

    def files(self) -> dict[str, bytes]:
        """By path."""
        weights = pack(self.header(), self.data()) if self.weights is None else self.weights
        config = json.dumps(self.config).encode()
        return {
            "adapter_config.json": config,
            "adapter_model.safetensors": weights,
            **self.extra,
        }


def good(rank: int = 4, dtype: str = "F32") -> Folder:
    """A right adapter of BASE."""
    draw = np.random.default_rng(1)
    tensors = {}
    for path, (fan_in, fan_out) in MODULES.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = draw.normal(size=(rank, fan_in))
        tensors[f"base_model.model.{path}.lora_B.weight"] = draw.normal(size=(fan_out, rank))
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": ["v_proj", "q_proj"],
    }
    return Folder(tensors, config, dtype)


def listing(files: Mapping[str, bytes]) -> list[File]:
    """As somebody lists them."""
    return [
        File(path, "sha256:" + hashlib.sha256(data).hexdigest(), len(data))
        for path, data in files.items()
    ]


async def stored(files: Mapping[str, bytes]) -> MemoryBlobStore:
    """A store that has them."""
    store = MemoryBlobStore()
    for file, data in zip(listing(files), files.values(), strict=True):
        upload = await store.begin_upload(file.digest, file.size_bytes)
        if upload is not None:
            await upload.append(0, data)
            await upload.finish()
            await upload.close()
    return store


async def admit_to(base: BaseContent, folder: Folder, limits: Limits | None = None) -> Admitted:
    """Uploads and verifies."""
    files = folder.files()
    admission = Admission(await stored(files), limits or Limits())
    return await admission.verify(listing(files), base, folder.fingerprint)


async def refusal_of(
    base: BaseContent, folder: Folder, limits: Limits | None = None
) -> RefusedError:
    """Why it was refused; every refusal says what to do."""
    with pytest.raises(RefusedError) as raised:
        await admit_to(base, folder, limits)
    error = raised.value
    assert error.reason is Reason.VERSION_REFUSED
    assert error.next_step
    assert error.metadata["check"]
    return error
