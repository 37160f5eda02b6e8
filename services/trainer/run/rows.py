"""Examples -> token rows -> batches, for the objectives that learn rows of tokens: SFT and pre-training."""

from __future__ import annotations

from services.trainer.formats import Example
from services.trainer.objectives.base import Prepared, Reading
from services.trainer.run.batches import PackedRows, PaddedRows
from services.trainer.tokens import ExampleTokenizer, TokenRow


def prepare_rows(training: list[Example], held_out: list[Example], reading: Reading) -> Prepared:
    """Tokenizes and batches; train is PaddedRows or PackedRows, evaluation is PaddedRows.

    Raises:
        GraftError: BAD_DATA, when no row has anything to learn.
    """
    rows = _tokenize(training, reading)
    eval_rows = _tokenize(held_out, reading) if held_out else []
    pad_id = pad_token_id(reading)
    batches: PaddedRows | PackedRows = PaddedRows(rows, pad_id)
    if reading.spec.hyperparameters.packing:
        batches = PackedRows(rows, pad_id, reading.max_tokens)
    evaluation = PaddedRows(eval_rows, pad_id) if eval_rows else None
    return Prepared(batches, evaluation, len(rows), len(batches.lengths))


def pad_token_id(reading: Reading) -> int:
    """The token that fills batches; it is never learned, so any will do."""
    pad_id = reading.tokenizer.pad_token_id
    return 0 if pad_id is None else int(pad_id)


def _tokenize(examples: list[Example], reading: Reading) -> list[TokenRow]:
    dataset = reading.spec.dataset
    reader = ExampleTokenizer(
        reading.tokenizer,
        reading.max_tokens,
        reading.end_ids,
        loss_on=dataset.loss_on,
        shortest_tokens=dataset.cleaning.min_length_tokens,
        longest_tokens=dataset.cleaning.max_length_tokens,
    )
    rows, report = reader.tokenize(examples)
    for line in report.lines(reading.max_tokens):
        reading.log(line)
    return rows
