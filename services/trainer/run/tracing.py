"""Memory of a training step, found by running it on tensors without numbers: architecture and method decide, not fits."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from services.trainer.run.trainers.head_loss import _MOST_LOGITS, _chunk_loss

_ATTENTION = "graft_plan"
# Larger ones glibc's malloc always maps by themselves.
_MAPPED_BYTES = 32 * 1024**2


class StepBytes(NamedTuple):
    """What a step's tensors take; see LiveBytes."""

    peak: int
    heaped: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that operations make, as long as they live.

    Args:
        model: its own numbers do not count, nor do views of them.

    Attributes:
        peak: the most at once.
        heaped: all that were made, but for those so large that an allocator gives them back at once.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.heaped = 0
        # Storages are kept, so that no other one gets the number of one of them.
        self._own = [one.untyped_storage() for one in (*model.parameters(), *model.buffers())]
        self._seen = {storage._cdata for storage in self._own}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size_bytes = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size_bytes
        self.heaped += size_bytes if size_bytes < _MAPPED_BYTES else 0
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size_bytes)

    def _free(self, key: int, size_bytes: int) -> None:
        self._seen.discard(key)
        self.now -= size_bytes


def empty_model(folder: Path, dtype: torch.dtype) -> Any:
    """The base's architecture without numbers: from config.json alone."""
    # Built with the usual attention, so that architectures check nothing of ours.
    config = AutoConfig.from_pretrained(folder)
    AttentionInterface.register(_ATTENTION, _attention)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=_ATTENTION, dtype=dtype
        )
    model.config.use_cache = False
    return model


def step_bytes(
    model: Any,
    sequences: int,
    tokens: int,
    learned: int,
    *,
    checkpointing: bool,
    passes: int,
    own_forward: bool,
    autocast: bool,
) -> StepBytes:
    """What forward and backward passes hold and make beside the parameters; gradients are among it.

    Args:
        model: on the meta device, with the method applied.
        sequences: of a micro-batch.
        tokens: of each.
        learned: positions of the micro-batch that have a loss.
        checkpointing: whether activations are recomputed.
        passes: of one optimizer step: with a second one the first one's gradients are there already.
        own_forward: whether the method has a forward pass of its own, with the logits of all positions.
        autocast: whether matrix products are in bfloat16.
    """
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    live = LiveBytes(model)
    with torch.device("meta"), live, context:
        for _ in range(min(passes, 2)):
            ids = torch.zeros(sequences, tokens, dtype=torch.long)
            if own_forward:
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            else:
                loss = _head_loss(model, ids, learned)
            loss.backward()
            del loss
    for parameter in model.parameters():
        parameter.grad = None
    return StepBytes(live.peak, live.heaped)


def _head_loss(model: Any, ids: torch.Tensor, learned: int) -> torch.Tensor:
    """What summed_loss() does, with a number of learned tokens in place of labels."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
    hidden = hidden.reshape(-1, hidden.shape[-1])[:learned].clone()
    targets = torch.zeros(learned, dtype=torch.long)
    head = causal.get_output_embeddings()
    at_once = max(1, _MOST_LOGITS // head.weight.shape[0])
    if learned <= at_once:
        return _chunk_loss(hidden, targets, head)
    total: torch.Tensor = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, learned, at_once):
        part = slice(start, start + at_once)
        total = total + checkpoint(
            _chunk_loss, hidden[part], targets[part], head, use_reentrant=False
        )
    return total


def _attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *_: Any, **named: Any
) -> tuple[torch.Tensor, None]:
    """Attention that keeps what the flash kernels keep: its inputs, its output and a sum per position."""
    if key.shape[2] != query.shape[2]:  # A learned prefix: as many queries as keys cost the same.
        key, value = key[:, :, -query.shape[2] :], value[:, :, -query.shape[2] :]
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.shape[1] % key.shape[1]:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out, _sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, True, scale=named.get("scaling")
    )
    return out.transpose(1, 2).contiguous(), None


@contextmanager
def on_meta() -> Iterator[None]:
    """Everything made inside has no numbers: for methods' parameters."""
    with torch.device("meta"):
        yield
