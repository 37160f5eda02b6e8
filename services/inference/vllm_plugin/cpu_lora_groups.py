"""Which tokens of an engine step belong to which adapter slot: worked out once, used by every layer.

Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import torch


class TokenGroups:
    """The tokens of one step by slot.

    Args:
        slots_of_tokens: for each token its slot, -1 where it has no adapter.
        slots: how many there are.
    """

    def __init__(self, slots_of_tokens: Sequence[int], slots: int) -> None:
        self.tokens = len(slots_of_tokens)
        self.active = tuple(sorted({slot for slot in slots_of_tokens if slot >= 0}))
        self._slots = slots
        self._of_tokens = torch.tensor(slots_of_tokens, dtype=torch.long)
        self._owns: dict[Hashable, torch.Tensor] = {}
        self._of_content: dict[int, tuple[object, torch.Tensor | None]] = {}
        self._lows: dict[torch.Size, torch.Tensor] = {}
        self._rows: list[tuple[int, slice | torch.Tensor]] | None = None
        self._or_last: torch.Tensor | None = None

    def rows_of(self, buffer: torch.Tensor) -> torch.Tensor:
        """For each token the row of its slot, [tokens, features]; the last row where it has none."""
        if self._or_last is None:
            self._or_last = self._of_tokens.where(self._of_tokens >= 0, self._slots)
        return buffer.index_select(0, self._or_last)

    def own(
        self,
        key: Hashable,
        owners: Callable[[], torch.Tensor],
        columns: int,
        times: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """1 where a token's row meets a column of its slot, else 0; shape [tokens, times * columns].

        Args:
            key: the same for the same owners.
            owners: makes the slot of each column, in a type of integers.
            columns: at least as many; further ones are padding.
            times: how often that is repeated.
        """
        whole = (key, columns, times, dtype)
        found = self._owns.get(whole)
        if found is None:
            one = (self._of_tokens[:, None] == owners()).to(dtype)
            padded = torch.nn.functional.pad(one, (0, columns - one.shape[1]))
            found = self._owns[whole] = padded.repeat(1, times)
        return found

    def own_of(
        self, content: object, find: Callable[[], torch.Tensor | None]
    ) -> torch.Tensor | None:
        """What find() returns, once for a content."""
        known = self._of_content.get(id(content))
        if known is None or known[0] is not content:
            known = self._of_content[id(content)] = (content, find())
        return known[1]

    def low_of(self, own: torch.Tensor) -> torch.Tensor:
        """Memory for low-rank activations, of the shape of what own() returned; the same for every layer."""
        found = self._lows.get(own.shape)
        if found is None:
            found = self._lows[own.shape] = torch.empty_like(own)
        return found

    def rows(self) -> Iterator[tuple[int, slice | torch.Tensor]]:
        """Every active slot with its tokens; a slice where they lie side by side."""
        if self._rows is None:
            self._rows = [(slot, self._rows_of(slot)) for slot in self.active]
        return iter(self._rows)

    def first(self, tokens: int) -> TokenGroups:
        """The groups of a layer that sees another number of tokens; what is beyond has no adapter."""
        known = self._of_tokens[:tokens].tolist()
        return TokenGroups(known + [-1] * (tokens - len(known)), self._slots)

    def _rows_of(self, slot: int) -> slice | torch.Tensor:
        indices = torch.nonzero(self._of_tokens == slot).flatten()
        first, last = int(indices[0]), int(indices[-1])
        return slice(first, last + 1) if last - first + 1 == len(indices) else indices
