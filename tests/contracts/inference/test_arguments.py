"""When a CPU engine is compiled, and when it starts without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from services.inference.engines.vllm_arguments import VllmOptions, engine_arguments

pytestmark = pytest.mark.engine
OPTIONS = VllmOptions(
    base=Path("base"),
    max_adapters=2,
    max_lora_rank=8,
    max_model_len=None,
    max_num_seqs=8,
    dtype="auto",
    quantization=None,
    gpu_memory_utilization=0.5,
    cpu_kv_cache_gib=1,
    enforce_eager=False,
    enable_prefix_caching=True,
    seed=0,
    trust_remote_code=False,
)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that is found; whether it works is not asked here."""
    found = tmp_path / "c++"
    found.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(found))
    return found


@pytest.mark.parametrize("adapters", [0, 2])
def test_with_a_compiler_it_is_compiled_unless_the_operator_says_no(
    compiler: Path, adapters: int
) -> None:
    options = replace(OPTIONS, max_adapters=adapters)
    assert not engine_arguments(options)["enforce_eager"]
    assert engine_arguments(replace(options, enforce_eager=True))["enforce_eager"]


@pytest.mark.parametrize("adapters", [0, 2])
def test_without_a_compiler_it_starts_all_the_same(
    compiler: Path, monkeypatch: pytest.MonkeyPatch, adapters: int
) -> None:
    compiler.unlink()
    assert engine_arguments(replace(OPTIONS, max_adapters=adapters))["enforce_eager"]


def test_vllms_own_lora_cannot_be_compiled(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_CPU_LORA", "stock")
    assert engine_arguments(OPTIONS)["enforce_eager"]
    assert not engine_arguments(replace(OPTIONS, max_adapters=0))["enforce_eager"]
