"""A model becomes a base's version only if it is whole, finite, without code, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graft.bases import read_base
from graft.errors import Reason, RefusedError
from safetensors.numpy import load, save

from services.registry.admission.admit import Admission, AdmittedBase, DeclaredBase, Limits
from services.registry.domain import Base, Fingerprint
from tests.support.admission import listing, pack, stored

NAME = "namespaces/default/bases/tiny"
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
EMBEDDING, LAST = "model.embed_tokens.weight", "model.norm.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
Files = dict[str, bytes]
Spoil = Callable[[Files], None]
BASE = Base(
    NAME, "", Fingerprint("", "", "", ""), '{"model_type": "llama"}', [], datetime(2026, 1, 1, tzinfo=UTC)
)  # fmt: skip


@pytest.fixture
def files(tiny_base: Path) -> Files:
    """A right model, in one file."""
    return {path.name: path.read_bytes() for path in sorted(tiny_base.iterdir())}


@pytest.fixture
def sharded(files: Files) -> Files:
    """A right model, in two shards with their index."""
    tensors = load(files.pop(WEIGHTS))
    names = sorted(tensors)
    half = len(names) // 2
    for shard, part in ((FIRST, names[:half]), (SECOND, names[half:])):
        files[shard] = save({name: tensors[name] for name in part})
    weight_map = {name: FIRST if name in names[:half] else SECOND for name in names}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    files[INDEX] = json.dumps(index).encode()
    return files


async def admit(
    files: Files, declared: DeclaredBase | None = None, limits: Limits | None = None
) -> AdmittedBase:
    """Uploads and verifies."""
    admission = Admission(await stored(files), limits or Limits())
    return await admission.verify_base(listing(files), BASE, declared)


async def refusal(
    files: Files, declared: DeclaredBase | None = None, limits: Limits | None = None
) -> RefusedError:
    """Why it was refused; every refusal says what to do."""
    with pytest.raises(RefusedError) as raised:
        await admit(files, declared, limits)
    error = raised.value
    assert error.reason is Reason.VERSION_REFUSED
    assert error.next_step
    assert error.metadata["check"]
    return error


def write(folder: Path, files: Files) -> Path:
    """The same files as a folder."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("form", ["files", "sharded"])
