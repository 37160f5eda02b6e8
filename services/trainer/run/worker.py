"""One attempt of one job, from the spec to the version; reads top to bottom."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from graft.channel import open_channel
from graft.digests import digest_bytes
from graft.names import adapter_name, alias_name
from graft.registry.v1.registry_service_pb2 import CommitVersionRequest, Lineage, Version
from transformers import set_seed

from services.trainer.formats import Example, Examples
from services.trainer.run.background import BackgroundLoop
from services.trainer.run.bases import (
    BaseFolder,
    load_model,
    load_tokenizer,
    longest_input_tokens,
    open_base,
)
from services.trainer.run.batches import PackedRows, PaddedRows
from services.trainer.run.checkpoints import CheckpointStore
from services.trainer.run.data import read_examples, split
from services.trainer.run.exits import PreemptedError
from services.trainer.run.methods.lora import Lora
from services.trainer.run.objectives.sft import SupervisedTrainer
from services.trainer.run.progress import Progress
from services.trainer.run.publish import Publisher
from services.trainer.run.reporters import Reporter
from services.trainer.run.result import (
    Result,
    describe,
    find_result,
    library_versions,
    new_lineage,
    store_result,
)
from services.trainer.run.settings import WorkerSettings
from services.trainer.run.stop import StopSignal
from services.trainer.run.tokens import ExampleTokenizer, TokenRow, end_token_ids
from services.trainer.spec import JobSpec


class Worker:
    """Does one attempt.

    Args:
        spec: the job.
        spec_json: the spec as it was given, for the lineage.
        settings: what the launcher said.
        loop: for everything over the network.
        reporter: gets what happens.
        stop: asked whether to go on.
    """

    def __init__(
        self,
        spec: JobSpec,
        spec_json: str,
        settings: WorkerSettings,
        loop: BackgroundLoop,
        reporter: Reporter,
        stop: StopSignal,
    ) -> None:
        self._spec = spec
        self._spec_json = spec_json
        self._settings = settings
        self._loop = loop
        self._reporter = reporter
        self._stop = stop
        self._adapter = adapter_name(settings.namespace, spec.output.adapter)

    def run(self) -> str:
        """Trains, or goes on training, and commits; returns the version's name, "" without a registry.

        Raises:
            GraftError: what is wrong with spec, base or data.
            PreemptedError: the attempt was told to stop; a checkpoint holds what was done.
            RegistryRefusedError: the registry does not take the result.
        """
        base = open_base(self._spec.base, self._settings.namespace)
        self._prepare_registry(base)
        result = find_result(self._settings.result_dir, self._spec_json)
        if result is None:
            result = self._train(base)
        self._reporter.finalizing()
        return self._publish(result)

    def _prepare_registry(self, base: BaseFolder) -> None:
        if self._settings.registry_address:

            async def prepare() -> None:
                async with open_channel(self._settings.registry_address) as channel:
                    await self._publisher(channel).prepare(base.record, self._adapter)

            self._loop.run(prepare())

    def _train(self, base: BaseFolder) -> Result:
        spec = self._spec
        examples = read_examples(spec.dataset, self._settings, self._loop, self._reporter.log)
        training, held_out = split(examples.rows, spec.dataset.eval_fraction, spec.seed)
        tokenizer = load_tokenizer(base.folder)
        set_seed(spec.seed)
        model = load_model(base.folder, spec.base)
        max_tokens = self._max_tokens(model)
        reader = ExampleTokenizer(
            tokenizer, max_tokens, end_token_ids(tokenizer, model.generation_config)
        )
        rows = self._tokenize(reader, training, max_tokens)
        eval_rows = self._tokenize(reader, held_out, max_tokens) if held_out else []
        method = Lora(spec.method, spec.base.name, spec.hyperparameters.gradient_checkpointing)
        trainer = self._trainer(method, model, tokenizer, rows, eval_rows, examples, max_tokens)
        self._fit(trainer)
        lineage = self._lineage(examples, len(rows))
        return self._store(method, trainer, base, lineage)

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

    def _trainer(
        self,
        method: Lora,
        model: Any,
        tokenizer: Any,
        rows: list[TokenRow],
        eval_rows: list[TokenRow],
        examples: Examples,
        max_tokens: int,
    ) -> SupervisedTrainer:
        spec = self._spec
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        packing = spec.hyperparameters.packing
        self._store_of_checkpoints = CheckpointStore(
            self._settings.checkpoints_dir,
            spec.checkpointing.keep,
            digest_bytes(f"{self._spec_json}\n{examples.digest}".encode()),
            self._reporter.log,
        )
        self._progress = Progress(self._reporter, self._stop)
        return SupervisedTrainer(
            method.apply(model),
            tokenizer,
            spec,
            PackedRows(rows, pad_id, max_tokens) if packing else PaddedRows(rows, pad_id),
            PaddedRows(eval_rows, pad_id) if eval_rows else None,
            method,
            self._store_of_checkpoints,
            self._progress,
        )

    def _fit(self, trainer: SupervisedTrainer) -> None:
        checkpoint = self._store_of_checkpoints.last_good()
        if checkpoint:
            self._reporter.log(f"Going on from the checkpoint of step {checkpoint.step}.")
        with self._stop.checked_by_stage():
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        if trainer.state.global_step < trainer.state.max_steps:
            raise PreemptedError(f"Stopped after step {trainer.state.global_step}")

    def _lineage(self, examples: Examples, rows: int) -> Lineage:
        return Lineage(
            job=self._settings.job,
            attempt=self._settings.attempt,
            spec_json=self._spec_json,
            data_digest=examples.digest,
            data_rows=rows,
            seed=self._spec.seed,
            library_versions=library_versions(self._spec.base.quantization != "none"),
        )

    def _store(
        self, method: Lora, trainer: SupervisedTrainer, base: BaseFolder, lineage: Lineage
    ) -> Result:
        partial = self._settings.work_dir / "result.partial"
        shutil.rmtree(partial, ignore_errors=True)
        method.save(trainer.model, partial)
        request = CommitVersionRequest(
            parent=self._adapter,
            base_fingerprint=base.record.fingerprint.digest,
            lineage=new_lineage(lineage, _figures(self._progress)),
            request_id=f"{self._settings.job}/commit",
        )
        return store_result(self._settings.result_dir, partial, request)

    def _publish(self, result: Result) -> str:
        self._reporter.log(describe(result))
        if not self._settings.registry_address:
            return ""
        return self._loop.run(self._publish_to_registry(result)).name

    async def _publish_to_registry(self, result: Result) -> Version:
        async with open_channel(self._settings.registry_address) as channel:
            publisher = self._publisher(channel)
            await publisher.upload(result)
            with self._stop.committing():
                version = await publisher.commit(result)
                if self._spec.output.alias:
                    alias = alias_name(self._adapter, self._spec.output.alias)
                    await publisher.point(alias, version)
            return version

    def _publisher(self, channel: Any) -> Publisher:
        return Publisher(
            channel,
            self._settings.job,
            self._settings.registry_patience_s,
            self._reporter.log,
            self._stop.check,
        )


def _figures(progress: Progress) -> dict[str, float]:
    figures = {
        "train_loss": progress.last.loss,
        "steps": float(progress.last.step),
        "tokens": float(progress.tokens),
    }
    if progress.last.HasField("eval_loss"):
        figures["eval_loss"] = progress.last.eval_loss
    return figures


def use_threads(cpu_threads: int) -> None:
    """Sets torch's threads; 0 leaves what OMP_NUM_THREADS says."""
    if cpu_threads:
        torch.set_num_threads(cpu_threads)


def work_folder(settings: WorkerSettings) -> Path:
    """Makes the work folder and returns it."""
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    return settings.work_dir
