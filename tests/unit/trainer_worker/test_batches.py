"""Batches: every row once an epoch, the same order for the same seed, packs that are full and never overfull."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.formats import Place
from services.trainer.run.batches import PackedRows, PaddedRows, RowOrder
from services.trainer.tokens import IGNORED, TokenRow
from services.trainer.tokens.packing import pack_rows

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=300)


def row(*ids: int) -> TokenRow:
    array = np.array(ids, np.int32)
    return TokenRow(Place("d", 1), array, np.arange(len(ids)) > 0)


@settings(deadline=None, max_examples=50)
@given(LENGTHS)
def test_packs_hold_every_row_once_and_at_most_their_capacity(lengths: list[int]) -> None:
    packs = pack_rows(lengths, 100)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in pack) <= 100 for pack in packs)
    # Best-fit decreasing: at most 11/9 of the fewest possible, plus one.
    assert len(packs) <= 11 / 9 * -(-sum(lengths) // 100) * 2 + 1


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_has_every_row_once_in_an_order_of_its_own(
    lengths: list[int], batch_size: int, epoch: int
) -> None:
    def order(number: int) -> list[int]:
        rows = RowOrder(lengths, batch_size, seed=5)
        rows.begin_epoch(number)
        return list(rows)

    assert sorted(order(epoch)) == list(range(len(lengths)))
    assert order(epoch) == order(epoch)
    if len(lengths) > 20:
        assert order(epoch) != order(epoch + 1)


def test_rows_of_like_length_share_a_batch() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 400)
    order = list(RowOrder(lengths.tolist(), 8, seed=0))
    batches = [lengths[order[at : at + 8]] for at in range(0, 400, 8)]
    padding = sum(int((batch.max() - batch).sum()) for batch in batches)
    assert padding / lengths.sum() < 0.05


def test_rows_of_any_length_share_a_batch_where_grouping_is_off() -> None:
    lengths = sorted(np.random.default_rng(0).integers(1, 500, 400).tolist())
    order = list(RowOrder(lengths, 8, seed=0, by_length=False))
    assert sorted(order) == list(range(400))
    spread = [max(order[at : at + 8]) - min(order[at : at + 8]) for at in range(0, 400, 8)]
    assert min(spread) > 100


def test_padding_is_behind_the_row_and_not_learned() -> None:
    batch = PaddedRows([row(5, 6, 7), row(8)], pad_id=0)([{"row": 0}, {"row": 1}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED, IGNORED, IGNORED]]


def test_positions_begin_again_with_every_packed_row() -> None:
    rows = PackedRows([row(5, 6, 7), row(8, 9), row(4)], pad_id=0, capacity=5)
    assert rows.lengths == [5, 1]
    batch = rows([{"row": 0}, {"row": 1}])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert batch["labels"][0].tolist() == [IGNORED, 6, 7, IGNORED, 9]


@pytest.mark.parametrize("capacity", [3, 5])
def test_no_row_is_cut_by_packing(capacity: int) -> None:
    rows = PackedRows([row(5, 6, 7), row(8, 9)], pad_id=0, capacity=capacity)
    packed = rows([{"row": index} for index in range(len(rows.lengths))])
    assert sorted(t for line in packed["input_ids"].tolist() for t in line if t) == [5, 6, 7, 8, 9]
