"""Every kind of bad adapter is refused with the check and the tensor named; a good one is not."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graft.errors import GraftError, RefusedError

from services.registry.admission.admit import Admission, Admitted, Limits
from services.registry.admission.header import Tensor
from services.registry.admission.values import FiniteScan
from services.registry.blobs.memory import MemoryBlobStore
from services.registry.domain import File
from tests.support.admission import (
    BASE,
    FINGERPRINT,
    Q0,
    V1,
    Folder,
    admit_to,
    encode,
    good,
    listing,
    pack,
    refusal_of,
    stored,
)


async def admit(folder: Folder, limits: Limits | None = None) -> Admitted:
    """Uploads and verifies."""
    return await admit_to(BASE, folder, limits)


async def refusal(folder: Folder, limits: Limits | None = None) -> RefusedError:
    """Why it was refused."""
    return await refusal_of(BASE, folder, limits)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
async def test_a_right_adapter_is_admitted_with_a_report(dtype: str) -> None:
    admitted = await admit(good(dtype=dtype))
    assert (admitted.rank, admitted.alpha) == (4, 8.0)
    assert admitted.target_modules == ["q_proj", "v_proj"]
    assert admitted.report.tensors == 8
    assert admitted.report.parameters == 2 * (4 * 64 + 64 * 4 + 4 * 64 + 32 * 4)
    names = [check.name for check in admitted.report.checks]
    assert names[-1] == "finite-values"
    assert len(set(names)) == len(names) == 11


async def test_text_beside_the_weights_is_welcome() -> None:
    folder = good()
    folder.extra = {"README.md": "# Größe".encode(), "LICENSE": b"MIT"}
    assert (await admit(folder)).rank == 4


@pytest.mark.parametrize(
    "targets", ["all-linear", r".*\.(q|v)_proj", ["self_attn.q_proj", "v_proj"]]
)
async def test_targets_may_be_written_in_every_way_peft_has(targets: object) -> None:
    folder = good()
    folder.config["target_modules"] = targets
    assert (await admit(folder)).target_modules == ["q_proj", "v_proj"]


async def test_ranks_may_differ_by_pattern() -> None:
    folder = good(rank=4)
    folder.tensors[f"{V1}.lora_A.weight"] = np.ones((2, 64))
    folder.tensors[f"{V1}.lora_B.weight"] = np.ones((32, 2))
    error = await refusal(folder)
    assert (error.metadata["check"], error.metadata["tensor"]) == ("ranks", f"{V1}.lora_A.weight")
    folder.config["rank_pattern"] = {"layers.1.self_attn.v_proj": 2}
    assert (await admit(folder)).rank == 4


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_a_value_that_is_not_finite_is_found_in_its_tensor(dtype: str, value: float) -> None:
    folder = good(dtype=dtype)
    folder.tensors[f"{V1}.lora_B.weight"][31, 3] = value
    error = await refusal(folder)
    assert error.metadata["check"] == "finite-values"
    assert error.metadata["tensor"] == f"{V1}.lora_B.weight"
    assert "[31, 3]" in error.message


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
async def test_the_largest_finite_values_are_finite(dtype: str) -> None:
    folder = good(dtype=dtype)
    largest = {"F32": 3.4e38, "F16": 65504.0, "BF16": 3.38e38}[dtype]
    folder.tensors[f"{Q0}.lora_A.weight"][:] = -largest
    await admit(folder)


@pytest.mark.parametrize("chunk_bytes", [1, 3, 7, 8, 64])
def test_nan_is_found_wherever_a_chunk_ends(chunk_bytes: int) -> None:
    values = np.ones((4, 3))
    values[2, 1] = np.nan
    data = encode(np.ones(5), "BF16") + encode(values, "F64")
    scan = FiniteScan([Tensor("small", "BF16", (5,), 50, 60), Tensor("t", "F64", (4, 3), 60, 156)])

    def feed_all() -> None:
        for begin in range(0, len(data), chunk_bytes):
            scan.feed(data[begin : begin + chunk_bytes])

    with pytest.raises(GraftError, match=re.escape("tensor t: the value at [2, 1]")):
        feed_all()


Spoil = Callable[[Folder], None]


def drop(name: str) -> Spoil:
    """Removes a tensor."""

    def spoil(folder: Folder) -> None:
        del folder.tensors[name]

    return spoil


def rename(old: str, new: str) -> Spoil:
    """Renames a tensor."""
    return lambda folder: folder.tensors.update({new: folder.tensors.pop(old)})


def shape(name: str, *size: int) -> Spoil:
    """Gives a tensor another shape."""
    return lambda folder: folder.tensors.update({name: np.ones(size)})


def say(**config: object) -> Spoil:
    """Changes adapter_config.json."""
    return lambda folder: folder.config.update(config)


def add(path: str, data: bytes = b"text") -> Spoil:
    """Adds a file."""
    return lambda folder: folder.extra.update({path: data})


def weights(make: Callable[[Folder], bytes]) -> Spoil:
    """Replaces the weights' bytes."""

    def spoil(folder: Folder) -> None:
        folder.weights = make(folder)

    return spoil


