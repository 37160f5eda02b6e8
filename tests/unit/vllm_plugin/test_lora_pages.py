"""Pages of LoRA memory: nobody has another's, and what fits by number fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from services.inference.vllm_plugin.lora_pages import (
    FREE,
    NoRoomError,
    PageTable,
    Paging,
    rank_of_files,
)

EIGHT = Paging(slots=2, slot_rank=32, page_rank=8)


def test_an_adapter_takes_as_many_pages_as_its_rank_needs() -> None:
    assert EIGHT.pages == 8
    assert [EIGHT.needed(rank) for rank in (0, 1, 8, 9, 16, 17, 32)] == [1, 1, 1, 2, 2, 3, 4]


def test_eight_small_adapters_share_what_two_large_ones_fill() -> None:
    table = PageTable(EIGHT)
    for slot in range(8):
        table.take(slot, 8)
    with pytest.raises(NoRoomError, match="0 of 8 are free"):
        table.take(8, 1)
    for slot in range(0, 8, 2):
        table.release(slot)
    # Wherever they lie.
    assert table.take(9, 32) == (0, 2, 4, 6)
    assert table.rows(9) == [slice(0, 8), slice(16, 24), slice(32, 40), slice(48, 56)]


def test_an_adapter_gets_the_smallest_gap_that_is_large_enough_in_one_piece() -> None:
    table = PageTable(EIGHT)
    for slot in range(8):
        table.take(slot, 8)
    for slot in (0, 1, 2, 4, 5):
        table.release(slot)
    assert table.take(10, 16) == (4, 5)
    assert table.rows(10) == [slice(32, 48)]
    assert table.take(11, 8) == (0,)


@given(
    some.lists(
        some.tuples(some.integers(0, 11), some.integers(1, 32), some.booleans()), max_size=60
    )
)
def test_whatever_comes_and_goes_each_page_has_one_owner_and_what_fits_by_number_fits(
    steps: list[tuple[int, int, bool]],
) -> None:
    table, here = PageTable(EIGHT), dict[int, int]()
    for slot, rank, goes in steps:
        version = table.version
        if goes or slot in here:
            released = table.release(slot)
            assert len(released) == here.pop(slot, 0)
            assert (table.version == version) == (not released)
            continue
        needed = EIGHT.needed(rank)
        if needed > table.free:
            with pytest.raises(NoRoomError):
                table.take(slot, rank)
            assert table.version == version
            continue
        assert table.take(slot, rank) == table.pages(slot)
        here[slot] = needed
        for each, count in here.items():
            pages = table.pages(each)
            assert len(pages) == count
            assert all(table.owners[page] == each for page in pages)
            assert pages[-1] < table.width <= EIGHT.pages
            rows = [row for part in table.rows(each) for row in range(64)[part]]
            assert rows == [page * 8 + row for page in pages for row in range(8)]
        assert table.free == EIGHT.pages - sum(here.values()) == list(table.owners).count(FREE)


def test_what_the_workers_are_told_is_what_they_read() -> None:
    assert Paging.of(EIGHT.as_setting()) == EIGHT
    assert Paging.of({}) is None


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        ({"r": 8}, 8),
        ({"r": 8, "rank_pattern": {"q_proj": 24}}, 24),
        ({"r": 8, "rank_pattern": None}, 8),
        ({"peft_type": "IA3"}, 1),
    ],
)
def test_the_scheduler_reads_the_rank_from_the_files(
    tmp_path: Path, config: dict[str, object], rank: int
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert rank_of_files(tmp_path) == rank
