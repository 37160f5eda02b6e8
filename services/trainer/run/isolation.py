"""Whether a base keeps packed rows apart, found out on the base itself before it is trained so.

Not every architecture does: some take no positions, some have state or convolutions that run on over the
boundary, and none of them says so. Their training would go on, on other text than the rows'.
"""

from __future__ import annotations

from typing import Any

import torch
from graft.errors import GraftError, Reason

from services.trainer.run.trainers.common import without_dropout

_FIRST_TOKENS, _SECOND_TOKENS = 9, 7
_MOST_LEAK = (
    0.25  # Of what a row in front does where it is not kept apart; usually it is exactly 0.
)
_MOST_DEVIATION = 0.1  # Of the logits' spread; 16-bit arithmetic gives some.


@torch.no_grad()
def check_isolation(model: Any, who: str = "base", device: torch.device | None = None) -> None:
    """Checks that a row has the same logits behind another row as alone.

    Args:
        model: a causal language model.
        who: what the error calls it.
        device: where it is computed; the model's own when left out.

    Raises:
        GraftError: INVALID_SPEC, when it has not.
    """
    vocabulary = model.config.get_text_config().vocab_size
    numbers = torch.arange(_FIRST_TOKENS + _SECOND_TOKENS)
    first, other = (7 * numbers[:_FIRST_TOKENS] + 3), (11 * numbers[:_FIRST_TOKENS] + 5)
    second = 13 * numbers[_FIRST_TOKENS:] + 1
    own = numbers[:_SECOND_TOKENS]
    packed = torch.cat([numbers[:_FIRST_TOKENS], own])
    with without_dropout(model):

        def logits(*rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            ids = torch.cat(rows).remainder(vocabulary)
            given = {"input_ids": ids[None], "position_ids": positions[None]}
            on_device = {name: tensor.to(device or model.device) for name, tensor in given.items()}
            try:
                outputs = model(**on_device, use_cache=False)
            except TypeError:
                raise _mixes(model, who) from None
            found: torch.Tensor = outputs.logits[0, -_SECOND_TOKENS:].float()
            return found

        behind = logits(first, second, positions=packed)
        leak = (behind - logits(other, second, positions=packed)).abs().mean()
        joined = logits(first, second, positions=numbers)
        reference = (joined - logits(other, second, positions=numbers)).abs().mean()
        alone = logits(second, positions=own)
    deviation = (behind - alone).abs().mean()
    if leak > _MOST_LEAK * reference or deviation > _MOST_DEVIATION * alone.std():
        raise _mixes(model, who)


def _mixes(model: Any, who: str) -> GraftError:
    kind = model.config.model_type
    return GraftError(
        Reason.INVALID_SPEC,
        f"hyperparameters.packing is true, and the {who}'s architecture ({kind}) does not keep packed rows apart: "
        "a row's logits change with the row in front of it",
        next_step="Set hyperparameters.packing to false; rows of like length then share a batch.",
        field="hyperparameters.packing",
    )
