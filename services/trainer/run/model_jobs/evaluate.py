"""Evaluates a version on held-out rows: its loss and perplexity become labels of the version.

Labels and not metrics: a version never changes, and what is measured of it later is said about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from graft.errors import GraftError, Reason
from graft.names import check_id
from graft.trainer.v1 import stages_pb2 as stages
from graft.trainer.v1.model_jobs_pb2 import EvaluationSpec
from graft.trainer.v1.worker_service_pb2 import Started

from services.trainer.fields import integer, number
from services.trainer.objectives import OBJECTIVES
from services.trainer.run.background import BackgroundLoop
from services.trainer.run.data import Data, read_data, set_opener
from services.trainer.run.model_jobs.pulled import Pulled, Puller, load_pulled
from services.trainer.run.reporters import Reporter
from services.trainer.run.settings import WorkerSettings
from services.trainer.run.stop import StopSignal
from services.trainer.spec.dataset import parse_dataset
from services.trainer.tokens import (
    IGNORED,
    ExampleTokenizer,
    TokenReport,
    end_token_ids,
    load_tokenizer,
)
from services.trainer.tokens.examples import nothing_to_learn

_USUAL_NAME = "held-out"
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found: mean loss per learned token in nats, and of how much."""

    loss: float
    learned_tokens: int
    rows: int

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is no number any more."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


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
        measured = self._measure(pulled, data)
        if not math.isfinite(measured.loss):
            raise GraftError(
                Reason.INVALID_SPEC,
                f"The loss of {pulled.version.name} on these rows is no number",
                next_step="Look at base.quantization and the version's own training.",
            )
        log(
            f"{pulled.version.name}: loss {measured.loss:.4f}, perplexity {measured.perplexity:.3f} on "
            f"{measured.learned_tokens} tokens of {measured.rows} rows."
        )
        self._reporter.finalizing()
        self._reporter.stage(stages.JOB_STAGE_COMMITTING)
        labels = self._labels(measured, data.digest)
        self._loop.run(self._say(puller, pulled.version.name, labels))
        return pulled.version.name

    def _labels(self, measured: Measured, data_digest: str) -> dict[str, str]:
        found = {
            "loss": f"{measured.loss:.6f}",
            "perplexity": f"{measured.perplexity:.6g}",
            "rows": str(measured.rows),
            "data": data_digest,
        }
        if self._max_loss:
            found["passed"] = str(measured.loss <= self._max_loss).lower()
        return {f"eval.{self._name}.{key}": value for key, value in found.items()}

    async def _say(self, puller: Puller, version: str, labels: dict[str, str]) -> None:
        async with puller.client() as client:
            await client.metadata.label(version, labels)

    def _measure(self, pulled: Pulled, data: Data) -> Measured:
        rows, pad_id = self._rows(pulled, data)
        model = load_pulled(pulled)
        import torch
        from torch.nn.functional import cross_entropy

        from services.trainer.run.batches import padded_batch
        from services.trainer.run.trainers.common import without_dropout

        rows.sort(key=len, reverse=True)
        starts = range(0, len(rows), self._batch_size)
        self._reporter.started(Started(total_steps=len(starts)))
        nats, learned = 0.0, 0
        with torch.no_grad(), without_dropout(model):
            for start in starts:
                self._stop.check()
                part = rows[start : start + self._batch_size]
                batch = padded_batch(part, pad_id)
                ids, labels = batch["input_ids"], batch["labels"][:, 1:].to(model.device)
                lengths = torch.tensor([len(row) for row in part])
                mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
                logits = model(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    use_cache=False,
                ).logits
                # Learned embeddings stand before the tokens.
                logits = logits[:, -ids.shape[1] :][:, :-1].float()
                nats += float(
                    cross_entropy(
                        logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="sum"
                    )
                )
                learned += int((labels != IGNORED).sum())
        return Measured(nats / max(learned, 1), learned, len(rows))

    def _rows(self, pulled: Pulled, data: Data) -> tuple[list[Any], int]:
        """Token rows, rendered as the version was trained."""
        tokenizer = load_tokenizer(pulled.base.folder, self._dataset.chat_template)
        template = pulled.folder / _TEMPLATE
        if template.is_file() and not self._dataset.chat_template:
            tokenizer.chat_template = template.read_text("utf-8")
        maker = ExampleTokenizer(
            tokenizer,
            self._max_tokens,
            end_token_ids(tokenizer, pulled.base.folder),
            loss_on=self._dataset.loss_on,
        )
        report = TokenReport()
        rows = list(maker.iterate(data.training, report))
        if not rows:
            raise nothing_to_learn(report, "evaluation")
        for line in report.lines(self._max_tokens):
            self._reporter.log(line)
        pad_id = tokenizer.pad_token_id
        return rows, 0 if pad_id is None else int(pad_id)
