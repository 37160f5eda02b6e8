"""LoRA memory in pages of so many ranks: which pages an adapter has, so that small ones share a large slot.

After S-LoRA's unified paging (Sheng et al., S-LoRA: Serving Thousands of Concurrent LoRA Adapters, 2023).
Any free pages do for any adapter, so whether one fits is a matter of how many are free, and nobody has to
tidy up. Knows neither torch nor vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

# In what an engine is configured with (vLLM's additional_config).
SETTING = "graft_lora_pages"
# Pages by which the width grows at least.
_STEP = 4
# Owns a page that nobody has; no token's slot is called so.
FREE = -2


class NoRoomError(RuntimeError):
    """Fewer pages are free than an adapter needs."""


@dataclass(frozen=True, slots=True)
class Paging:
    """How an engine's LoRA memory is divided.

    Attributes:
        slots: adapters of the largest rank that there is memory for.
        slot_rank: the largest rank.
        page_rank: ranks of a page; it divides slot_rank.
    """

    slots: int
    slot_rank: int
    page_rank: int

    @property
    def pages(self) -> int:
        """How many there are."""
        return self.slots * self.slot_rank // self.page_rank

    def needed(self, rank: int) -> int:
        """Pages that an adapter takes."""
        return max(1, -(-rank // self.page_rank))

    def as_setting(self) -> dict[str, dict[str, int]]:
        """For vLLM's additional_config."""
        return {
            SETTING: {
                "slots": self.slots,
                "slot_rank": self.slot_rank,
                "page_rank": self.page_rank,
            }
        }

    @classmethod
    def of(cls, additional_config: Any) -> Paging | None:
        """What as_setting() gave; None where LoRA memory is not divided."""
        found = additional_config.get(SETTING) if isinstance(additional_config, dict) else None
        return None if found is None else cls(**found)


class PageTable:
    """Who has which page.

    Attributes:
        version: another one after each change.
        width: pages, from the first on, among which all are that somebody has; it grows by steps, so
            that what is laid out for it is seldom laid out anew.
    """

    def __init__(self, paging: Paging) -> None:
        self.paging, self.version, self.width = paging, 0, 0
        self._owners = [FREE] * paging.pages
        self._of: dict[int, tuple[int, ...]] = {}
        self._rows: dict[int, list[slice]] = {}

    @property
    def free(self) -> int:
        """Pages that nobody has."""
        return self.paging.pages - sum(map(len, self._of.values()))

    @property
    def owners(self) -> Sequence[int]:
        """Of each page."""
        return self._owners

    def take(self, slot: int, rank: int) -> tuple[int, ...]:
        """Gives a slot, which has none, the pages for an adapter; side by side where that can be.

        Raises:
            NoRoomError: fewer are free; nothing is taken.
        """
        assert slot not in self._of, "it has pages"
        needed = self.paging.needed(rank)
        free = [page for page, owner in enumerate(self._owners) if owner == FREE]
        if len(free) < needed:
            raise NoRoomError(
                f"an adapter of rank {rank} takes {needed} pages, and {len(free)} of "
                f"{self.paging.pages} are free"
            )
        fitting = [run for run in _runs(free) if len(run) >= needed]
        # The smallest gap that does, and the first of such: large ones are kept for large adapters.
        pages = tuple((min(fitting, key=len) if fitting else free)[:needed])
        size = self.paging.page_rank
        self._of[slot] = pages
        self._rows[slot] = [slice(run[0] * size, (run[-1] + 1) * size) for run in _runs(pages)]
        self._own(pages, slot)
        return pages

    def release(self, slot: int) -> tuple[int, ...]:
        """Takes back what a slot has; empty where it has none."""
        pages = self._of.pop(slot, ())
        self._rows.pop(slot, None)
        if pages:
            self._own(pages, FREE)
        return pages

    def pages(self, slot: int) -> tuple[int, ...]:
        """What a slot has, in order."""
        return self._of.get(slot, ())

    def rows(self, slot: int) -> list[slice]:
        """The same as rows of the memory, a slice for pages that lie side by side."""
        return self._rows.get(slot, [])

    def _own(self, pages: Sequence[int], owner: int) -> None:
        for page in pages:
            self._owners[page] = owner
        self.version += 1
        if owner != FREE and pages[-1] >= self.width:
            wanted = max(pages[-1] + 1, self.width * 3 // 2)
            self.width = min(self.paging.pages, -(-wanted // _STEP) * _STEP)


def rank_of_files(folder: Path) -> int:
    """The largest rank that an adapter_config.json names; 1 where it names none, as IA3.

    Raises:
        OSError, ValueError.
    """
    config = json.loads((folder / "adapter_config.json").read_bytes())
    ranks = [config.get("r") or 1, *(config.get("rank_pattern") or {}).values()]
    return max(ranks) if config.get("peft_type") != "IA3" else 1


def _runs(pages: Sequence[int]) -> list[list[int]]:
    """Pages in order, those that lie side by side together."""
    numbered = groupby(enumerate(pages), key=lambda each: each[1] - each[0])
    return [[page for _, page in run] for _, run in numbered]
