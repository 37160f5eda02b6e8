"""What a job measures on held-out rows, and what follows from it: early stopping, the best checkpoint, the alias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graft.conditions import parse_condition
from graft.errors import GraftError
from graft.trainer.v1 import evaluation_pb2 as pb

from services.trainer.fields import integer, invalid_field, number, one_of
from services.trainer.formats import Completion, Conversation, PlainText, Prompt
from services.trainer.objectives import OBJECTIVES
from services.trainer.spec.figures import (
    ALWAYS,
    OF_ANSWERS,
    OF_OBJECTIVES,
    OF_TOKENS,
    PREFIX,
    REGRESSION,
    figure_names,
    higher_is_better,
)

if TYPE_CHECKING:
    from services.trainer.spec.job import JobSpec

_PATH = "evaluation"
_MOST_SAMPLES = 50
# Objectives whose loss is a cross-entropy per token, of which exp() is the perplexity.
_WITH_PERPLEXITY = ("sft", "cpt")


@dataclass(frozen=True, slots=True)
class Answers:
    """How answers are generated; lengths in tokens."""

    max_rows: int = 100
    max_new_tokens: int = 128
    batch_size: int = 8
    samples: int = 5


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """So many evaluations in a row that improve by no more than this end the training."""

    patience: int
    min_improvement: float


@dataclass(frozen=True, slots=True)
class Regression:
    """The figure by which the regression set is compared, and the largest good fall; None for any."""

    metric: str = "loss"
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is measured, and what follows.

    Attributes:
        every_steps: steps between two evaluations; 0 for each epoch's end.
        metrics: figures beside loss and perplexity.
        best_metric: the figure by which checkpoints and early stopping judge; "" where nothing was said, which is "loss".
        gate: conditions of output.alias, with the names of the version's figures.
        measures: whether the spec asks for more than a held-out loss now and then: only then there are
            figures of before the training, and a report.
    """

    every_steps: int = 0
    metrics: tuple[str, ...] = ()
    answers: Answers = field(default_factory=Answers)
    early_stopping: EarlyStopping | None = None
    best_metric: str = ""
    regression: Regression = field(default_factory=Regression)
    gate: tuple[str, ...] = ()
    measures: bool = False

    @property
    def best_is_highest(self) -> bool:
        """Whether more of best_metric, or else of the loss, is better."""
        return higher_is_better(self.best_metric or "loss")

    @property
    def alias_conditions(self) -> tuple[str, ...]:
        """What must hold before the alias moves: the gate's conditions, and the limit of what may be forgotten."""
        limit = self.regression.limit
        own = () if limit is None else (f"{REGRESSION} <= {limit!r}",)
        return (*self.gate, *own)

    @property
    def generates_while_training(self) -> bool:
        """Whether every evaluation needs answers: where they choose the best checkpoint."""
        return self.best_metric in OF_ANSWERS


def parse_evaluation(given: pb.Evaluation, asked: bool) -> Evaluation:
    """Checks the evaluation by itself; check_evaluation() then holds it against the rest of the spec.

    Args:
        asked: whether the spec says anything of it.

    Raises:
        GraftError: INVALID_SPEC, naming the field.
    """
    stopping = None
    if given.HasField("early_stopping"):
        path = f"{_PATH}.early_stopping"
        stopping = EarlyStopping(
            patience=integer(f"{path}.patience", given.early_stopping.patience, 3, 1, 1_000_000),
            min_improvement=number(
                f"{path}.min_improvement", given.early_stopping.min_improvement, 0.0, 0.0, 1e9
            ),
        )
    return Evaluation(
        every_steps=integer(f"{_PATH}.every_steps", given.every_steps, 0, 0, 1_000_000_000),
        metrics=figure_names(f"{_PATH}.metrics", given.metrics),
        answers=parse_answers(f"{_PATH}.answers", given.answers),
        early_stopping=stopping,
        best_metric=(given.best_metric or ("loss" if stopping else "")).removeprefix(PREFIX),
        regression=_regression(given.regression),
        gate=tuple(
            condition_text(f"{_PATH}.gate.conditions[{index}]", text)
            for index, text in enumerate(given.gate.conditions)
        ),
        measures=asked,
    )


def parse_answers(path: str, given: pb.Answers) -> Answers:
    """How answers are generated. Raises GraftError INVALID_SPEC."""
    usual = Answers()
    samples = given.samples if given.HasField("samples") else usual.samples
    return Answers(
        max_rows=integer(f"{path}.max_rows", given.max_rows, usual.max_rows, 1, 1_000_000),
        max_new_tokens=integer(
            f"{path}.max_new_tokens", given.max_new_tokens, usual.max_new_tokens, 1, 2**20
        ),
        batch_size=integer(f"{path}.batch_size", given.batch_size, usual.batch_size, 1, 4096),
        samples=integer(f"{path}.samples", samples, 0, 0, _MOST_SAMPLES),
    )


def _regression(given: pb.Regression) -> Regression:
    path, allowed = f"{_PATH}.regression", ("loss", *OF_TOKENS, *OF_ANSWERS)
    if given.metric and given.metric not in allowed:
        raise invalid_field(f"{path}.metric", given.metric, one_of(allowed))
    limit = given.limit if given.HasField("limit") else None
    if limit is not None and not math.isfinite(limit):
        raise invalid_field(f"{path}.limit", limit, "a number")
    return Regression(given.metric or "loss", limit)


