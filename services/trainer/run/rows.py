"""Examples -> token rows -> batches, for the objectives that learn rows of tokens: SFT and pre-training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from services.trainer.formats import Example
from services.trainer.objectives.base import Prepared, Reading
from services.trainer.run.batches import PackedRows, PaddedRows
from services.trainer.run.streams import StreamedRows
from services.trainer.tokens import ExampleTokenizer, TokenReport, TokenRow
from services.trainer.tokens.documents import DocumentTokenizer
from services.trainer.tokens.examples import nothing_to_learn

_EXAMPLES_UNTIL_A_ROW = 10_000


class RowTokenizer(Protocol):
    """What makes rows of examples."""

    def iterate(self, examples: Iterable[Example], report: TokenReport) -> Iterator[TokenRow]:
        """The rows, one after the other."""


def example_tokenizer(reading: Reading) -> RowTokenizer:
    """Makes a row of an example, of which the answers are learned, or what the spec says."""
    dataset = reading.spec.dataset
    return ExampleTokenizer(
        reading.tokenizer,
        reading.max_tokens,
        reading.end_ids,
        loss_on=dataset.loss_on,
        shortest_tokens=dataset.cleaning.min_length_tokens,
        longest_tokens=dataset.cleaning.max_length_tokens,
    )


def document_tokenizer(reading: Reading) -> RowTokenizer:
    """Makes rows of a text, of which everything is learned."""
    cleaning = reading.spec.dataset.cleaning
    return DocumentTokenizer(
        reading.tokenizer,
        reading.max_tokens,
        shortest_tokens=cleaning.min_length_tokens,
        longest_tokens=cleaning.max_length_tokens,
    )


def prepare_rows(
    training: list[Example],
    held_out: list[Example],
    reading: Reading,
    tokenizer: RowTokenizer | None = None,
) -> Prepared:
    """Tokenizes and batches; train is PaddedRows, PackedRows or StreamedRows, evaluation is PaddedRows.

    Args:
        tokenizer: makes the rows; example_tokenizer's when left out.

    Raises:
        GraftError: BAD_DATA, when no row has anything to learn; INVALID_SPEC.
    """
    tokenizer = tokenizer or example_tokenizer(reading)
    pad_id = pad_token_id(reading)
    evaluation = None
    if held_out:
        evaluation = PaddedRows(_tokenize(tokenizer, held_out, reading, "held-out")[0], pad_id)
    if reading.stream is not None:
        figures: dict[str, float] = {}
        return Prepared(_stream(tokenizer, reading, figures), evaluation, 0, None, figures)
    rows, report = _tokenize(tokenizer, training, reading)
    batches: PaddedRows | PackedRows = PaddedRows(rows, pad_id)
    if reading.spec.hyperparameters.packing:
        batches = PackedRows(rows, pad_id, reading.max_tokens)
    return Prepared(batches, evaluation, len(rows), len(batches.lengths), report.figures())


def pad_token_id(reading: Reading) -> int:
    """The token that fills batches; it is never learned, so any will do."""
    pad_id = reading.tokenizer.pad_token_id
    return 0 if pad_id is None else int(pad_id)


def _tokenize(
    tokenizer: RowTokenizer, examples: list[Example], reading: Reading, kind: str = ""
) -> tuple[list[TokenRow], TokenReport]:
    report = TokenReport()
    rows = list(tokenizer.iterate(examples, report))
    if not rows:
        raise nothing_to_learn(report, kind)
    for line in report.lines(reading.max_tokens):
        reading.log(f"{kind.capitalize()}: {line}" if kind else line)
    return rows, report


def _stream(tokenizer: RowTokenizer, reading: Reading, figures: dict[str, float]) -> StreamedRows:
    """The stream's batches; figures are filled in when it has given the last one."""
    hyper = reading.spec.hyperparameters
    stream = reading.stream
    assert stream is not None
    reports: list[TokenReport] = []

    def begin() -> Iterator[TokenRow]:
        reports.append(TokenReport())
        return tokenizer.iterate(_fruitful(stream(), reports[-1]), reports[-1])

    def done() -> None:
        figures.update(reports[-1].figures())
        for line in reports[-1].lines(reading.max_tokens):
            reading.log(line)

    return StreamedRows(
        begin,
        pad_token_id(reading),
        sequences=hyper.max_steps
        * hyper.gradient_accumulation_steps
        * hyper.micro_batch_size
        * reading.processes,
        capacity=reading.max_tokens if hyper.packing else 0,
        batch_size=hyper.micro_batch_size,
        seed=reading.spec.seed,
        by_length=hyper.group_by_length,
        done=done,
    )


def _fruitful(examples: Iterator[Example], report: TokenReport) -> Iterator[Example]:
    """The examples, as long as rows come of them: a stream of none would go on for ever."""
    for number, example in enumerate(examples):
        if number >= _EXAMPLES_UNTIL_A_ROW and not report.rows:
            raise nothing_to_learn(report)
        yield example
