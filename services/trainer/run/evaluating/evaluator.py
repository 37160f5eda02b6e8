"""The evaluations of one job: before the training, between its steps, and of the result.

What is measured depends on the spec; a job that asks for nothing gets the held-out loss of its trainer alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from services.trainer.formats import Example
from services.trainer.objectives.base import Reading
from services.trainer.run.data import Data
from services.trainer.run.evaluating.answers import AnswerWriter, Question, QuestionReader
from services.trainer.run.evaluating.base import Evaluations, Figures, Measurable
from services.trainer.run.evaluating.best import BestSoFar
from services.trainer.run.evaluating.measuring import measure_rows, perplexity
from services.trainer.run.evaluating.report import describe_evaluations
from services.trainer.run.evaluating.scores import score_answers
from services.trainer.run.evaluating.undisturbed import undisturbed
from services.trainer.run.rows import pad_token_id
from services.trainer.run.team import Team
from services.trainer.spec.evaluation import Evaluation, figures_of
from services.trainer.spec.figures import OF_ANSWERS, OF_TOKENS, PREFIX, REGRESSION, worse_by
from services.trainer.tokens import ExampleTokenizer, TokenReport, TokenRow
from services.trainer.tokens.examples import nothing_to_learn

BEFORE = "before_"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A set of rows in the forms in which it is looked at: as tokens, and as questions."""

    rows: Sequence[TokenRow] = ()
    questions: Sequence[Question] = ()


@dataclass(slots=True)
class Record:
    """What evaluations have found: figures by name without prefix, answers in the questions' order.

    Attributes:
        before, after: of the untrained model, and of the result.
        answers_before, answers_after: to the held-out questions.
        history: the figures of each evaluation while training, by its step.
    """

    before: Figures = field(default_factory=dict)
    after: Figures = field(default_factory=dict)
    answers_before: list[str] = field(default_factory=list)
    answers_after: list[str] = field(default_factory=list)
    history: dict[int, Figures] = field(default_factory=dict)


