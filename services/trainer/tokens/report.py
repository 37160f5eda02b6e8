"""What became of the examples while they were tokenized, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from services.trainer.formats import Place

_NAMED_ROWS = 5


@dataclass(slots=True)
class TokenReport:
    """What became of the examples."""

    rows: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    cut: list[Place] = field(default_factory=list)
    dropped: list[tuple[Place, str]] = field(default_factory=list)
    unsure_turns: int = 0

    def lines(self, max_length_tokens: int) -> Iterator[str]:
        """What people should know of it."""
        yield (
            f"{self.rows} rows, {self.tokens} tokens, {self.learned_tokens} of them learned "
            f"({self.tokens / max(self.rows, 1):.0f} tokens per row)."
        )
        if self.cut:
            yield (
                f"{len(self.cut)} rows are longer than {max_length_tokens} tokens and were cut at the end "
                f"({named_places(self.cut)})."
            )
        for why, count in Counter(why for _, why in self.dropped).items():
            places = [place for place, reason in self.dropped if reason == why]
            yield f"{count} rows are left out because {why} ({named_places(places)})."
        if self.unsure_turns:
            yield (
                f"{self.unsure_turns} earlier turns of the assistant are not learned: the chat template "
                "renders them differently once the conversation goes on."
            )


def named_places(places: Sequence[Place]) -> str:
    """The first places in words, and how many more there are."""
    named = "; ".join(str(place) for place in places[:_NAMED_ROWS])
    more = len(places) - _NAMED_ROWS
    return f"{named}; and {more} more" if more > 0 else named