async def test_a_model_is_what_read_base_finds_in_its_folder(
    form: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    files: Files = request.getfixturevalue(form)
    files |= {"README.md": b"# Tiny", "LICENSE": b"MIT", "generation_config.json": b"{}"}
    read = read_base(write(tmp_path / "base", files), NAME)
    admitted = await admit(files, DeclaredBase(read.fingerprint.digest, "none"))
    for field in ("digest", "config_digest", "tokenizer_digest", "weights_digest"):
        assert getattr(admitted.fingerprint, field) == getattr(read.fingerprint, field)
    assert admitted.config_json == read.config_json
    assert [(module.path, module.in_features, module.out_features) for module in read.modules] == [
        (module.path, module.in_features, module.out_features) for module in admitted.modules
    ]
    assert admitted.quantization == "none"


async def test_the_report_says_what_was_found(sharded: Files) -> None:
    admitted = await admit(sharded)
    tensors = {**load(sharded[FIRST]), **load(sharded[SECOND])}
    assert admitted.parameters == sum(values.size for values in tensors.values())
    assert admitted.report.tensors == len(tensors)
    said = {check.name: check.detail for check in admitted.report.checks}
    assert said["shards"].endswith(f"{len(tensors)} of F32) in 2 files, as the index says")
    assert said["layers"] == "layers 0-1: all 2"
    assert said["embeddings"] == f"{EMBEDDING} is [1024, 64], as config.json says"
    largest = max(float(np.abs(values).max()) for values in tensors.values())
    assert f"the largest is {largest:.6g}" in said["finite-values"]


def config(**changes: Any) -> Spoil:
    """Changes config.json."""

    def spoil(files: Files) -> None:
        files[CONFIG] = json.dumps({**json.loads(files[CONFIG]), **changes}).encode()

    return spoil


def add(path: str, data: bytes = b"{}") -> Spoil:
    """Adds a file, or puts another in its place."""
    return lambda files: files.update({path: data})


def drop(path: str) -> Spoil:
    """Leaves a file out."""
    return lambda files: files.__delitem__(path)


def tensors(change: Callable[[dict[str, Any]], object], shard: str = WEIGHTS) -> Spoil:
    """Changes tensors of a weights file."""

    def spoil(files: Files) -> None:
        found = load(files[shard])
        change(found)
        files[shard] = save(found)

    return spoil


def index(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Changes the index."""

    def spoil(files: Files) -> None:
        found = json.loads(files[INDEX])
        change(found["weight_map"])
        files[INDEX] = json.dumps(found).encode()

    return spoil


def raw(data: Callable[[bytes], bytes], path: str = WEIGHTS) -> Spoil:
    """Changes a file's bytes."""
    return lambda files: files.update({path: data(files[path])})


def spoiled(name: str, value: float) -> Callable[[dict[str, Any]], object]:
    """Another first value of a tensor."""
    return lambda found: found[name].reshape(-1).__setitem__(0, value)


ONE_FILE: dict[str, tuple[Spoil, str, str, str]] = {
    # what: (how, check, tensor or path, words in the message)
    "no configuration": (drop(CONFIG), "files", CONFIG, "missing"),
    "no weights": (drop(WEIGHTS), "files", WEIGHTS, "missing"),
    "weights of another name": (lambda f: f.update({"weights.safetensors": f.pop(WEIGHTS)}), "files", INDEX, "without it"),
    "two weights without an index": (add("consolidated.safetensors", b"x"), "files", INDEX, "without it"),
    "code": (add("modeling_tiny.py"), "files", "modeling_tiny.py", "code"),
    "a pickle": (add("pytorch_model.bin"), "files", "pytorch_model.bin", "pickle"),
    "training's leftovers": (add("optimizer.pt"), "files", "optimizer.pt", "pickle"),
    "an adapter": (add("adapter_config.json"), "files", "adapter_config.json", "does not belong"),
    "a path upwards": (add("../config.json"), "files", "../config.json", "plain file name"),
    "a tokenizer that is a pickle": (add("tokenizer.model", b"\x80\x04\x95"), "files", "tokenizer.model", "a pickle"),
    "a tokenizer that is a zip": (add("tokenizer.model", b"PK\x03\x04zip"), "files", "tokenizer.model", "zip"),
    "a vocabulary that is no text": (add("vocab.json", b"\xff\xfe"), "files", "vocab.json", "not text"),
    "a configuration that is no JSON": (add(CONFIG, b"{"), "config", CONFIG, "not JSON"),
    "a configuration that is a list": (add(CONFIG, b"[]"), "config", CONFIG, "not a JSON object"),
    "a field twice": (raw(lambda old: b'{"model_type":"evil",' + old[1:], CONFIG), "config", CONFIG, "'model_type' is there twice"),
    "no model_type": (config(model_type=""), "config", CONFIG, "model_type"),
    "another kind of model": (config(model_type="gpt2"), "model-type", CONFIG, "it is a gpt2"),
    "a reward model": (config(architectures=["LlamaForSequenceClassification"]), "model-type", CONFIG, "scores texts"),
    "remote code": (config(auto_map={"AutoModel": "modeling.Evil"}), "config", CONFIG, "auto_map"),
    "remote code in depth": (config(text_config={"a": [{"auto_map": {"A": "b.C"}}]}), "config", CONFIG, "auto_map"),
    "a tokenizer's remote code": (add("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["t.T", null]}}'), "config", "tokenizer_config.json", "auto_map"),
    "a processor's remote code": (add("processor_config.json", b'{"auto_map": {"AutoProcessor": "t.T"}}'), "config", "processor_config.json", "auto_map"),
    "unknown quantization": (config(quantization_config={"quant_method": "magic"}), "quantization", CONFIG, "'magic'"),
    "quantization in words": (config(quantization_config="gptq"), "quantization", CONFIG, "not an object"),
    "4 bits and 8": (config(quantization_config={"load_in_4bit": True, "load_in_8bit": True}), "quantization", CONFIG, "one of them"),
    "unknown 4 bits": (config(quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": "x4"}), "quantization", CONFIG, "'x4'"),
    "another vocabulary": (config(vocab_size=1000), "embeddings", EMBEDDING, "1000 tokens"),
    "another width": (config(hidden_size=128), "embeddings", EMBEDDING, "width 128"),
    "more layers than there are": (config(num_hidden_layers=3), "layers", "", "no tensor is of layer 2"),
    "a billion layers": (config(num_hidden_layers=10**9), "layers", "", "1 to 10000"),
    "minus one layer": (config(num_hidden_layers=-1), "layers", "", "1 to 10000"),
    "NaN": (tensors(spoiled(GATE, np.nan)), "finite-values", GATE, "[0, 0]"),
    "infinity": (tensors(spoiled(LAST, np.inf)), "finite-values", LAST, "[0]"),
    "NaN in half precision": (tensors(lambda t: t.update({LAST: np.array([np.nan], np.float16)})), "finite-values", LAST, "[0]"),
    "complex numbers": (raw(lambda _: pack({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8))), "safetensors", "a", "C64"),
    "cut weights": (raw(lambda old: old[:-1]), "safetensors", WEIGHTS, "truncated"),
    "bytes behind": (raw(lambda old: old + b"PK"), "safetensors", WEIGHTS, "belong to no tensor"),
    "weights that are a pickle": (raw(lambda _: b"\x80\x04\x95" + bytes(20)), "safetensors", WEIGHTS, "a pickle"),
    "a header of gigabytes": (raw(lambda _: (4 << 30).to_bytes(8, "little") + b"{}"), "safetensors", WEIGHTS, "allowed"),
}  # fmt: skip
SHARDED: dict[str, tuple[Spoil, str, str, str]] = {
    "a shard that is missing": (drop(SECOND), "shards", "", f"names '{SECOND}', which is missing"),
    "no index": (drop(INDEX), "files", INDEX, "missing"),
    "a shard too many": (add("consolidated.safetensors", b"x"), "shards", "consolidated.safetensors", "not in"),
    "a tensor in another shard": (index(lambda m: m.update({LAST: FIRST})), "shards", LAST, f"it is in {SECOND}"),
    "a tensor that the index lacks": (index(lambda m: m.pop(LAST)), "shards", LAST, "does not name it"),
    "a tensor that the shards lack": (index(lambda m: m.update(more=FIRST)), "shards", "more", "not there"),
    "a tensor in both shards": (tensors(lambda t: t.update({LAST: np.ones(64, np.float32)}), FIRST), "shards", LAST, f"it is in {FIRST}"),
    "an index that points elsewhere": (index(lambda m: m.update({LAST: "../../etc/passwd"})), "shards", INDEX, "which is not safetensors"),
    "an index that points outside": (index(lambda m: m.update({LAST: "../evil.safetensors"})), "shards", "", "'../evil.safetensors', which is missing"),
    "an index that points to a pickle": (index(lambda m: m.update({LAST: "pytorch_model.bin"})), "shards", INDEX, "which is not safetensors"),
    "an index of nothing": (add(INDEX, b"{}"), "shards", INDEX, "weight_map"),
    "an index that is no JSON": (add(INDEX, b"{"), "shards", INDEX, "not JSON"),
    "an index of numbers": (index(lambda m: m.update({LAST: 1})), "shards", INDEX, "not safetensors"),
    "an index of a million tensors": (add(INDEX, b'{"weight_map":{' + b'"a":"b",' * 1_000_000 + b'"c":"d"}}'), "shards", INDEX, "allowed"),
    "NaN in the second shard": (tensors(spoiled(LAST, np.nan), SECOND), "finite-values", LAST, "NaN"),
}  # fmt: skip


def check_refusal(error: RefusedError, check: str, fault: str, words: str) -> None:
    """The refusal is by that check and names what is at fault."""
    assert error.metadata["check"] == check
    assert fault in (error.metadata.get("tensor"), error.metadata.get("path"), "")
    assert fault in error.message
    assert words in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize("what", ONE_FILE)
async def test_a_bad_model_is_refused_with_what_is_at_fault(what: str, files: Files) -> None:
    spoil, check, fault, words = ONE_FILE[what]
    spoil(files)
    check_refusal(await refusal(files), check, fault, words)


@pytest.mark.parametrize("what", SHARDED)
async def test_bad_shards_are_refused_with_what_is_at_fault(what: str, sharded: Files) -> None:
    spoil, check, fault, words = SHARDED[what]
    spoil(sharded)
    check_refusal(await refusal(sharded), check, fault, words)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (None, "none"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"load_in_4bit": True}, "fp4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ],
)  # fmt: skip
async def test_quantization_is_recognized(said: object, word: str, files: Files) -> None:
    config(quantization_config=said)(files)
    assert (await admit(files, DeclaredBase(quantization=word))).quantization == word


@pytest.mark.parametrize("dtype", ["U8", "I8", "I16", "I32", "I64", "BOOL", "F8_E8M0"])
async def test_quantized_data_may_have_any_bits(dtype: str, files: Files) -> None:
    width = {"I16": 2, "I32": 4, "I64": 8}.get(dtype, 1)
    extra = {"x": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4 * width]}}
    files[WEIGHTS] = _with(files[WEIGHTS], extra, b"\xff" * 4 * width)
    said = {check.name: check.detail for check in (await admit(files)).report.checks}
    assert f"1 of {dtype}" in said["shards"]


@pytest.mark.parametrize(
    ("dtype", "bits", "finite"),
    [
        ("F8_E4M3", 0x7E, True), ("F8_E4M3", 0xFF, False),
        ("F8_E5M2", 0x7B, True), ("F8_E5M2", 0xFC, False),
    ],
)  # fmt: skip
async def test_eight_bit_floats_are_looked_at(
    dtype: str, bits: int, finite: bool, files: Files
) -> None:
    extra = {"x": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}
    files[WEIGHTS] = _with(files[WEIGHTS], extra, bytes([0, 1, 2, bits]))
    if finite:
        assert (await admit(files)).parameters
    else:
        assert (await refusal(files)).metadata["tensor"] == "x"


def _with(weights: bytes, extra: dict[str, Any], data: bytes) -> bytes:
    """The weights with one tensor more, at their beginning."""
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [place + len(data) for place in entry["data_offsets"]]
    return pack({**header, **extra}, data + weights[8 + length :])


async def test_what_it_was_said_to_be_is_compared(files: Files) -> None:
    error = await refusal(files, DeclaredBase(fingerprint="sha256:" + "0" * 64))
    assert error.metadata["check"] == "fingerprint"
    error = await refusal(files, DeclaredBase(quantization="nf4"))
    assert "said to have the quantization nf4, and its files have none" in error.message


@pytest.mark.parametrize(
    ("limits", "check"),
    [
        (Limits(max_base_tensors=5), "safetensors"),
        (Limits(max_base_bytes=1000), "files"),
        (Limits(max_file_bytes=1000), "files"),
        (Limits(max_header_bytes=100), "safetensors"),
    ],
)
async def test_what_is_beyond_a_limit_is_refused(files: Files, limits: Limits, check: str) -> None:
    error = await refusal(files, limits=limits)
    assert error.metadata["check"] == check
    assert "allowed" in error.message


async def test_a_file_that_was_not_uploaded_is_named(files: Files) -> None:
    admission = Admission(await stored({CONFIG: files[CONFIG]}), Limits())
    with pytest.raises(RefusedError, match=r"was not uploaded"):
        await admission.verify_base(listing(files), BASE)
