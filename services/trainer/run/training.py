"""Trains: examples -> tokens -> method -> objective -> loop -> a result on disk."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from graft.digests import digest_bytes
from graft.registry.v1.registry_service_pb2 import CommitVersionRequest, Lineage
from transformers import set_seed

from services.trainer.formats import Example, Examples
from services.trainer.run.bases import BaseFolder
from services.trainer.run.batches import PackedRows, PaddedRows
from services.trainer.run.checkpoints import CheckpointStore
from services.trainer.run.data import split
from services.trainer.run.exits import PreemptedError
from services.trainer.run.methods.base import Method
from services.trainer.run.methods.lora import Lora
from services.trainer.run.models import load_model, load_tokenizer, longest_input_tokens
from services.trainer.run.objectives.sft import SupervisedTrainer
from services.trainer.run.progress import Progress
from services.trainer.run.reporters import Reporter
from services.trainer.run.result import Result, library_versions, store_result
from services.trainer.run.settings import WorkerSettings
from services.trainer.run.stop import StopSignal
from services.trainer.run.tokens import ExampleTokenizer, TokenRow, end_token_ids
from services.trainer.spec import JobSpec


class Training:
    """One run of the training, from its beginning or from its last good checkpoint.

    Args:
        spec: the job.
        spec_json: the spec as it was given; checkpoints of another are not used.
        settings: where the files go.
        reporter: gets what happens.
        stop: asked at each step's end.
    """

    def __init__(
        self,
        spec: JobSpec,
        spec_json: str,
        settings: WorkerSettings,
        reporter: Reporter,
        stop: StopSignal,
    ) -> None:
        self._spec = spec
        self._spec_json = spec_json
        self._settings = settings
        self._reporter = reporter
        self._stop = stop
        if spec.resources.cpu_threads:
            torch.set_num_threads(spec.resources.cpu_threads)

    def run(self, base: BaseFolder, examples: Examples, adapter: str) -> Result:
        """Trains and stores the result for the adapter of that resource name.

        Raises:
            GraftError: what is wrong with spec, base or data, or the training has diverged.
            PreemptedError: it was told to stop; a checkpoint holds what was done.
        """
        spec = self._spec
        training, held_out = split(examples.rows, spec.dataset.eval_fraction, spec.seed)
        tokenizer = load_tokenizer(base.folder)
        set_seed(spec.seed)
        model = load_model(base.folder, spec.base)
        max_tokens = self._max_tokens(model)
        ends = end_token_ids(tokenizer, model.generation_config)
        reader = ExampleTokenizer(tokenizer, max_tokens, ends)
        rows = self._tokenize(reader, training, max_tokens)
        eval_rows = self._tokenize(reader, held_out, max_tokens) if held_out else []
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        method = Lora(spec.method, spec.base.name, spec.hyperparameters.gradient_checkpointing)
        progress = Progress(self._reporter, self._stop)
        store = self._checkpoints(examples, base)
        trainer = SupervisedTrainer(
            method.apply(model),
            tokenizer,
            spec,
            self._batches(rows, pad_id, max_tokens),
            PaddedRows(eval_rows, pad_id) if eval_rows else None,
            method,
            store,
            progress,
        )
        self._fit(trainer, store)
        lineage = self._lineage(examples, len(rows), progress)
        return self._save(method, trainer.model, self._commit_request(base, adapter, lineage))

    def _batches(
        self, rows: list[TokenRow], pad_id: int, max_tokens: int
    ) -> PaddedRows | PackedRows:
        if self._spec.hyperparameters.packing:
            return PackedRows(rows, pad_id, max_tokens)
        return PaddedRows(rows, pad_id)

    def _commit_request(
        self, base: BaseFolder, adapter: str, lineage: Lineage
    ) -> CommitVersionRequest:
        return CommitVersionRequest(
            parent=adapter,
            base_fingerprint=base.record.fingerprint.digest,
            lineage=lineage,
            request_id=f"{self._settings.job}/commit",
        )

    def _max_tokens(self, model: Any) -> int:
        wanted = self._spec.hyperparameters.max_length_tokens
        longest = longest_input_tokens(model, wanted)
        if longest < wanted:
            self._reporter.log(f"The base reads at most {longest} tokens, so rows are cut there.")
        return longest

    def _tokenize(
        self, reader: ExampleTokenizer, examples: list[Example], max_tokens: int
    ) -> list[TokenRow]:
        rows, report = reader.tokenize(examples)
        for line in report.lines(max_tokens):
            self._reporter.log(line)
        return rows

    def _checkpoints(self, examples: Examples, base: BaseFolder) -> CheckpointStore:
        belongs_to = (self._spec_json, examples.digest, base.record.fingerprint.digest)
        return CheckpointStore(
            self._settings.checkpoints_dir,
            self._spec.checkpointing.keep,
            digest_bytes("\n".join(belongs_to).encode()),
            self._reporter.log,
        )

    def _fit(self, trainer: SupervisedTrainer, store: CheckpointStore) -> None:
        checkpoint = store.last_good()
        if checkpoint:
            self._reporter.log(f"Going on from the checkpoint of step {checkpoint.step}.")
        with self._stop.checked_by_stage():
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        if trainer.state.global_step < trainer.state.max_steps:
            raise PreemptedError(f"Stopped after step {trainer.state.global_step}")

    def _lineage(self, examples: Examples, rows: int, progress: Progress) -> Lineage:
        return Lineage(
            job=self._settings.job,
            attempt=self._settings.attempt,
            spec_json=self._spec_json,
            data_digest=examples.digest,
            data_rows=rows,
            seed=self._spec.seed,
            library_versions=library_versions(self._spec.base.quantization != "none"),
            metrics=progress.final_figures(),
        )

    def _save(self, method: Method, model: Any, request: CommitVersionRequest) -> Result:
        partial = self._settings.work_dir / "result.partial"
        shutil.rmtree(partial, ignore_errors=True)
        method.save(model, partial)
        return store_result(self._settings.result_dir, partial, request)