def condition_text(path: str, text: str) -> str:
    """A condition with the name that its figure has in a version's lineage.

    Raises:
        GraftError: INVALID_SPEC.
    """
    try:
        condition = parse_condition(text)
    except GraftError as error:
        raise invalid_field(path, text, "a condition", error.next_step) from None
    known = {*ALWAYS, *OF_TOKENS, *OF_ANSWERS}.union(*OF_OBJECTIVES.values())
    return f"{PREFIX}{text.strip()}" if condition.metric.metric in known else text.strip()


def check_evaluation(spec: JobSpec) -> None:
    """Checks that what is measured can be, with the job's objective and data.

    Raises:
        GraftError: INVALID_SPEC, naming the field, the reason and what works.
    """
    evaluation, dataset = spec.evaluation, spec.dataset
    held_out = bool(dataset.eval_sources or dataset.eval_fraction)
    _check_rows(evaluation, held_out, bool(dataset.regression_sources))
    _check_objective(spec)
    _check_best(spec)
    if evaluation.gate and not spec.output.alias:
        raise invalid_field(
            f"{_PATH}.gate",
            ", ".join(evaluation.gate),
            "left out without output.alias, which it guards",
            "Name the alias that shall move in output.alias, or leave the gate out.",
        )
    for index, text in enumerate(evaluation.gate):
        _check_condition(f"{_PATH}.gate.conditions[{index}]", text, spec, held_out)


def _check_rows(evaluation: Evaluation, held_out: bool, regression: bool) -> None:
    needs_rows = {
        "every_steps": evaluation.every_steps,
        "metrics": list(evaluation.metrics),
        "early_stopping": evaluation.early_stopping,
        "best_metric": evaluation.best_metric,
    }
    for name, value in needs_rows.items():
        if value and not held_out:
            shown = "set" if name == "early_stopping" else value
            raise invalid_field(
                f"{_PATH}.{name}",
                shown,
                "left out, because no rows are held out",
                "Set dataset.eval_fraction, for example to 0.05, or dataset.eval_sources.",
            )
    if evaluation.regression != Regression() and not regression:
        raise invalid_field(
            f"{_PATH}.regression",
            evaluation.regression.metric,
            "left out without dataset.regression_sources",
            "Name rows of what the model shall still do in dataset.regression_sources.",
        )


def _check_objective(spec: JobSpec) -> None:
    info, evaluation = OBJECTIVES[spec.objective.kind].info, spec.evaluation
    answers = {Conversation, Completion, Prompt} & set(info.contents)
    rows = set(info.contents) <= {Conversation, Completion, PlainText}
    for index, name in enumerate(evaluation.metrics):
        if (name in OF_ANSWERS and not answers) or (name in OF_TOKENS and not rows):
            figures = one_of(("loss", *OF_OBJECTIVES.get(info.kind, ())))
            raise invalid_field(
                f"{_PATH}.metrics[{index}]",
                name,
                f"left out with {info.title}, whose held-out rows have no such answers",
                f"Use {figures}, which it reports, or objective sft.",
            )
    if spec.dataset.regression_sources and info.task_type != "CAUSAL_LM":
        raise invalid_field(
            "dataset.regression_sources",
            f"{len(spec.dataset.regression_sources)} sets",
            f"left out with {info.title}, whose model writes no text",
            "Leave it out.",
        )


def figures_of(spec: JobSpec) -> tuple[str, ...]:
    """Names of the figures that every evaluation of a job gives, without their prefix."""
    kind = spec.objective.kind
    perplexity = ("perplexity",) if kind in _WITH_PERPLEXITY else ()
    return ("loss", *perplexity, *OF_OBJECTIVES.get(kind, ()), *spec.evaluation.metrics)


def _check_best(spec: JobSpec) -> None:
    best, figures = spec.evaluation.best_metric, figures_of(spec)
    if best and best not in figures:
        where = f'Add "{best}" to evaluation.metrics, or use' if best in OF_ANSWERS else "Use"
        raise invalid_field(
            f"{_PATH}.best_metric", best, one_of(figures), f"{where} {one_of(figures)}."
        )


def _check_condition(path: str, text: str, spec: JobSpec, held_out: bool) -> None:
    name = parse_condition(text).metric.metric
    figures: Sequence[str] = [f"{PREFIX}{one}" for one in figures_of(spec)] if held_out else []
    measurable = {*OF_TOKENS, *OF_ANSWERS, *ALWAYS}
    if name.removeprefix(PREFIX) in measurable and name.startswith(PREFIX) and name not in figures:
        short = name.removeprefix(PREFIX)
        next_step = f'Add "{short}" to evaluation.metrics.'
        if not held_out:
            next_step = "Set dataset.eval_fraction or dataset.eval_sources."
        raise invalid_field(path, text, "about a figure that the job measures", next_step)
    if name == REGRESSION and not spec.dataset.regression_sources:
        raise invalid_field(
            path,
            text,
            "about a figure that the job measures",
            "Name rows of what the model shall still do in dataset.regression_sources.",
        )


__all__ = [
    "Answers",
    "EarlyStopping",
    "Evaluation",
    "Regression",
    "check_evaluation",
    "condition_text",
    "figures_of",
    "parse_answers",
    "parse_evaluation",
]
