"""Models that are trained as a whole: unfrozen, kept in checkpoints, and saved as a folder that is a base again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason
from safetensors.torch import load_model
from transformers import AutoConfig

from services.trainer.run.peft_models import Files, check_finite

_CHECKPOINT = "model.safetensors"
_SHARD = "4GB"
# What of a base is not its weights stays byte for byte as it was.
_KEPT = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
)


def unfreeze(model: Any, frozen: Sequence[str]) -> Any:
    """The model with every parameter trained, but those of the named modules.

    Raises:
        GraftError: INVALID_SPEC, for a name that no module has, and when nothing is left to train.
    """
    names = [name for name, _ in model.named_modules()]
    for wanted in frozen:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
            ends = sorted({name.rsplit(".", 1)[-1] for name in names if name})
            raise GraftError(
                Reason.INVALID_SPEC,
                f"method.full.frozen_modules names {wanted!r}, which the base does not have",
                next_step=f"Name some of {', '.join(ends)}, or paths of them.",
                field="method.full.frozen_modules",
            )
    for name, parameter in model.named_parameters():
        parts = f".{name.rpartition('.')[0]}."
        parameter.requires_grad = not any(f".{wanted}." in parts for wanted in frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise GraftError(
            Reason.INVALID_SPEC,
            "method.full.frozen_modules leaves nothing to train",
            next_step="Freeze fewer modules.",
            field="method.full.frozen_modules",
        )
    return model


def checkpoint_files(model: Any) -> Files:
    """Every number as it is trained, shared ones once; the tensors are the model's own."""
    state = model.state_dict()
    buffers = {name: one for name, one in model.named_buffers() if name in state}
    return {_CHECKPOINT: {**dict(model.named_parameters()), **buffers}}


def load_weights(model: Any, folder: Path) -> None:
    """Puts back what checkpoint_files() gave."""
    load_model(model, str(folder / _CHECKPOINT))


def save(model: Any, base: Path, folder: Path) -> None:
    """Writes a model's folder: weights in the type that the base stores, all other files as the base's.

    Raises:
        GraftError: INVALID_SPEC, when a trained number is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_finite(dict(model.named_parameters()))
    stored = getattr(AutoConfig.from_pretrained(base), "dtype", None)
    dtype = stored if isinstance(stored, torch.dtype) else torch.float32
    # A tied tensor once, under the name of its first use: copies of another type would not be seen as tied.
    state = {name: one.detach().to("cpu", dtype) for name, one in model.named_parameters()}
    buffers = {name: one.detach().cpu() for name, one in model.named_buffers()}
    state |= {name: one for name, one in buffers.items() if name in model.state_dict()}
    model.save_pretrained(folder, state_dict=state, max_shard_size=_SHARD)
    for name in _KEPT:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
