"""Reads, renders and tokenizes a job's data as the worker would, and reports what the model would see.

Everything is looked at as it passes: of a row nothing is kept but its lengths and its fingerprint.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from graft.errors import GraftError

from services.trainer.formats import (
    Completion,
    Conversation,
    Example,
    Labelled,
    PlainText,
    Preference,
    Prompt,
)
from services.trainer.objectives import OBJECTIVES
from services.trainer.preflight.check import check_base
from services.trainer.preflight.convert import report_message
from services.trainer.preflight.findings import find_all
from services.trainer.preflight.lengths import Lengths
from services.trainer.preflight.reading import Reading
from services.trainer.preflight.report import Report, Rows, Shown
from services.trainer.preflight.seen import Seen
from services.trainer.preflight.showing import show
from services.trainer.run.bases import find_folder
from services.trainer.sources import SetOpener, read_options
from services.trainer.sources.local import LocalSource
from services.trainer.spec import DatasetSource, JobSpec
from services.trainer.tokens import (
    ExampleTokenizer,
    TokenReport,
    TokenRow,
    end_token_ids,
    load_tokenizer,
)
from services.trainer.tokens.documents import split_row

_AT_ONCE = 512
_UNCUT = 2**31 - 1
Progress = Callable[[dict[str, Any]], None]


def survey(
    spec: JobSpec, examples: int, progress: Progress, registry_address: str
) -> dict[str, Any]:
    """The report of a job's data, as the contract's PreflightReport in JSON's values.

    Raises:
        GraftError: NOT_A_MODEL, for a base whose tokenizer cannot be read; UNAVAILABLE, for data that
            cannot be fetched now.
    """

    def log(line: str) -> None:
        progress({"stage": line, "rows": 0})

    # What is not on this machine is fetched for the survey alone.
    with tempfile.TemporaryDirectory(prefix="graft-preflight-") as folder:
        opener = SetOpener.usual(Path(folder), log, registry_address, "preflight", asyncio.run)
        return report_message(Survey(spec, examples, progress, opener).run())


class Survey:
    """One look at a job's data.

    Args:
        spec: the job.
        examples: how many rows are shown decoded.
        progress: takes how far it is.
        opener: brings the data here; by default what is not here is an error.
    """

    def __init__(
        self, spec: JobSpec, examples: int, progress: Progress, opener: SetOpener | None = None
    ) -> None:
        self.spec = spec
        self._opener = opener or SetOpener((LocalSource(),), Path())
        self._wanted = examples
        self._progress = progress
        self.objective = OBJECTIVES[spec.objective.kind].info
        self._splits = spec.objective.kind == "cpt"  # Long texts become several rows.
        folder = find_folder(spec.base.source)
        self.base_error = _error_of(lambda: check_base(spec))
        self._tokenizer = load_tokenizer(folder, spec.dataset.chat_template)
        self.max_tokens = min(
            spec.hyperparameters.max_length_tokens,
            max(1, (_longest_input(folder) or _UNCUT) - spec.method.input_tokens),
        )
        self._end_ids = end_token_ids(self._tokenizer, folder)
        self._reader = ExampleTokenizer(
            self._tokenizer, _UNCUT, self._end_ids, loss_on=spec.dataset.loss_on
        )
        self.reading = Reading(lambda stage, rows: progress({"stage": stage, "rows": rows}))
        self.seen = Seen()
        self.lengths, self.learned = Lengths(), Lengths()
        self.tokens = TokenReport()
        self.refused = Rows()
        self.refusal: GraftError | None = None
        self.wrong_kind = Rows()
        self.cut, self.answer_cut, self.beyond = Rows(), Rows(), Rows()
        self.cut_tokens = 0
        self.kept_tokens = self.kept_learned = 0
        self.cleaned: dict[str, int] = {}
        self._shown: list[Shown] = []

    def run(self) -> Report:
        """Looks at everything."""
        for index, source in enumerate(self.spec.dataset.sources):
            for part in _parts(self._examples(index, source)):
                self._look_at(part)
        self.cleaned |= {step: one.rows for step, one in self.reading.cleaning.steps.items()}
        eval_rows = self._look_at_evaluation()
        return find_all(self, eval_rows, self._shown)

    def _examples(self, index: int, source: DatasetSource) -> Iterator[Example]:
        for example in self._read("sources", index, source):
            if not isinstance(example.content, self.objective.contents):
                self.wrong_kind.add(example.place)
            elif self.seen.is_wanted(example, self.spec.dataset.cleaning.dedupe):
                yield example
            else:
                self._cleaned("dedupe")

    def _read(self, field: str, index: int, source: DatasetSource) -> Iterator[Example]:
        options = read_options(self.spec.dataset, field, index)
        return self.reading.examples(lambda: self._opener.fetch(field, index, source), options)

    def _cleaned(self, step: str) -> None:
        self.cleaned[step] = self.cleaned.get(step, 0) + 1

    def _look_at(self, part: list[Example]) -> None:
        """Tokenizes a part as one; where the chat template refuses a row, one by one."""
        answers = [answer for example in part for answer in _answers(example)]
        for example, label in answers[: max(0, self._wanted - len(self._shown))]:
            for row in self._one(example, TokenReport(), Rows()):
                self._shown.append(show(self._tokenizer, row, self._cut_at(row), label))
        report = TokenReport()
        try:
            rows = list(self._reader.iterate((example for example, _ in answers), report))
        except GraftError:
            report = self.tokens
            rows = [row for one, _ in answers for row in self._one(one, report, self.refused)]
        else:
            self._count(report)
        for row in rows:
            self._measure(row)

    def _cut_at(self, row: TokenRow) -> int:
        return len(row) if self._splits else self.max_tokens

    def _count(self, report: TokenReport) -> None:
        self.tokens.unsure_turns += report.unsure_turns
        for place in report.unended.places:
            self.tokens.unended.add(place)
        for why, noted in report.dropped.items():
            for place in noted.places:
                self.tokens.drop(place, why)

    def _one(self, example: Example, report: TokenReport, refused: Rows) -> list[TokenRow]:
        try:
            return list(self._reader.iterate([example], report))
        except GraftError as error:
            self.refusal = self.refusal or error
            refused.add(example.place)
            return []

    def _measure(self, row: TokenRow) -> None:
        cleaning, length = self.spec.dataset.cleaning, len(row)
        if length < cleaning.min_length_tokens:
            self._cleaned("min_length_tokens")
            return
        if cleaning.max_length_tokens and length > cleaning.max_length_tokens:
            self._cleaned("max_length_tokens")
            return
        for piece in split_row(row, self.max_tokens) if self._splits else (row,):
            self._measure_sequence(piece)

    def _measure_sequence(self, row: TokenRow) -> None:
        length = len(row)
        learned = int(np.count_nonzero(row.learned))
        self.lengths.add(length)
        self.learned.add(learned)
        kept = row.cut(self.max_tokens)
        kept_learned = int(np.count_nonzero(kept.learned))
        if length > self.max_tokens:
            self.cut.add(row.place)
            self.cut_tokens += length - self.max_tokens
            if kept_learned == 0:
                self.beyond.add(row.place)
            elif kept_learned < learned:
                self.answer_cut.add(row.place)
        if kept_learned:
            self.kept_tokens += len(kept)
            self.kept_learned += kept_learned

    def _look_at_evaluation(self) -> int:
        """Rows held out; notes those that are among the training rows, too."""
        dataset = self.spec.dataset
        if dataset.eval_fraction:
            return self.seen.split(dataset.eval_fraction, self.spec.seed)
        rows = 0
        for index, source in enumerate(dataset.eval_sources):
            for example in self._read("eval_sources", index, source):
                rows += 1
                self.seen.held_out(example)
        return rows


def _parts(examples: Iterator[Example]) -> Iterator[list[Example]]:
    while part := list(islice(examples, _AT_ONCE)):
        yield part


def _answers(example: Example) -> list[tuple[Example, str]]:
    """An example as such that are learned, each with what it is called: a preference is two."""
    place = example.place
    match example.content:
        case Preference(chosen=chosen, rejected=rejected):
            return [(Example(place, chosen), "chosen"), (Example(place, rejected), "rejected")]
        case Labelled(answer=answer, good=good):
            return [(Example(place, answer), "good" if good else "bad")]
        case Prompt(prompt=prompt, answer=answer):
            return [(Example(place, _as_text(prompt, answer)), "")]
        case _:
            return [(example, "")]


def _as_text(
    prompt: Conversation | str, answer: str | None
) -> Conversation | Completion | PlainText:
    if isinstance(prompt, str):
        return Completion(prompt, answer) if answer else PlainText(prompt)
    last = {"role": "assistant", "content": answer or "?"}
    return Conversation((*prompt.messages, last), prompt.tools)


def _error_of(work: Callable[[], None]) -> GraftError | None:
    try:
        work()
    except GraftError as error:
        return error
    return None


def _longest_input(folder: Path) -> int:
    """The base's max_position_embeddings; 0 where it does not say."""
    config = _json(folder / "config.json")
    config = config.get("text_config", config)
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    return longest if isinstance(longest, int) and longest > 0 else 0


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
