"""Evaluates a version on held-out rows: its loss, perplexity and further figures become labels of the version.

Labels and not metrics: a version never changes, and what is measured of it later is said about it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graft.conditions import parse_condition
from graft.errors import GraftError, Reason
from graft.names import check_id
from graft.registry.v1 import registry_service_pb2 as pb
from graft.trainer.v1 import stages_pb2 as stages
from graft.trainer.v1.model_jobs_pb2 import EvaluationSpec
from graft.trainer.v1.worker_service_pb2 import Started

from services.trainer.fields import integer, invalid_field, number, one_of
from services.trainer.objectives import OBJECTIVES
from services.trainer.run.background import BackgroundLoop
from services.trainer.run.data import Data, read_data, set_opener
from services.trainer.run.model_jobs.pulled import Pulled, Puller, load_pulled
from services.trainer.run.reporters import Reporter
from services.trainer.run.settings import WorkerSettings
from services.trainer.run.stop import StopSignal
from services.trainer.spec.dataset import parse_dataset
from services.trainer.spec.evaluation import condition_text, parse_answers
from services.trainer.spec.figures import ALWAYS, PREFIX, figure_names, of_answers
from services.trainer.tokens import (
    ExampleTokenizer,
    TokenReport,
    TokenRow,
    end_token_ids,
    load_tokenizer,
)
from services.trainer.tokens.examples import nothing_to_learn

_USUAL_NAME = "held-out"
_TEMPLATE = "chat_template.jinja"
_LONGEST_SHOWN = 500
_COMPARISONS: dict[int, tuple[str, Callable[[float, float], bool]]] = {
    pb.COMPARISON_LESS: ("<", operator.lt),
    pb.COMPARISON_AT_MOST: ("<=", operator.le),
    pb.COMPARISON_AT_LEAST: (">=", operator.ge),
    pb.COMPARISON_MORE: (">", operator.gt),
}


class EvaluationWorker:
    """Does one attempt of an evaluation; doing it again says the same again.

    Args:
        spec: the job.
        settings: what the launcher said.
        loop: for everything over the network.
        reporter: gets what happens.
        stop: asked whether to go on.

    Raises:
        GraftError: INVALID_SPEC, INVALID_NAME.
    """

    def __init__(
        self,
        spec: EvaluationSpec,
        settings: WorkerSettings,
        loop: BackgroundLoop,
        reporter: Reporter,
        stop: StopSignal,
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._reporter = reporter
        self._stop = stop
        self._spec = spec
        self._dataset = parse_dataset(spec.dataset)
        if self._dataset.streaming or self._dataset.eval_fraction or self._dataset.eval_sources:
            raise GraftError(
                Reason.INVALID_SPEC,
                "dataset has streaming, eval_fraction or eval_sources, which mean nothing in an evaluation",
                next_step="Name the held-out rows in dataset.path or dataset.sources alone.",
                field="dataset",
            )
        self._name = check_id("evaluation", spec.name or _USUAL_NAME)
        self._batch_size = integer("batch_size", spec.batch_size, 8, 1, 4096)
        self._max_tokens = integer("max_length_tokens", spec.max_length_tokens, 1024, 2, 2**20)
        self._max_loss = number("max_loss", spec.max_loss, 0.0, 0.0, 1e6)
        self._metrics = figure_names("metrics", spec.metrics)
        self._answers = parse_answers("answers", spec.answers)
        self._conditions = [
            _condition(f"conditions[{index}]", text, self._metrics)
            for index, text in enumerate(spec.conditions)
        ]

    def run(self) -> str:
        """Measures, and says it of the version; returns the version's name.

        Raises:
            GraftError: what is wrong with the spec, the version, its base or the data.
        """
        self._settings.work_dir.mkdir(parents=True, exist_ok=True)
        self._reporter.stage(stages.JOB_STAGE_PREPARING)
        puller = Puller(self._settings, self._loop, self._reporter)
        log = self._reporter.log
        opener = set_opener(self._settings, self._loop, log, self._reporter.waiting)
        data = read_data(self._dataset, OBJECTIVES["sft"].info, 0, opener, log)
        pulled = puller.pull(self._spec.version, self._spec.base)
        figures, rows = self._measure(pulled, data)
        if not math.isfinite(figures["loss"]):
            raise GraftError(
                Reason.INVALID_SPEC,
                f"The loss of {pulled.version.name} on these rows is no number",
                next_step="Look at base.quantization and the version's own training.",
            )
        found = ", ".join(
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items()
        )
        log(f"{pulled.version.name}: {found} on {rows} rows.")
        self._reporter.finalizing()
        self._reporter.stage(stages.JOB_STAGE_COMMITTING)
        labels = self._labels(figures, rows, data.digest)
        self._loop.run(self._say(puller, pulled.version.name, labels))
        return pulled.version.name

    def _labels(self, figures: Mapping[str, float], rows: int, data_digest: str) -> dict[str, str]:
        found = {name: f"{value:.6g}" for name, value in figures.items()}
        found |= {"loss": f"{figures['loss']:.6f}", "rows": str(rows), "data": data_digest}
        if self._max_loss or self._conditions:
            found["passed"] = str(self._passes(figures)).lower()
        return {f"eval.{self._name}.{key}": value for key, value in found.items()}

    def _passes(self, figures: Mapping[str, float]) -> bool:
        """Whether all that was asked for holds; says what does not, with both numbers."""
        bounds = [*self._conditions]
        if self._max_loss:
            bounds.append(("loss", pb.COMPARISON_AT_MOST, self._max_loss))
        held = True
        for name, comparison, bound in bounds:
            sign, holds = _COMPARISONS[comparison]
            if not holds(figures.get(name, math.nan), bound):
                held = False
                self._reporter.log(
                    f"{name} {sign} {bound:g} does not hold: it is {figures.get(name, math.nan):.6g}."
                )
        return held

    async def _say(self, puller: Puller, version: str, labels: dict[str, str]) -> None:
        async with puller.client() as client:
            await client.metadata.label(version, labels)

    def _measure(self, pulled: Pulled, data: Data) -> tuple[dict[str, float], int]:
        """The figures, and of how many rows."""
        tokenizer = self._tokenizer(pulled)
        ends = end_token_ids(tokenizer, pulled.base.folder)
        rows = self._rows(tokenizer, ends, data)
        model = load_pulled(pulled)
        from services.trainer.run.evaluating.measuring import measure_rows

        pad_id = tokenizer.pad_token_id
        self._reporter.started(Started(total_steps=-(-len(rows) // self._batch_size)))
        measured = measure_rows(
            model, rows, 0 if pad_id is None else int(pad_id), self._batch_size, self._stop.check
        )
        figures = {"loss": measured.loss, "perplexity": measured.perplexity}
        if "token_accuracy" in self._metrics:
            figures["token_accuracy"] = measured.token_accuracy
        if of_answers(self._metrics):
            figures |= self._answered(model, tokenizer, ends, data)
        return figures, measured.rows

    def _answered(
        self, model: Any, tokenizer: Any, ends: frozenset[int], data: Data
    ) -> dict[str, float]:
        """The figures of generated answers."""
        from services.trainer.run.evaluating.answers import AnswerWriter, QuestionReader
        from services.trainer.run.evaluating.scores import score_answers
        from services.trainer.run.models import longest_input_tokens

        log, settings = self._reporter.log, self._answers
        longest = longest_input_tokens(model, 2**31 - 1)
        questions = QuestionReader(tokenizer, settings, longest, log).read(
            data.training, "held-out"
        )
        answers = AnswerWriter(tokenizer, ends, settings, log).write(
            model, questions, self._stop.check
        )
        for question, answer in list(zip(questions, answers, strict=True))[: settings.samples]:
            log(f"{question.place}: {answer[:_LONGEST_SHOWN]!r}")
        return score_answers(self._metrics, answers, [one.reference for one in questions])

    def _tokenizer(self, pulled: Pulled) -> Any:
        """The base's, with the chat template that the version was trained with."""
        tokenizer = load_tokenizer(pulled.base.folder, self._dataset.chat_template)
        template = pulled.folder / _TEMPLATE
        if template.is_file() and not self._dataset.chat_template:
            tokenizer.chat_template = template.read_text("utf-8")
        return tokenizer

    def _rows(self, tokenizer: Any, ends: frozenset[int], data: Data) -> list[TokenRow]:
        """Token rows, rendered as the version was trained."""
        maker = ExampleTokenizer(tokenizer, self._max_tokens, ends, loss_on=self._dataset.loss_on)
        report = TokenReport()
        rows = list(maker.iterate(data.training, report))
        if not rows:
            raise nothing_to_learn(report, "evaluation")
        for line in report.lines(self._max_tokens):
            self._reporter.log(line)
        return rows


def _condition(
    path: str, text: str, metrics: Sequence[str]
) -> tuple[str, pb.Comparison.ValueType, float]:
    """A figure, a comparison and a number.

    Raises:
        GraftError: INVALID_SPEC.
    """
    condition = parse_condition(condition_text(path, text))
    name = condition.metric.metric.removeprefix(PREFIX)
    if condition.WhichOneof("condition") != "metric" or condition.metric.alias:
        raise invalid_field(
            path,
            text,
            'about a number, such as "rouge_l >= 0.4"; an alias asks for more in its policy',
        )
    if name not in (*ALWAYS, *metrics):
        raise invalid_field(
            path, text, f"about {one_of([*ALWAYS, *metrics])}", f'Add "{name}" to metrics.'
        )
    return name, condition.metric.comparison, condition.metric.value
