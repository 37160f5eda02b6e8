"""What is made of adapters: merged, combined, converted, quantized and exported, each proven on logits.

The process that proves runs in this one here; tests/unit/k8s_jobs/test_model_jobs.py has it as it is.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import json_format
from graft.errors import GraftError, Reason
from graft.results import Lineage, Version
from graft.trainer.v1.model_jobs_pb2 import MergeSpec

from services.trainer.run.bases import open_base
from services.trainer.run.model_jobs import assembling, check, proof
from services.trainer.run.model_jobs.held_out import HeldOut
from services.trainer.run.model_jobs.logits import distance, logits_of
from services.trainer.run.model_jobs.making import Maker
from services.trainer.run.model_jobs.pulled import Pulled
from services.trainer.run.model_jobs.report import Report
from services.trainer.spec import BaseSpec
from services.trainer.spec.recipe import parse_recipe
from tests.support.models import make_adapter

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
_ROWS = [[(i * 7919 + 3 + row) % 1024 for i in range(48)] for row in range(4)]
_BASE = "namespaces/default/adapters"
_TARGETS = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
MERGE = {"version": "a", "outputBase": "merged"}
PLAIN = {"version": "a", "outputAdapter": "plain", "plainLora": {"rank": 16}}
Pull = Callable[..., Pulled]


def soak(*cases: Any) -> list[Any]:
    """Cases of the long form."""
    every = (case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*one, marks=pytest.mark.soak) for one in every]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares starting a process for every proof."""

    def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            check.main(command[-1])
        return subprocess.CompletedProcess(command, 0, out.getvalue(), "")

    monkeypatch.setattr("services.trainer.run.model_jobs.proof.subprocess.run", run)


@pytest.fixture
def pull(tiny_base: Path) -> Pull:
    """A version as it lies on the worker's disk."""

    def made(folder: Path, quantization: Any = "none") -> Pulled:
        config = json.loads((folder / "adapter_config.json").read_text())
        version = Version(
            name=f"{_BASE}/{folder.name}/versions/1", number=1, digest="sha256:00", base="",
            base_fingerprint="", peft_type=config["peft_type"], rank=config.get("r") or 0, alpha=1,
            target_modules=(), files=(), lineage=Lineage(None, 0, {}, "", 0, 0, {}, {}), checks=(),
            parameters=0, create_time=None,
        )  # fmt: skip
        spec = BaseSpec(str(tiny_base), "tiny", quantization, "auto")
        return Pulled(version, folder, open_base(spec, "default"), spec)

    return made


@pytest.fixture
def other(tiny_base: Path, tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "other", tiny_base, seed=5)


@pytest.fixture
def narrow(tiny_base: Path, tmp_path: Path) -> Path:
    """Of another rank, on other modules."""
    return make_adapter(
        tmp_path / "narrow", tiny_base, seed=6, rank=4, targets=("q_proj", "up_proj")
    )


def maker(every: Sequence[Pulled], spec: dict[str, Any], tmp_path: Path) -> Maker:
    recipe = parse_recipe(json_format.ParseDict(spec, MergeSpec()))
    rows = HeldOut(_ROWS, "texts of this test")
    return Maker(recipe, every, rows, tmp_path, lambda _: None, lambda _: None)


def combined(kind: str, *weights: float, **fields: Any) -> dict[str, Any]:
    versions = [{"version": f"v{n}", "weight": weight} for n, weight in enumerate(weights)]
    how = {"kind": f"COMBINATION_KIND_{kind.upper()}", **fields}
    return {"versions": versions, "combination": how, "outputAdapter": "both"}


