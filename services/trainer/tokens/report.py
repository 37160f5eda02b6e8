"""What became of the examples while they were tokenized, in numbers and in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from services.trainer.formats import Place
from services.trainer.tokens.rows import TokenRow

_NAMED_ROWS = 5
_KEPT_PLACES = 10_000


@dataclass(slots=True)
class Noted:
    """How many rows something is true of, and the places of the first ten thousand."""

    count: int = 0
    places: list[Place] = field(default_factory=list)

    def add(self, place: Place) -> None:
        """Notes one more row."""
        self.count += 1
        if len(self.places) < _KEPT_PLACES:
            self.places.append(place)

    def __len__(self) -> int:
        return self.count

    def __str__(self) -> str:
        """The first places in words, and how many more there are."""
        named = "; ".join(str(place) for place in self.places[:_NAMED_ROWS])
        more = self.count - min(len(self.places), _NAMED_ROWS)
        return f"{named}; and {more} more" if more > 0 else named


@dataclass(slots=True)
class TokenReport:
    """What became of the examples.

    Args:
        rows: token rows that were made.
        tokens: of these rows.
        learned_tokens: those that are learned.
        cut: rows whose end is cut off.
        split: rows that are so long that they became several.
        dropped: rows that are left out, by the reason.
        removed: how many of these a declared step of cleaning left out, by its name.
        unended: rows that are not cut, whose last learned token does not end an answer: a model that
            learns them does not learn to stop.
        unsure_turns: turns of the assistant that could not be found in the rendered text.
    """

    rows: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    cut: Noted = field(default_factory=Noted)
    split: Noted = field(default_factory=Noted)
    dropped: dict[str, Noted] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    unended: Noted = field(default_factory=Noted)
    unsure_turns: int = 0

    def drop(self, place: Place, why: str) -> None:
        """Notes a row that is left out."""
        self.dropped.setdefault(why, Noted()).add(place)

    def left_out(self, place: Place, tokens: int, shortest: int, longest: int) -> bool:
        """Whether a row of so many tokens is outside of the declared bounds; notes it if so. 0 is no bound."""
        if tokens < shortest:
            self._remove(place, "min_length_tokens", f"fewer than {shortest}")
        elif longest and tokens > longest:
            self._remove(place, "max_length_tokens", f"more than {longest}")
        else:
            return False
        return True

    def _remove(self, place: Place, step: str, bound: str) -> None:
        self.removed[step] = self.removed.get(step, 0) + 1
        self.drop(place, f"they have {bound} tokens (cleaning.{step})")

    def count(self, row: TokenRow) -> None:
        """Counts a row that is made."""
        self.rows += 1
        self.tokens += len(row)
        self.learned_tokens += int(np.count_nonzero(row.learned))

    def figures(self) -> dict[str, float]:
        """What cleaning left out by the number of tokens, by names for a version's lineage."""
        return {f"rows_removed_{step}": float(rows) for step, rows in self.removed.items()}

    def lines(self, max_length_tokens: int) -> Iterator[str]:
        """What people should know of it."""
        yield (
            f"{self.rows} rows, {self.tokens} tokens, {self.learned_tokens} of them learned "
            f"({self.tokens / max(self.rows, 1):.0f} tokens per row)."
        )
        if self.cut:
            yield (
                f"{len(self.cut)} rows are longer than {max_length_tokens} tokens and were cut at the end "
                f"({self.cut})."
            )
        if self.split:
            yield (
                f"{len(self.split)} texts are longer than {max_length_tokens} tokens and became several rows "
                f"({self.split})."
            )
        for why, rows in self.dropped.items():
            yield f"{len(rows)} rows are left out because {why} ({rows})."
        if self.unended:
            yield (
                f"The last learned token of {len(self.unended)} rows does not end an answer, so the model does "
                f"not learn from them where to stop ({self.unended})."
            )
        if self.unsure_turns:
            yield (
                f"{self.unsure_turns} earlier turns of the assistant are not learned: the chat template "
                "renders them differently once the conversation goes on."
            )
