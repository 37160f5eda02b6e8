"""Training speed: our worker's loop beside TRL alone and the usual tutorial recipe, in real tokens per second.

Real tokens are those of the data, not padding. All train the same LoRA on the same rows of a small Llama
with random weights and a tokenizer learned from the data. GRAFT_BENCH_DATA names an Alpaca file; without
it a set that lies beside the project is taken, and where there is none, rows of like lengths are made up.

"Random order" is our own loop as it is usual without packing: rows in random order, each batch padded to
its longest row. Our loop without packing puts rows of like length together unless it is told not to, which
by itself saves most of the padding; the ratio of packing to that is reported, too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench.contenders import VOCABULARY, Contenders
from bench.harness import Report, compare

# The environment that contenders sets must be there before torch is loaded.
import torch  # isort: skip
from transformers import LlamaConfig, LlamaForCausalLM  # isort: skip

_TUTORIAL = "tutorial (Trainer, max_length)"
_FIGURE = "real_tokens_per_second"


def run(short: bool = False) -> Report:
    """Measures all contenders in turns; short only shows that they run."""
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
        contenders = Contenders(Path(folder), _model, rows=32 if short else 256)
        report = compare(
            "training",
            everybody(contenders),
            rounds=1 if short else 3,
            warm_up_rounds=0 if short else 1,
            settings=contenders.settings,
        )
    set_goals(report, contenders.real_rows)
    return report


def everybody(contenders: Contenders) -> dict[str, Any]:
    """The contenders by name, ours first."""
    return {
        "graft": contenders.graft,
        "graft, packed": contenders.graft_packed,
        "graft, random order": contenders.graft_random,
        "trl alone": contenders.trl,
        _TUTORIAL: contenders.tutorial,
    }


def set_goals(report: Report, real_rows: bool) -> None:
    """Holds the ratios against what is promised; what padding costs is promised for real rows only."""
    tutorial, packing = (3.0, 1.5) if real_rows else (None, None)
    for ours, peer, wanted in (
        ("graft", "trl alone", 0.98),
        ("graft", _TUTORIAL, tutorial),
        ("graft, packed", "graft, random order", packing),
        ("graft, packed", "graft", None),
    ):
        ratio = report.ratio(ours, peer, _FIGURE).median
        if wanted is not None:
            report.goal(f"{_FIGURE}, {ours} / {peer}", f"at least {wanted}", ratio, ratio >= wanted)


def _model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    return model.to("cuda") if torch.cuda.is_available() else model