class Evaluator(Evaluations):
    """Measures one job's model.

    Args:
        evaluation: what the spec asks for.
        figures: names of what every evaluation gives.
        reading: how rows are read.
        held_out, regression: the two sets, as far as they are needed.
        team: the processes that train together.
        check: called now and then before the training, when nothing is lost; may raise. Between steps an evaluation is
            finished, so that the checkpoint after it is written.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        figures: Sequence[str],
        reading: Reading,
        held_out: HeldOut,
        regression: HeldOut,
        team: Team,
        check: Callable[[], None],
    ) -> None:
        self.evaluation = evaluation
        self.record = Record()
        self.best = BestSoFar(evaluation)
        self._figures = figures
        self._log = reading.log
        self._batch_size = reading.spec.hyperparameters.micro_batch_size
        self._pad_id = pad_token_id(reading)
        self.held_out, self.regression = held_out, regression
        self._team = team
        self._check_stop = check
        self._begun = False
        self._writer = AnswerWriter(
            reading.tokenizer, reading.end_ids, evaluation.answers, reading.log
        )

    # -- while training

    def measure(self, model: Any, loss: float, further: Mapping[str, float]) -> Figures:
        names = [*self._figures]
        if not self.evaluation.generates_while_training:
            names = [name for name in names if name not in OF_ANSWERS]
        return self._measure(model, loss, further, names)[0]

    def judge(self, step: int, figures: Figures) -> bool:
        self.record.history[step] = dict(figures)
        if not self.evaluation.best_metric:
            return False
        stop = self.best.judge(step, figures.get(self.best.figure, math.nan))
        if stop:
            self.stopped_at = step
            self._log(
                f"Stopping early after step {step}: {self.best.without_gain} evaluations in a row brought "
                f"no better {self.best.figure} than {self.best.described()}."
            )
        return stop

    # -- before and after

    def begin(self, trainer: Measurable) -> None:
        if self.evaluation.measures and not self.record.before:
            with undisturbed():
                self.record.before, self.record.answers_before = self._everything(trainer)
            self._say_before()
        self._begun = True

    def _say_before(self) -> None:
        if self.record.before:
            self._log(f"Before the training: {_in_words(self.record.before)}.")

    def end(self, trainer: Measurable) -> None:
        if not self.evaluation.measures:
            return
        with undisturbed():
            self.record.after, self.record.answers_after = self._everything(trainer)
        if self.record.after:
            self._log(f"After the training: {_in_words(self.record.after)}.")
        self._compare()

    def _check(self) -> None:
        # One of several that stopped alone would leave the others waiting for it.
        if not self._begun and self._team.alone:
            self._check_stop()

    def _everything(self, trainer: Measurable) -> tuple[Figures, list[str]]:
        figures, answers = Figures(), list[str]()
        if self._figures:
            loss, further = trainer.held_out()
            figures, answers = self._measure(trainer.model, loss, further, self._figures)
        metric = self.evaluation.regression.metric
        if self.regression.rows or self.regression.questions:
            found = self._of_set(trainer.model, self.regression, [metric])[0]
            figures |= {f"{REGRESSION}_{metric}": value for value in found.values()}
        return figures, answers

    def _measure(
        self, model: Any, loss: float, further: Mapping[str, float], names: Sequence[str]
    ) -> tuple[Figures, list[str]]:
        figures = {"loss": loss, **further}
        if "perplexity" in names:
            figures["perplexity"] = perplexity(loss)
        found, answers = self._of_set(
            model, self.held_out, [name for name in names if name not in figures]
        )
        return figures | found, answers

    def _of_set(
        self, model: Any, held_out: HeldOut, names: Sequence[str]
    ) -> tuple[Figures, list[str]]:
        """Figures of these names that a set gives, and the answers to its questions."""
        figures, answers = Figures(), list[str]()
        if held_out.rows and {"loss", *OF_TOKENS} & set(names):
            found = self._share(lambda rows: _row_sums(self._rows(model, rows)), held_out.rows)
            nats, correct, learned = (sum(column) for column in zip(*found, strict=True))
            every = {"loss": nats / learned, "token_accuracy": correct / learned}
            figures |= {name: value for name, value in every.items() if name in names}
        if held_out.questions and set(OF_ANSWERS) & set(names):
            answers = self._answer(model, held_out.questions)
            if answers:
                right = [one.reference for one in held_out.questions]
                figures |= score_answers(names, answers, right)
        return figures, answers

    def _rows(self, model: Any, rows: Sequence[TokenRow]) -> Any:
        return measure_rows(model, rows, self._pad_id, self._batch_size, self._check)

    def _answer(self, model: Any, questions: Sequence[Question]) -> list[str]:
        """The answers; none where memory does not even last for one: that costs the figure, not the training."""
        try:
            mine = self._writer.write(model, self._part(questions), self._check)
        except torch.OutOfMemoryError:
            mine = None
        shares = self._team.ask_all(mine)
        if any(share is None for share in shares):
            self._log(
                "Memory ran out while answers were generated one at a time, so figures that look at answers "
                "are missing. Lower evaluation.answers.max_new_tokens."
            )
            return []
        answers = [""] * len(questions)
        for rank, share in enumerate(shares):
            answers[rank :: self._team.size] = share
        return answers

    def _part(self, every: Sequence[Any]) -> Sequence[Any]:
        return every[self._team.rank :: self._team.size]

    def _share(
        self, work: Callable[[Sequence[TokenRow]], list[float]], rows: Sequence[TokenRow]
    ) -> list[list[float]]:
        """What every process finds in its part of the rows."""
        part = self._part(rows)
        return self._team.ask_all(work(part) if part else [0.0, 0.0, 0.0])

    def _compare(self) -> None:
        fall, limit = self.fall, self.evaluation.regression.limit
        if fall is None or limit is None or fall <= limit:
            return
        metric = self.evaluation.regression.metric
        key = f"{REGRESSION}_{metric}"
        self._log(
            f"Something is forgotten: {metric} on the regression set went from {self.record.before[key]:.6g} to "
            f"{self.record.after[key]:.6g}, worse by {fall:.6g}, and {limit:g} is the limit."
        )

    # -- what is kept

    @property
    def fall(self) -> float | None:
        """How much worse the regression set's figure is than before; None where it was not measured."""
        metric = self.evaluation.regression.metric
        key = f"{REGRESSION}_{metric}"
        if key not in self.record.before or key not in self.record.after:
            return None
        return worse_by(metric, self.record.before[key], self.record.after[key])

    def figures(self) -> Figures:
        record = self.record
        figures = {_called(name): value for name, value in record.after.items()}
        figures |= {f"{BEFORE}{_called(name)}": value for name, value in record.before.items()}
        if self.fall is not None:
            figures[REGRESSION] = self.fall
        if self.best.step is not None:
            figures["best_step"] = float(self.best.step)
        return {name: value for name, value in figures.items() if math.isfinite(value)}

    def report(self) -> str:
        return describe_evaluations(self)

    def state(self) -> dict[str, Any]:
        record = self.record
        return {
            "before": record.before,
            "answers_before": record.answers_before,
            "history": [[step, found] for step, found in record.history.items()],
            "best": self.best.state(),
            "stopped_at": self.stopped_at,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.record.before = dict(state["before"])
        self.record.answers_before = list(state["answers_before"])
        self.record.history = {int(step): dict(found) for step, found in state["history"]}
        self.best.restore(state["best"])
        self.stopped_at = state["stopped_at"]


def make_evaluator(
    reading: Reading, data: Data, longest_tokens: int, team: Team, check: Callable[[], None]
) -> Evaluator:
    """The evaluator of a job.

    Args:
        reading: how rows are read.
        data: the job's.
        longest_tokens: what the model reads, prompt and answer together.
        team, check: as of Evaluator.

    Raises:
        GraftError: BAD_DATA or INVALID_SPEC, when a figure cannot be had of the rows.
    """
    spec = reading.spec
    evaluation = spec.evaluation
    names = figures_of(spec) if data.held_out and evaluation.measures else ()

    def prepared(examples: Sequence[Example], what: str, wanted: Sequence[str]) -> HeldOut:
        rows: Sequence[TokenRow] = ()
        questions: Sequence[Question] = ()
        if examples and {"loss", *OF_TOKENS} & set(wanted):
            rows = read_rows(examples, what, reading)
        if examples and set(OF_ANSWERS) & set(wanted):
            reader = QuestionReader(
                reading.tokenizer, evaluation.answers, longest_tokens, reading.log
            )
            questions = reader.read(examples, what)
        return HeldOut(rows, questions)

    return Evaluator(
        evaluation,
        names,
        reading,
        prepared(data.held_out, "held-out", evaluation.metrics),
        prepared(data.regression, REGRESSION, [evaluation.regression.metric]),
        team,
        check,
    )


def read_rows(examples: Sequence[Example], what: str, reading: Reading) -> list[TokenRow]:
    """Rows of which the answers, or all of a text, are predicted.

    Raises:
        GraftError: BAD_DATA.
    """
    tokenizer = ExampleTokenizer(
        reading.tokenizer,
        reading.max_tokens,
        reading.end_ids,
        loss_on=reading.spec.dataset.loss_on,
    )
    report = TokenReport()
    rows = list(tokenizer.iterate(examples, report))
    if not rows:
        raise nothing_to_learn(report, what)
    return rows


def _row_sums(measured: Any) -> list[float]:
    learned = measured.learned_tokens
    return [measured.loss * learned, measured.token_accuracy * learned, learned]


def _called(name: str) -> str:
    """What a figure is called beside those of the training."""
    return name if name.startswith(REGRESSION) else f"{PREFIX}{name}"


def _in_words(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
