"""What is known of a base before an engine starts: what it is called, how it is quantized, and what it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from graft.bases import matrices, read_modules
from graft.errors import GraftError, Reason

from services.inference.bases.domain import BaseReference
from services.inference.bases.memory import available_bytes, engine_bytes
from services.inference.bases.quantization import Device, check_device, read_quantization
from services.inference.config import InferenceSettings
from tests.support.gptq import make_gptq
from tests.support.models import make_base

GIB = 1024**3
METHODS = {"gptq": 60, "awq": 75, "fp8": 75, "compressed-tensors": 70}
CPU = Device("a CPU", False, 0, dict.fromkeys(METHODS, 0))
H100 = Device("NVIDIA H100", True, 90, METHODS)
WITH_PLUGIN = Device("NVIDIA H100", True, 90, {**METHODS, "bitsandbytes": 70})
V100 = Device("Tesla V100", True, 70, METHODS)

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ = {"quant_method": "awq", "bits": 4}
FP8 = {"quant_method": "fp8"}


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


W4A16 = compressed({"num_bits": 4, "type": "int"})
W8A8 = compressed({"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "int"})
W8A8_FP8 = compressed({"num_bits": 8, "type": "float"}, {"num_bits": 8, "type": "float"})


def base_of(folder: Path, quantization: dict[str, Any] | None) -> Path:
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("quantization", "kind", "device", "said"),
    [
        (None, "none", CPU, None),
        (GPTQ, "gptq", CPU, None),
        (W4A16, "w4a16", CPU, None),
        (GPTQ | {"bits": 8}, "gptq", CPU, "gptq of 8 bits"),
        (W8A8, "w8a8", CPU, "MAX_ADAPTERS=0"),
        (W8A8_FP8, "w8a8-fp8", CPU, "on GPUs"),
        (FP8, "fp8", CPU, "on GPUs"),
        (NF4, "nf4", CPU, "w4a16"),
        (NF4, "nf4", H100, "vllm-bnb-plugin"),
        (NF4, "nf4", WITH_PLUGIN, None),
        (INT8, "int8", WITH_PLUGIN, None),
        (GPTQ, "gptq", H100, None),
        (AWQ, "awq", H100, None),
        (FP8, "fp8", H100, None),
        (FP8, "fp8", V100, "compute capability 7.5, and Tesla V100 has 7.0"),
        (W8A8_FP8, "w8a8-fp8", H100, None),
        ({"quant_method": "eetq"}, "eetq", H100, "awq, compressed-tensors, fp8, gptq"),
    ],
)
def test_a_quantization_that_this_device_cannot_serve_is_named_with_what_to_do(
    tmp_path: Path,
    quantization: dict[str, Any] | None,
    kind: str,
    device: Device,
    said: str | None,
) -> None:
    folder = base_of(tmp_path, quantization)
    found = read_quantization(folder)
    assert found.kind == kind
    if said is None:
        check_device(folder, found, device, with_lora=True)
        return
    with pytest.raises(GraftError) as refused:
        check_device(folder, found, device, with_lora=True)
    assert refused.value.reason is Reason.NOT_A_MODEL
    assert refused.value.next_step
    assert said in str(refused.value)


def test_four_bits_are_computed_in_sixteen(tmp_path: Path) -> None:
    for quantization in (GPTQ, W4A16):
        folder = base_of(tmp_path, quantization)
        found = read_quantization(folder)
        check_device(folder, found, CPU, with_lora=True, dtype="float16")
        with pytest.raises(GraftError, match="float32 is asked for"):
            check_device(folder, found, CPU, with_lora=True, dtype="float32")


def test_eight_bit_activations_are_served_on_a_cpu_without_adapters(tmp_path: Path) -> None:
    folder = base_of(tmp_path, W8A8)
    check_device(folder, read_quantization(folder), CPU, with_lora=False)


def test_quantizing_while_loading_is_for_a_base_that_is_not_quantized(tmp_path: Path) -> None:
    folder = base_of(tmp_path, None)
    found = read_quantization(folder, "fp8")
    assert (found.kind, found.online) == ("fp8", True)
    check_device(folder, found, H100, with_lora=True)
    with pytest.raises(GraftError, match="on GPUs and not on a CPU"):
        check_device(folder, found, CPU, with_lora=True)
    base_of(folder, GPTQ)
    assert read_quantization(folder, "gptq_marlin").kind == "gptq"
    with pytest.raises(GraftError, match="'fp8' is asked for"):
        read_quantization(folder, "fp8")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"architectures": ["X"], "quantization_config": {"bits": 4}}']
)
def test_a_config_that_says_nothing_useful_is_not_a_model(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(GraftError, match=r"config\.json") as refused:
        read_quantization(tmp_path)
    assert refused.value.reason is Reason.NOT_A_MODEL


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bases/tiny", BaseReference("default", "tiny")),
        ("bases/tiny@stable", BaseReference("default", "tiny", alias="stable")),
        ("bases/tiny:7", BaseReference("default", "tiny", number=7)),
        ("team/bases/tiny:7", BaseReference("team", "tiny", number=7)),
        ("namespaces/team/bases/tiny", BaseReference("team", "tiny")),
        ("namespaces/team/bases/tiny/versions/7", BaseReference("team", "tiny", number=7)),
        ("namespaces/team/bases/tiny/aliases/a", BaseReference("team", "tiny", alias="a")),
        ("/models/bases/tiny", None),
        ("models/llama/bases/tiny", None),
        ("../bases/tiny", None),
        ("tiny", None),
    ],
)
def test_a_reference_is_told_from_a_folder(text: str, expected: BaseReference | None) -> None:
    assert BaseReference.parse(text, "default") == expected


def test_a_packed_base_has_the_modules_of_the_one_that_it_was(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    make_gptq(base, tmp_path / "gptq", tmp_path / "undone")
    assert read_modules(tmp_path / "gptq") == read_modules(base)
    shapes = [
        ("a.weight_packed", (96, 8)),
        ("a.weight_scale", (96, 2)),
        ("b.qweight", (64, 12)),
        ("b.qzeros", (2, 12)),
    ]
    llama = {"model_type": "llama"}
    w4a16, awq = ({**llama, "quantization_config": one} for one in (W4A16, AWQ))
    assert list(matrices(shapes, w4a16)) == [("a", 64, 96)]
    assert list(matrices(shapes, awq)) == [("b", 64, 96)]


def test_the_estimate_follows_files_and_settings(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", hidden=256, layers=4)
    half = engine_bytes(InferenceSettings(base=base, max_adapters=0))
    whole = engine_bytes(InferenceSettings(base=base, max_adapters=0, dtype="float32"))
    stored = (base / "model.safetensors").stat().st_size
    assert abs((whole - half) - stored / 2) < 0.01 * stored
    cache = engine_bytes(InferenceSettings(base=base, max_adapters=0, cpu_kv_cache_gib=3))
    assert cache - half == 2 * GIB
    assert engine_bytes(InferenceSettings(base=base, max_adapters=8)) > half


def test_a_containers_limit_counts_wherever_it_is(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable: 8388608 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/pods/one/box\n")
    box = tmp_path / "sys/fs/cgroup/pods/one/box"
    box.mkdir(parents=True)
    assert available_bytes(tmp_path) == 8 * GIB

    def limit(folder: Path, limit: str, used_gib: float, cached_gib: float) -> None:
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{round(used_gib * GIB)}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {round(cached_gib * GIB)}\n")

    limit(box, "max", 1, 0)
    assert available_bytes(tmp_path) == 8 * GIB
    limit(box.parent, str(4 * GIB), 3, 1)
    assert available_bytes(tmp_path) == 2 * GIB
    limit(box, str(3 * GIB), 2.5, 0)
    assert available_bytes(tmp_path) == GIB // 2