def peft_adapter(folder: Path, base: Path, config: Any, scale: float = 0.05) -> Path:
    """An adapter of any method, by PEFT, with random numbers."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * scale
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["nf4", *soak("none", "int8")])
def test_a_merge_into_16_bits_is_the_trained_model_but_for_rounding(
    pull: Pull, tiny_adapter: Path, tmp_path: Path, quantization: str
) -> None:
    version = pull(tiny_adapter, quantization)
    report = maker([version], MERGE, tmp_path).model(tmp_path / "merged", "float16")
    assert report.metrics["logits_difference"] < 0.005
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert config["dtype"] == "float16"
    assert "quantization_config" not in config


def test_a_repacked_base_is_not_merged_into(pull: Pull, tiny_adapter: Path, tmp_path: Path) -> None:
    """One answer in evaluation mode, and bitsandbytes keeps the weights in another layout."""
    from services.trainer.run.models import load_model

    version = pull(tiny_adapter, "nf4")
    model = load_model(version.base.folder, version.base_spec).eval()
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    states = [getattr(getattr(m, "weight", None), "quant_state", None) for m in model.modules()]
    if not any(getattr(state, "packing_format_for_cpu", False) for state in states):
        next(s for s in states if s is not None).packing_format_for_cpu = True  # No AVX512 here.
    with pytest.raises(GraftError, match="repacked for inference") as refused:
        assembling.dequantized(model, "tiny")
    assert "_proj" in refused.value.message

    trained = assembling.trained_model(version)
    said = logits_of(trained, _ROWS)
    assembling.refuse_repacked(trained)
    report = maker([version], MERGE, tmp_path).model(tmp_path / "merged", "float32")
    assert (said.shape, report.metrics["logits_difference"] < 1e-4) == ((192, 1024), True)


@pytest.mark.parametrize("kind", ["nf4", "w4a16"])
def test_what_is_quantized_again_is_proven_and_refused_beyond_the_limit(
    pull: Pull, tiny_adapter: Path, tmp_path: Path, kind: str
) -> None:
    spec = {**MERGE, "requantization": f"REQUANTIZATION_{kind.upper()}"}
    made = maker([pull(tiny_adapter)], {**spec, "proof": {"maxRelativeRms": 0.6}}, tmp_path)
    report = made.model(tmp_path / "merged", "bfloat16")
    made.requantized(tmp_path / "merged", tmp_path / kind, report)
    assert [one.limit for _, one in report.proofs] == [proof.LIMITS["bfloat16"], 0.6]
    assert 0.1 < report.metrics["logits_difference"] < 0.6
    smaller = (tmp_path / kind / "model.safetensors").stat().st_size
    assert smaller < 0.75 * (tmp_path / "merged/model.safetensors").stat().st_size

    strict = maker([pull(tiny_adapter)], {**spec, "proof": {"maxRelativeRms": 0.1}}, tmp_path)
    with pytest.raises(
        GraftError, match=r"differ by 0\.\d+ of their spread, and 0\.1 is the limit"
    ):
        strict.requantized(tmp_path / "merged", tmp_path / "again", report)


@pytest.mark.parametrize(
    "kind",
    [
        "linear",
        "dare_ties_svd",
        *soak("ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd"),
        *soak("magnitude_prune", "magnitude_prune_svd"),
    ],
)
def test_adapters_of_one_rank_are_combined_in_every_way(
    pull: Pull, tiny_adapter: Path, other: Path, tmp_path: Path, kind: str
) -> None:
    spec = combined(kind, 0.7, 0.4)
    report = maker([pull(tiny_adapter), pull(other)], spec, tmp_path).adapter(tmp_path / "made")
    assert report.metrics["logits_difference"] < 1e-5
    assert report.metrics["difference_from_source_1"] < report.metrics["difference_from_source_2"]
    assert json.loads((tmp_path / "made/adapter_config.json").read_text())["r"] == 8


def test_cat_and_a_wide_svd_are_the_weighted_sum_of_unequal_ranks(
    pull: Pull, tiny_adapter: Path, narrow: Path, tmp_path: Path
) -> None:
    both = [pull(tiny_adapter), pull(narrow)]
    for number, spec in enumerate(
        (combined("cat", 1.0, -0.5), combined("svd", 1.0, -0.5, rank=12))
    ):
        report = maker(both, spec, tmp_path).adapter(tmp_path / str(number))
        assert report.metrics["difference_from_sum"] < 1e-4
        assert report.metrics["rank"] == 12
    with pytest.raises(GraftError, match=r"rank 2 is \d\.\d+ of the logits' spread") as lost:
        maker(both, combined("svd", 1.0, -0.5, rank=2), tmp_path).adapter(tmp_path / "cut")
    assert lost.value.reason is Reason.NOT_THE_SAME


def test_unequal_ranks_are_refused_with_both_and_what_takes_them(
    pull: Pull, tiny_adapter: Path, narrow: Path, tmp_path: Path
) -> None:
    with pytest.raises(GraftError, match=r"has 8, .*narrow/versions/1 has 4") as refused:
        maker([pull(tiny_adapter), pull(narrow)], combined("ties", 1, 1), tmp_path).adapter(
            tmp_path
        )
    assert "ties_svd or cat" in refused.value.next_step


def test_a_scaled_adapter_is_summed_at_its_own_scale_and_a_dora_is_refused(
    pull: Pull, tiny_base: Path, other: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig

    rslora = peft_adapter(tmp_path / "rs", tiny_base, LoraConfig(r=4, use_rslora=True, **_TARGETS))
    spec = combined("cat", 1.0, 1.0)
    report = maker([pull(rslora), pull(other)], spec, tmp_path).adapter(tmp_path / "made")
    assert report.metrics["difference_from_sum"] < 1e-4
    dora = peft_adapter(tmp_path / "dora", tiny_base, LoraConfig(r=4, use_dora=True, **_TARGETS))
    with pytest.raises(GraftError, match="dora/versions/1 is a DoRA"):
        maker([pull(dora), pull(other)], spec, tmp_path).adapter(tmp_path / "refused")


def test_methods_that_are_a_lora_in_disguise_become_one_exactly(
    pull: Pull, tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    from peft import AdaLoraConfig, LoraConfig

    scaled = LoraConfig(
        r=4, use_rslora=True, rank_pattern={"down_proj": 2}, alpha_pattern={"q_proj": 5}, **_TARGETS
    )
    adapters = {
        "rslora": peft_adapter(tmp_path / "rslora", tiny_base, scaled),
        "adalora": peft_adapter(
            tmp_path / "adalora", tiny_base, AdaLoraConfig(init_r=4, total_step=9, **_TARGETS)
        ),
        "pissa": peft_adapter(
            tmp_path / "pissa", tiny_base, LoraConfig(r=4, init_lora_weights="pissa", **_TARGETS)
        ),
        "plain": tiny_adapter,
    }
    for name, folder in adapters.items():
        made = tmp_path / f"{name}-plain"
        report = maker([pull(folder)], PLAIN, tmp_path).adapter(made)
        assert "exact" in dict(report.facts)["conversion"], name
        assert report.metrics["logits_difference"] < 1e-4, name
        config = json.loads((made / "adapter_config.json").read_text())
        assert (config["peft_type"], bool(config.get("use_rslora"))) == ("LORA", False), name


def test_others_are_cut_to_a_rank_and_refused_where_that_loses_too_much(
    pull: Pull, tiny_base: Path, tmp_path: Path
) -> None:
    from peft import LoHaConfig, LoraConfig

    loha = peft_adapter(tmp_path / "loha", tiny_base, LoHaConfig(r=4, alpha=4, **_TARGETS))
    report = maker([pull(loha)], PLAIN, tmp_path).adapter(tmp_path / "near")
    assert "measured" in dict(report.facts)["conversion"]
    assert report.metrics["logits_difference"] < 1e-4, "a LoHa of rank 4 has 16"

    dora = LoraConfig(r=4, use_dora=True, **_TARGETS)
    folder = peft_adapter(tmp_path / "dora", tiny_base, dora, scale=0.3)
    with pytest.raises(GraftError, match=r"differ by 0\.\d+ of their spread, and 0\.05") as lost:
        maker([pull(folder, "nf4")], PLAIN, tmp_path).adapter(tmp_path / "far")
    assert lost.value.reason is Reason.NOT_THE_SAME
    random = LoraConfig(r=4, init_lora_weights="pissa_niter_2", **_TARGETS)
    unknown = peft_adapter(tmp_path / "niter", tiny_base, random)
    with pytest.raises(GraftError, match="drawn at random and is not kept"):
        maker([pull(unknown)], PLAIN, tmp_path).adapter(tmp_path / "none")


@pytest.mark.parametrize(
    ("kind", "most"), [("f16", 0.005), *soak(("f32", 1e-5), ("q8_0", 0.05), ("bf16", 0.05))]
)
def test_a_gguf_file_holds_the_model_as_transformers_reads_it(
    pull: Pull, tiny_adapter: Path, tmp_path: Path, kind: str, most: float
) -> None:
    from gguf import GGUFReader

    path = tmp_path / "bot.gguf"
    export = {"path": str(path), "format": "EXPORT_FORMAT_GGUF", "ggufType": kind}
    made = maker([pull(tiny_adapter)], {"version": "a", "export": export}, tmp_path)
    report = made.model(tmp_path / "merged", "float32")
    made.gguf(tmp_path / "merged", path, "bot", report)
    assert report.metrics["logits_difference"] < most
    fields = GGUFReader(path).fields
    assert fields["general.architecture"].contents() == "llama"
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 1024


def test_a_gguf_file_with_a_changed_number_is_found(
    pull: Pull, tiny_adapter: Path, tmp_path: Path
) -> None:
    from gguf import GGUFReader

    from services.trainer.run.model_jobs.gguf_file import compare_gguf, write_gguf

    maker([pull(tiny_adapter)], {**MERGE, "skipCheck": True}, tmp_path).model(
        tmp_path / "m", "auto"
    )
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f32", "bot")
    assert compare_gguf(tmp_path / "m.gguf", tmp_path / "m", "f32") == 20
    reader = GGUFReader(tmp_path / "m.gguf", "r+")
    tensor = next(one for one in reader.tensors if one.name == "blk.1.ffn_up.weight")
    tensor.data[3, 3] += 1
    del reader
    with pytest.raises(GraftError, match=r"blk\.1\.ffn_up\.weight differs by"):
        compare_gguf(tmp_path / "m.gguf", tmp_path / "m", "f32")


def test_what_gguf_cannot_hold_is_refused_by_name() -> None:
    from services.trainer.run.model_jobs.gguf_file import check_exportable
    from services.trainer.run.model_jobs.gguf_vocabulary import _byte_level

    with pytest.raises(GraftError, match="a gpt2 is none of llama, mistral, qwen2, qwen3"):
        check_exportable({"model_type": "gpt2"})
    with pytest.raises(GraftError, match="positions are scaled by yarn"):
        check_exportable({"model_type": "llama", "rope_scaling": {"type": "yarn"}})
    bpe = {"type": "BPE", "vocab": {}, "merges": []}
    with pytest.raises(GraftError, match=r"how it splits text \(Whitespace\) has no"):
        _byte_level({"model": bpe, "pre_tokenizer": {"type": "Whitespace"}}, 4)


def test_logits_that_are_no_numbers_are_infinitely_far() -> None:
    import numpy as np

    known = np.ones((3, 4), np.float32)
    known[0] = [0, 1, 2, 3]
    assert distance(known, known).relative_rms == 0
    assert distance(known * np.nan, known).relative_rms == float("inf")


def test_the_report_says_what_was_made_of_what_and_how_near_it_is(
    pull: Pull, tiny_adapter: Path, other: Path, tmp_path: Path
) -> None:
    both = [pull(tiny_adapter), pull(other)]
    report = maker(both, combined("ties", 0.7, 0.4), tmp_path).adapter(tmp_path / "made")
    report.write(tmp_path / "made", {"peft": "0.21.2"})
    text = (tmp_path / "made/MERGE_REPORT.md").read_text()
    for words in ("other/versions/1 (LORA, rank 8, alpha 1, weight 0.4)", "ties, rank 8, density 0.5",
                  "texts of this test, 192 tokens", "peft 0.21.2", "exact weighted sum"):  # fmt: skip
        assert words in text
    assert Report("x").as_dict()["proofs"] == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"outputBase": "x"}, "version is empty"),
        ({"version": "a", "versions": [{"version": "b"}], "outputBase": "x"}, "Both version and"),
        ({"version": "a"}, "output_base is empty"),
        ({"version": "a", "outputBase": "x", "outputAdapter": "y"}, "output_base and output_adapter"),
        ({"version": "a", "outputAdapter": "y"}, "nothing would be changed"),
        ({**MERGE, "plainLora": {}}, "no adapter is made"),
        ({**MERGE, "combination": {}}, "there is one adapter"),
        ({**MERGE, "dtype": "int3"}, "dtype is 'int3'"),
        ({**PLAIN, "dtype": "float16"}, "an adapter is made"),
        (combined("svd", 1, 0), r"versions\[1\]"),
        (combined("cat", 1, 1, rank=3), "cat does not choose one"),
        (combined("cat", 1, 1, density=0.3), "cat drops nothing"),
        (combined("ties", 1, 1, density=1.5), "combination.density"),
        ({**combined("ties", 1, 1), "plainLora": {}}, "several adapters are combined"),
        ({"version": "a", "export": {"path": "/"}}, "exists already"),
        ({"version": "a", "export": {"path": " "}}, "is empty"),
        ({"version": "a", "export": {"path": "/nowhere/x", "ggufType": "f16"}}, "format is folder"),
        ({**MERGE, "proof": {"textFile": "/nowhere/at-all.txt"}}, "cannot be read"),
    ],
)  # fmt: skip
def test_a_spec_that_contradicts_itself_is_refused_in_words(
    spec: dict[str, Any], words: str
) -> None:
    with pytest.raises(GraftError, match=words) as refused:
        parse_recipe(json_format.ParseDict(spec, MergeSpec()))
    assert refused.value.next_step
