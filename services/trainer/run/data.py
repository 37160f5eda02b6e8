"""The job's examples: sets are opened, read, cleaned, held out and mixed, in this order.

Rows are held out before sets are mixed, so that no row that is repeated for its set's weight is both
trained on and evaluated with. No torch here; preflight reads the same way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from graft.errors import GraftError, Reason

from services.trainer.formats import CleaningReport, Example
from services.trainer.formats.base import bad_row
from services.trainer.formats.cleaning import Dedupe, content_key, content_keys
from services.trainer.formats.mixing import interleave, mix
from services.trainer.objectives import OBJECTIVES
from services.trainer.objectives.base import ObjectiveInfo
from services.trainer.run.background import BackgroundLoop
from services.trainer.run.settings import WorkerSettings
from services.trainer.sources import OpenSet, OpenSets, SetOpener, open_sets
from services.trainer.sources.base import Source
from services.trainer.sources.local import LocalSource
from services.trainer.sources.patient import PatientSource
from services.trainer.spec import DatasetSpec

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Data:
    """The rows of a job.

    Attributes:
        training: what is trained on, sets mixed by their weights; empty while streaming.
        held_out: what is evaluated with; empty where nothing is.
        regression: what shows whether something is forgotten; empty where nothing does.
        stream: with dataset.streaming, what is trained on instead of training: without end, each row read as
            it is asked for. It can be begun again, and then gives the same rows in the same order.
        format: of the training rows, in words.
        digest: of the files' bytes, and of what the spec says of them.
        origins: places outside that the data came from, pinned, for the lineage.
        cleaning: what declared steps left out; a stream adds to it in its first pass over each set.
    """

    training: list[Example]
    held_out: list[Example]
    format: str
    digest: str
    origins: tuple[str, ...]
    cleaning: CleaningReport
    stream: Callable[[], Iterator[Example]] | None = None
    regression: Sequence[Example] = ()


def set_opener(
    settings: WorkerSettings, loop: BackgroundLoop, log: Log, waiting: Log | None = None
) -> SetOpener:
    """Opens a worker's sets; what is fetched stays in its work folder for the next attempt.

    Args:
        waiting: told what is waited for, and "" when it is back; nothing is waited for when left out.
    """
    folder, registry, run = settings.work_dir / "data", settings.registry_address, loop.run
    if waiting is None:
        return SetOpener.usual(folder, log, registry, settings.job, run)
    patience_s, told = settings.data_patience_s, waiting

    def patiently(source: Source) -> Source:
        return PatientSource(source, patience_s, told)

    return SetOpener.usual(folder, log, registry, settings.job, run, patiently)


def read_data(
    spec: DatasetSpec, objective: ObjectiveInfo, seed: int, opener: SetOpener, log: Log
) -> Data:
    """Reads all examples of the spec; of a stream only the first ones and what is held out.

    Raises:
        GraftError: BAD_DATA, when there is nothing to train on or to evaluate with, or a row is wrong;
            INVALID_SPEC; what fetching raises.
    """
    sets = open_sets(spec, opener)
    reader = _Reader(spec, objective, log)
    held_out = reader.evaluation(sets.evaluation)
    regression = _regression(spec, sets, log)
    if spec.streaming:
        stream = _stream(sets, spec, reader, held_out)
        return _result(sets, [], held_out, reader, stream, regression)
    parts = [list(reader.rows(one)) for one in sets.training]
    if spec.eval_fraction:
        parts, held_out = hold_out(parts, spec.eval_fraction, seed)
    if spec.cleaning.drop_eval_overlap:
        parts = reader.without(parts, held_out)
    for one, rows in zip(sets.training, parts, strict=True):
        if not rows:
            raise _nothing_left(one.name, "trained on", reader.cleaning)
    for line in reader.cleaning.lines():
        log(line)
    training = mix(parts, [source.weight for source in spec.sources], seed)
    if len(training) > sum(map(len, parts)):
        log(f"Mixed by weight: {len(training)} rows of {sum(map(len, parts))} different ones.")
    return _result(sets, training, held_out, reader, None, regression)


def check_local_data(spec: DatasetSpec, objective: ObjectiveInfo) -> None:
    """Reads every row of the sets on this machine once, and keeps none; others are the worker's to fetch.

    Raises:
        GraftError: BAD_DATA or INVALID_SPEC, as read_data() would.
    """
    sets = open_sets(spec, SetOpener((LocalSource(),), Path()), here=True)
    reader = _Reader(spec, objective, lambda line: None)
    for one in sets.training:
        if not sum(1 for _ in reader.rows(one)):
            raise _nothing_left(one.name, "trained on", reader.cleaning)
    reader.evaluation(sets.evaluation)
    _regression(spec, sets, lambda line: None)


def _regression(spec: DatasetSpec, sets: OpenSets, log: Log) -> list[Example]:
    """The rows that show what is forgotten: whatever is learned, these are texts and answers."""
    return _Reader(spec, OBJECTIVES["sft"].info, log, "Regression").evaluation(sets.regression)


def _result(
    sets: OpenSets,
    training: list[Example],
    held_out: list[Example],
    reader: _Reader,
    stream: Callable[[], Iterator[Example]] | None,
    regression: list[Example],
) -> Data:
    return Data(
        training=training,
        held_out=held_out,
        format=sets.format,
        digest=sets.digest(),
        origins=sets.origins,
        cleaning=reader.cleaning,
        stream=stream,
        regression=regression,
    )


class _Reader:
    """Reads sets row by row, and leaves out what the declared steps leave out."""

    def __init__(
        self, spec: DatasetSpec, objective: ObjectiveInfo, log: Log, held_out: str = "Evaluation"
    ) -> None:
        self._held_out = held_out
        self._cleaning_spec = spec.cleaning
        self._objective = objective
        self._log = log
        self.cleaning = CleaningReport()
        self._seen = Dedupe()
        if spec.cleaning.dedupe:
            self.cleaning.declare("dedupe")

    def rows(self, one: OpenSet) -> Iterator[Example]:
        """The rows of a training set; "the same" is meant across all sets."""
        return self._rows(one, self.cleaning, self._seen)

    def passes(self, one: OpenSet, held_out: set[bytes]) -> Callable[[], Iterator[Example]]:
        """Begins passes of a stream over a set, without the rows of these keys; the first one is reported."""
        reports = [self.cleaning]
        if held_out:
            self.cleaning.declare("drop_eval_overlap")

        def begin() -> Iterator[Example]:
            report = reports.pop() if reports else CleaningReport()
            empty = True
            for example in self._rows(one, report, Dedupe(), quiet=report is not self.cleaning):
                if held_out and content_key(example.content) in held_out:
                    report.remove("drop_eval_overlap", example.place)
                    continue
                empty = False
                yield example
            if empty:
                raise _nothing_left(one.name, "trained on", report)

        return begin

    def evaluation(self, sets: Sequence[OpenSet]) -> list[Example]:
        """The rows of the evaluation's sets, none of them twice where duplicates are left out."""
        report, seen = CleaningReport(), Dedupe()
        rows = [example for one in sets for example in self._rows(one, report, seen)]
        if sets and not rows:
            names = ", ".join(one.name for one in sets)
            raise _nothing_left(names, "evaluated with", report)
        for line in report.lines():
            self._log(f"{self._held_out}: {line}")
        return rows

    def without(self, parts: list[list[Example]], held_out: list[Example]) -> list[list[Example]]:
        """The training rows that are not among the evaluation's."""
        self.cleaning.declare("drop_eval_overlap")
        keys = content_keys(held_out)
        kept: list[list[Example]] = []
        for rows in parts:
            kept.append([])
            for example in rows:
                if content_key(example.content) in keys:
                    self.cleaning.remove("drop_eval_overlap", example.place)
                else:
                    kept[-1].append(example)
        return kept

    def _rows(
        self, one: OpenSet, report: CleaningReport, seen: Dedupe, *, quiet: bool = False
    ) -> Iterator[Example]:
        count = 0
        for example in one.reader.examples(report):
            if not isinstance(example.content, self._objective.contents):
                raise self._other_kind(one, example)
            count += 1
            if self._cleaning_spec.dedupe and not seen.is_new(example):
                report.remove("dedupe", example.place)
            else:
                yield example
        if quiet:
            return
        self._log(f"Read {count} rows of {one.name} ({one.reader.format}).")
        for note in one.reader.notes():
            self._log(note)

    def _other_kind(self, one: OpenSet, example: Example) -> GraftError:
        needs = f"{self._objective.title} needs {self._objective.needs}"
        return bad_row(
            example.place,
            f"it is {one.reader.format} data, and {needs}",
            "Use data of that kind, or another objective.",
        )


