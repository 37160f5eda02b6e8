"""A merged folder, as stock transformers and stock vLLM load it: the tokens of base and adapter, without either."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.peft import peft_greedy

_IDS, _COUNT = [1, 45, 300, 21, 77], 12
_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    folder, dtype, ids, count = json.loads(sys.argv[1])
    engine = LLM(folder, dtype=dtype, enforce_eager=True, max_model_len=64, max_num_seqs=1)
    sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    [answer] = engine.generate([{"prompt_token_ids": ids}], sampling, use_tqdm=False)
    print("TOKENS", json.dumps(list(answer.outputs[0].token_ids)))
"""


def vllm_greedy(folder: Path, dtype: str = "float32") -> list[int]:
    """What stock vLLM generates, in a process of its own."""
    script = folder.parent / "generate.py"
    script.write_text(_VLLM, "utf-8")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps([str(folder), dtype, _IDS, _COUNT])],
        env={
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_PLUGINS": "",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # vLLM writes its log there, too.
    said = next(line for line in done.stdout.splitlines() if line.startswith("TOKENS"))
    found: list[int] = json.loads(said.removeprefix("TOKENS"))
    return found


def export(base: Path, adapter: Path, folder: Path, tmp_path: Path, **fields: Any) -> None:
    """Exports as the worker does, of a version that is on its disk."""
    from google.protobuf import json_format
    from graft.results import Lineage, Version
    from graft.trainer.v1.model_jobs_pb2 import MergeSpec

    from services.trainer.run.bases import open_base
    from services.trainer.run.model_jobs.held_out import HeldOut
    from services.trainer.run.model_jobs.making import Maker
    from services.trainer.run.model_jobs.pulled import Pulled
    from services.trainer.spec import BaseSpec
    from services.trainer.spec.recipe import parse_recipe

    version = Version(
        name="namespaces/default/adapters/bot/versions/1", number=1, digest="", base="",
        base_fingerprint="", peft_type="LORA", rank=8, alpha=16, target_modules=(), files=(),
        lineage=Lineage(None, 0, {}, "", 0, 0, {}, {}), checks=(), parameters=0, create_time=None,
    )  # fmt: skip
    spec = BaseSpec(str(base), "tiny", "none", "auto")
    pulled = Pulled(version, adapter, open_base(spec, "default"), spec)
    given = {"version": "bot:1", "outputBase": "x", "skipCheck": True, **fields}
    recipe = parse_recipe(json_format.ParseDict(given, MergeSpec()))
    nothing = HeldOut([], "")
    maker = Maker(recipe, [pulled], nothing, tmp_path, lambda _: None, lambda _: None)
    report = maker.model(tmp_path / "merged" if fields else folder, "auto")
    if fields:
        maker.requantized(tmp_path / "merged", folder, report)


@pytest.mark.engine
@pytest.mark.filterwarnings("default")
def test_stock_transformers_and_vllm_load_a_merged_folder(
    tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    export(tiny_base, tiny_adapter, tmp_path / "out", tmp_path)
    expected = peft_greedy(tiny_base, tiny_adapter, _IDS, _COUNT)
    assert peft_greedy(tmp_path / "out", None, _IDS, _COUNT) == expected
    assert vllm_greedy(tmp_path / "out") == expected


@pytest.mark.soak
@pytest.mark.engine
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["W4A16"])
def test_stock_vllm_loads_what_was_quantized_again(
    tiny_base: Path, tiny_adapter: Path, tmp_path: Path, kind: str
) -> None:
    quantization = f"REQUANTIZATION_{kind}"
    export(tiny_base, tiny_adapter, tmp_path / "out", tmp_path, requantization=quantization)
    assert len(vllm_greedy(tmp_path / "out", "bfloat16")) == _COUNT
