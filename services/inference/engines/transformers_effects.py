"""What an adapter does to a module of the base: for some rows of a batch, before it or after it.

Numbers stay in the type that they were saved in, as PEFT computes them; what goes on is in the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}


class Effect:
    """On one module; x is what goes in and y what comes out, both of shape (rows, tokens, features)."""

    def before(self, x: Tensor) -> Tensor:
        """What goes in instead."""
        return x

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """What comes out instead."""
        return y


@dataclass(slots=True)
class Bottleneck(Effect):
    """y + up(f(down(y))): Houlsby et al. 2019, section 2.1."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    activation: str

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        inner = nn.functional.linear(y.to(self.down.dtype), self.down, self.down_bias)
        change = nn.functional.linear(ACTIVATIONS[self.activation](inner), self.up, self.up_bias)
        return y + change.to(y.dtype)


@dataclass(slots=True)
class LowRank(Effect):
    """y + scale * B A x; with magnitudes it is a DoRA, whose output is scaled where the weight has grown.

    Attributes:
        growth: the magnitude over the norm of the merged weight, per output; None for a plain LoRA.
        bias: of the module, which DoRA leaves as it is.
    """

    down: Tensor
    up: Tensor
    scale: float
    growth: Tensor | None = None
    bias: Tensor | None = None

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        inner = nn.functional.linear(x.to(self.down.dtype), self.down)
        change = nn.functional.linear(inner, self.up) * self.scale
        if self.growth is None:
            return (y + change).to(y.dtype)
        plain = y if self.bias is None else y - self.bias
        return (y + (self.growth - 1) * plain + self.growth * change).to(y.dtype)


@dataclass(slots=True)
class Scale(Effect):
    """IA3: a factor per feature, of what goes in (inside) or of what comes out."""

    factors: Tensor
    inside: bool

    def before(self, x: Tensor) -> Tensor:
        return (x * self.factors).to(x.dtype) if self.inside else x

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        return y if self.inside else (y * self.factors).to(y.dtype)


Effects = Mapping[str, Effect]


@dataclass(slots=True)
class _Group:
    effects: Effects
    # None: all rows.
    rows: Tensor | None


@dataclass(slots=True)
class Rows:
    """Which rows of the batch that is being computed have which effects; hooks of the modules ask it."""

    model: Any
    _count: int = 0
    _groups: list[_Group] = field(default_factory=list)
    _hooks: dict[str, list[Any]] = field(default_factory=dict)
    _uses: dict[str, int] = field(default_factory=dict)

    def attach(self, effects: Effects) -> None:
        """The modules of an adapter will be asked."""
        for path in effects:
            self._uses[path] = self._uses.get(path, 0) + 1
            if path not in self._hooks:
                module = self.model.get_submodule(path)
                self._hooks[path] = [
                    module.register_forward_pre_hook(self._before(path)),
                    module.register_forward_hook(self._after(path)),
                ]

    def detach(self, effects: Effects) -> None:
        """As if it had not been attached."""
        for path in effects:
            self._uses[path] -= 1
            if not self._uses[path]:
                del self._uses[path]
                for hook in self._hooks.pop(path):
                    hook.remove()

    def set(self, effects: Sequence[Effects]) -> None:
        """The effects of each row of what is computed next; rows with the same mapping go together."""
        found: dict[int, list[int]] = {}
        for row, each in enumerate(effects):
            if each:
                found.setdefault(id(each), []).append(row)
        device = self.model.device
        self._count = len(effects)
        self._groups = [
            _Group(
                effects[rows[0]],
                None if len(rows) == len(effects) else torch.tensor(rows, device=device),
            )
            for rows in found.values()
        ]

    def _before(self, path: str) -> Callable[..., Any]:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> Any:
            if not inputs:
                return None
            x = self._by_row(inputs[0])
            changed = self._change(path, x, lambda effect, rows: effect.before(x[rows]))
            return None if changed is x else (changed.reshape(inputs[0].shape), *inputs[1:])

        return hook

    def _after(self, path: str) -> Callable[..., Any]:
        def hook(_module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
            given = output[0] if isinstance(output, tuple) else output
            y = self._by_row(given)
            # Attention and MLP are called by name, and what goes into them is nobody's business.
            x = self._by_row(inputs[0]) if inputs else y
            changed = self._change(path, y, lambda effect, rows: effect.after(x[rows], y[rows]))
            changed = changed.reshape(given.shape)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    def _by_row(self, given: Tensor) -> Tensor:
        """Some modules are given all tokens of all rows in one dimension."""
        return given if given.dim() > 2 else given.reshape(self._count, -1, given.shape[-1])

    def _change(self, path: str, whole: Tensor, apply: Callable[[Effect, Any], Tensor]) -> Tensor:
        changed = whole
        for group in self._groups:
            effect = group.effects.get(path)
            if effect is None:
                continue
            if group.rows is None:
                return apply(effect, slice(None))
            if changed is whole:
                changed = whole.clone()
            changed[group.rows] = apply(effect, group.rows)
        return changed