def header(change: Callable[[dict[str, Any]], object], padding: bytes = b"") -> Spoil:
    """Lies in the header."""

    def make(folder: Folder) -> bytes:
        text = folder.header()
        change(text)
        return pack(text, folder.data() + padding)

    return weights(make)


def offsets(tensor: str, begin: int, end: int) -> Spoil:
    """Moves a tensor's offsets, relative to what they are."""

    def change(text: dict[str, Any]) -> None:
        old = text[tensor]["data_offsets"]
        text[tensor]["data_offsets"] = [old[0] + begin, old[1] + end]

    return header(change)


def zipped(_: Folder) -> bytes:
    """A zip archive, as torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps({}))
    return buffer.getvalue()


QA, QB = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"
LAYER_9 = QA.replace("layers.0", "layers.9")
LAYER_9B = QB.replace("layers.0", "layers.9")
EMPTY = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
BAD: dict[str, tuple[Spoil, str, str, str]] = {
    # what: (how, check, tensor, words in the message)
    "half a pair": (drop(QB), "tensor-names", QB, "missing"),
    "another tensor": (rename(QA, "model.q_proj.weight"), "tensor-names", "model.q_proj.weight", "no matrix"),
    "DoRA's tensor": (shape(f"{Q0}.lora_magnitude_vector", 64), "tensor-names", f"{Q0}.lora_magnitude_vector", "DoRA"),
    "an embedding": (shape("base_model.model.model.embed_tokens.lora_embedding_A", 4, 64), "tensor-names", "base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
    "a weight of the base": (rename(QA, "base_model.model.lm_head.base_layer.weight"), "tensor-names", "base_model.model.lm_head.base_layer.weight", "save_embedding_layers"),
    "another base's width": (shape(QA, 4, 32), "shapes", QA, "64 in_features"),
    "another base's output": (shape(QB, 128, 4), "shapes", QB, "64 out_features"),
    "a vector": (shape(QA, 256), "shapes", QA, "not a matrix"),
    "three dimensions": (shape(QA, 4, 64, 1), "shapes", QA, "not a matrix"),
    "rank 0": (shape(QA, 0, 64), "shapes", QA, "not a matrix"),
    "a rank that is not B's": (shape(QB, 64, 3), "ranks", QB, "rank is 3"),
    "a rank that is not the config's": (say(r=8), "ranks", QA, "says 8"),
    "a target without tensors": (say(target_modules=["q_proj", "v_proj", "o_proj"]), "targets", "", "'o_proj'"),
    "tensors without a target": (say(target_modules=["v_proj"]), "targets", QA, "does not name it"),
    "a kind that is not known": (say(peft_type="LOHA"), "adapter-config", "", "LOHA"),
    "IA3 in name only": (say(peft_type="IA3"), "tensor-names", QA, "no such tensor"),
    "no peft_type": (say(peft_type=None), "adapter-config", "", "peft_type"),
    "DoRA in name only": (say(use_dora=True), "tensor-names", f"{Q0}.lora_magnitude_vector", "missing"),
    "bias": (say(bias="all"), "adapter-config", "", "bias"),
    "LoRA bias": (say(lora_bias=True), "adapter-config", "", "lora_bias"),
    "modules to save": (say(modules_to_save=["lm_head"]), "adapter-config", "", "modules_to_save"),
    "layer replication": (say(layer_replication=[[0, 2]]), "adapter-config", "", "layer replication"),
    "PiSSA": (say(init_lora_weights="pissa_niter_16"), "adapter-config", "", "pissa"),
    "rank of nothing": (say(r=0), "adapter-config", "", "r is 0"),
    "rank in words": (say(r="8"), "adapter-config", "", "r is '8'"),
    "alpha that is NaN": (say(lora_alpha=float("nan")), "adapter-config", "", "NaN is no number"),
    "no alpha": (say(lora_alpha=None), "adapter-config", "", "lora_alpha"),
    "alpha below 0": (say(lora_alpha=-1), "adapter-config", "", "lora_alpha"),
    "a bomb of a pattern": (say(rank_pattern={"(a+)+$": 4}), "adapter-config", "", "regular expression"),
    "no targets": (say(target_modules=[]), "adapter-config", "", "target_modules"),
    "a pickle beside": (add("training_args.bin"), "files", "", "pickle"),
    "code beside": (add("model.py"), "files", "", "code"),
    "a path upwards": (add("../../etc/cron.d/x.txt"), "files", "", "plain file name"),
    "an absolute path": (add("/etc/passwd"), "files", "", "plain file name"),
    "a Windows path": (add("..\\x.txt"), "files", "", "plain file name"),
    "a hidden file": (add(".bashrc"), "files", "", "plain file name"),
    "a folder": (add("checkpoint-1/README.md"), "files", "", "plain file name"),
    "a name with a null": (add("README.md\0.txt"), "files", "", "plain file name"),
    "something else": (add("weights.gguf"), "files", "", "does not belong"),
    "a text that is none": (add("README.md", b"\xff\xfe"), "files", "", "not text"),
    "a text of nulls": (add("README.md", b"a\0b"), "files", "", "not text"),
    "an empty file": (add("README.md", b""), "files", "", "0 bytes"),
    "a pickle in disguise": (weights(lambda _: pickle.dumps({"a": 1})), "safetensors", "", "a pickle"),
    "an archive in disguise": (weights(zipped), "safetensors", "", "a zip archive"),
    "noise": (weights(lambda _: b"\x01" * 100), "safetensors", "", "not a safetensors"),
    "four bytes": (weights(lambda _: b"\x01" * 4), "safetensors", "", "not a safetensors"),
    "a header of exabytes": (weights(lambda _: struct.pack("<Q", 2**60) + b"{}"), "safetensors", "", "allowed"),
    "a cut header": (weights(lambda f: pack(f.header(), b"")[:60]), "safetensors", "", "truncated"),
    "cut data": (weights(lambda f: pack(f.header(), f.data())[:-1]), "safetensors", f"{V1}.lora_B.weight", "truncated"),
    "bytes of nobody": (header(dict, padding=b"x"), "safetensors", "", "belong to no tensor"),
    "a header that is no JSON": (weights(lambda _: pack(b'{"a":', b"")), "safetensors", "", "not JSON"),
    "a header in depth": (weights(lambda _: pack(b'{"a":' * 50_000, b"")), "safetensors", "", "not JSON"),
    "a header that is no UTF-8": (weights(lambda _: pack(b'{"\xff":1}', b"")), "safetensors", "", "printable ASCII"),
    "no tensors": (weights(lambda _: pack({}, b"")), "safetensors", "", "no tensor"),
    "a name twice": (weights(lambda _: pack(b'{"a":' + EMPTY + b',"a":' + EMPTY + b"}", b"")), "safetensors", "a", "twice"),
    "an entry of nothing": (header(lambda h: h.update({QA: []})), "safetensors", QA, "entry"),
    "an entry too many": (header(lambda h: h[QA].update(code="x")), "safetensors", QA, "entry"),
    "a shape below zero": (header(lambda h: h[QA].update(shape=[-4, -64])), "safetensors", QA, "entry"),
    "a shape of booleans": (header(lambda h: h[QA].update(shape=[True, 64])), "safetensors", QA, "entry"),
    "a shape that is too large": (header(lambda h: h[QA].update(shape=[2**40, 2**40])), "safetensors", QA, "does not fit"),
    "whole numbers": (header(lambda h: h[QA].update(dtype="I32")), "safetensors", QA, "dtype is I32"),
    "overlapping offsets": (offsets(QB, -4, -4), "safetensors", QB, "overlap"),
    "a gap": (header(lambda h: h.pop(QB)), "safetensors", f"{'base_model.model.model.layers.0.self_attn.v_proj'}.lora_A.weight", "belong to none"),
    "offsets backwards": (offsets(QA, 1024, -1024), "safetensors", QA, "does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
async def test_bad_input_is_refused_with_its_check_and_tensor(what: str) -> None:
    spoil, check, tensor, words = BAD[what]
    folder = good()
    spoil(folder)
    error = await refusal(folder)
    assert error.metadata["check"] == check
    assert error.metadata.get("tensor", "") == tensor
    assert tensor in error.message
    assert words in str(error)


async def test_a_layer_that_the_base_does_not_have_is_named() -> None:
    folder = good()
    rename(QA, LAYER_9)(folder)
    rename(QB, LAYER_9B)(folder)
    error = await refusal(folder)
    assert (error.metadata["check"], error.metadata["tensor"]) == ("layers", LAYER_9)
    assert "has no module model.layers.9.self_attn.q_proj" in error.message


async def test_an_adapter_of_another_base_is_refused_by_its_fingerprint() -> None:
    error = await refusal(replace(good(), fingerprint="sha256:" + "0" * 64))
    assert error.metadata["check"] == "base-fingerprint"
    assert FINGERPRINT in error.message


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
async def test_both_files_are_needed(missing: str) -> None:
    digest = "sha256:" + "0" * 64
    other = ({"adapter_config.json", "adapter_model.safetensors"} - {missing}).pop()
    with pytest.raises(GraftError, match=f"{missing} is missing"):
        await Admission(MemoryBlobStore(), Limits()).verify(
            [File(other, digest, 1)], BASE, FINGERPRINT
        )


async def test_a_file_that_was_not_uploaded_or_has_another_size_is_named() -> None:
    files = [
        File("adapter_config.json", "sha256:" + "0" * 64, 1),
        File("adapter_model.safetensors", "sha256:" + "1" * 64, 1),
    ]
    store = MemoryBlobStore()
    with pytest.raises(GraftError, match=r"adapter_config\.json .* was not uploaded"):
        await Admission(store, Limits()).verify(files, BASE, FINGERPRINT)
    config = File("adapter_config.json", "sha256:" + hashlib.sha256(b"{}").hexdigest(), 1)
    upload = await store.begin_upload(config.digest, 2)
    assert upload is not None
    await upload.append(0, b"{}")
    await upload.finish()
    await upload.close()
    with pytest.raises(GraftError, match="said to have 1 bytes and has 2"):
        await Admission(store, Limits()).verify([config, replace(files[1], digest=config.digest, size_bytes=2)], BASE, FINGERPRINT)  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "check"),
    [
        (Limits(max_rank=3), "ranks"),
        (Limits(max_tensors=7), "safetensors"),
        (Limits(max_header_bytes=100), "safetensors"),
        (Limits(max_file_bytes=1000), "files"),
        (Limits(max_version_bytes=2000), "files"),
    ],
)
async def test_what_is_beyond_a_limit_is_refused(limits: Limits, check: str) -> None:
    error = await refusal(good(), limits)
    assert error.metadata["check"] == check
    assert "allowed" in error.message


async def test_a_large_adapter_is_checked_in_little_memory() -> None:
    folder = good(rank=20_000)
    content = folder.files()
    files, admission = listing(content), Admission(await stored(content), Limits(max_rank=20_000))
    tracemalloc.start()
    try:
        await admission.verify(files, BASE, FINGERPRINT)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert files[1].size_bytes > 30_000_000
    assert peak_bytes < 8_000_000