def _stream(
    sets: OpenSets, spec: DatasetSpec, reader: _Reader, held_out: list[Example]
) -> Callable[[], Iterator[Example]]:
    keys = content_keys(held_out) if spec.cleaning.drop_eval_overlap else set()
    weights = [source.weight for source in spec.sources]
    return lambda: interleave([reader.passes(one, keys) for one in sets.training], weights)


def hold_out(
    parts: list[list[Example]], eval_fraction: float, seed: int
) -> tuple[list[list[Example]], list[Example]]:
    """Training rows of each set, and held-out rows of all; the same seed holds out the same ones.

    Raises:
        GraftError: BAD_DATA, when one of the two would be empty.
    """
    total = sum(map(len, parts))
    held_out = round(total * eval_fraction)
    if not 0 < held_out < total:
        raise GraftError(
            Reason.BAD_DATA,
            f"eval_fraction {eval_fraction:g} of {total} rows holds out {held_out}",
            next_step="Use more rows, or leave dataset.eval_fraction out.",
        )
    chosen = set(random.Random(seed).sample(range(total), held_out))
    bounds = pairwise(accumulate(map(len, parts), initial=0))
    training = [
        [row for index, row in enumerate(rows, begin) if index not in chosen]
        for rows, (begin, _) in zip(parts, bounds, strict=True)
    ]
    every = (row for rows in parts for row in rows)
    return training, [row for index, row in enumerate(every) if index in chosen]


def _nothing_left(name: str, purpose: str, cleaning: CleaningReport) -> GraftError:
    steps = [f"{step} left out {one.rows}" for step, one in cleaning.steps.items() if one.rows]
    why = f" ({', '.join(steps)})" if steps else ""
    return GraftError(
        Reason.BAD_DATA,
        f"No row of {name} is left that could be {purpose}{why}",
        next_step="Use other rows for it, or fewer of the steps in dataset.cleaning.",
        file=name,
    )
