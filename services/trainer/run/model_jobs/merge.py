"""Does a merge: pulls versions, has something made of them and proven, and commits it, or moves it to where it is exported.

What an adapter learned on a quantized base fits the values that the base had there. So such a base is
quantized again, dequantized, and merged; merging into the original weights would be another model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.bases import read_base
from graft.channel import open_channel
from graft.errors import GraftError, Reason
from graft.files import write_atomic
from graft.keys import load_key
from graft.names import adapter_name, base_name
from graft.registry.v1.registry_service_pb2 import CommitVersionRequest, Lineage, Version
from graft.trainer.v1 import stages_pb2 as stages
from graft.trainer.v1.model_jobs_pb2 import MergeSpec

from services.trainer.methods import METHODS
from services.trainer.methods.base import Use
from services.trainer.run.background import BackgroundLoop
from services.trainer.run.model_jobs.pulled import Pulled, Puller
from services.trainer.run.publish import Publisher
from services.trainer.run.reporters import Reporter
from services.trainer.run.result import (
    Result,
    commit_id,
    describe,
    find_result,
    library_versions,
    store_result,
)
from services.trainer.run.settings import WorkerSettings
from services.trainer.run.stop import StopSignal
from services.trainer.spec.recipe import Exporting, parse_recipe

if TYPE_CHECKING:
    from services.trainer.run.model_jobs.making import Maker

REPORT, ERROR = "report.json", "error.json"
# What loads its files as a LoRA is one, whatever it was made by.
_ADAPTER_METHOD, _BASE_METHOD = "lora", "merge"


class MergeWorker:
    """Does one attempt of a merge.

    Args:
        spec: the job.
        spec_json: the spec as it was given, for the lineage.
        settings: what the launcher said.
        loop: for everything over the network.
        reporter: gets what happens.
        stop: asked whether to go on.

    Raises:
        GraftError: INVALID_SPEC; BAD_DATA, when the proof's texts cannot be read.
    """

    def __init__(
        self,
        spec: MergeSpec,
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
        self._recipe = parse_recipe(spec)
        self._stages = 0
        recipe, namespace = self._recipe, settings.namespace
        self._output = (
            adapter_name(namespace, recipe.output_adapter)
            if recipe.output_adapter
            else base_name(namespace, recipe.output_base)
            if recipe.output_base
            else ""
        )

    def run(self) -> str:
        """Makes and commits, or commits what an earlier attempt made; returns the version's name, "" of an export.

        Raises:
            GraftError: what is wrong with the spec, the versions or their base.
            RegistryRefusedError: the registry does not take the result.
        """
        self._settings.work_dir.mkdir(parents=True, exist_ok=True)
        try:
            return self._run()
        except GraftError as error:
            said = {"message": error.message, "next_step": error.next_step}
            self._leave(ERROR, {"reason": error.reason.value, **said, "metadata": error.metadata})
            raise

    def _run(self) -> str:
        settings = self._settings
        self._reporter.stage(stages.JOB_STAGE_PREPARING)
        puller = Puller(settings, self._loop, self._reporter)
        every = [puller.pull(one.version, self._spec.base) for one in self._recipe.sources]
        self._check(every)
        if self._recipe.export is not None:
            self._export(every, self._recipe.export)
            return ""
        made = self._loop.run(self._made())
        if made is not None:
            self._reporter.log(f"This job has made {made.name} already; nothing is made again.")
            return made.name
        fingerprint = every[0].base.record.fingerprint.digest
        result = find_result(settings.result_dir, self._spec_json, fingerprint)
        names = [one.version.name for one in every]
        if result is None or list(result.request.lineage.parent_versions) != names:
            self._reporter.stage(stages.JOB_STAGE_MERGING)
            result = self._make(every)
        self._stop.check()
        self._reporter.finalizing()
        self._reporter.stage(stages.JOB_STAGE_UPLOADING)
        self._reporter.log(describe(result))
        return self._loop.run(self._publish(every[0], result)).name

    def _check(self, every: list[Pulled]) -> None:
        """Refuses what cannot be merged or combined.

        Raises:
            GraftError: INVALID_SPEC, WRONG_BASE.
        """
        first = every[0].base.record
        for pulled in every:
            if self._recipe.export is None or pulled.is_adapter:
                _check_method(pulled)
            record = pulled.base.record
            if record.fingerprint.digest != first.fingerprint.digest:
                raise GraftError(
                    Reason.WRONG_BASE,
                    f"{pulled.version.name} is of {record.name} ({record.fingerprint.digest}), and "
                    f"{every[0].version.name} of {first.name} ({first.fingerprint.digest})",
                    next_step="Combine adapters of one base.",
                )

    async def _made(self) -> Version | None:
        async with open_channel(self._settings.registry_address) as channel:
            publisher = self._publisher(channel)
            return await publisher.find(self._output, self._settings.job, self._spec_json)

    def _maker(self, every: list[Pulled]) -> Maker:
        from services.trainer.run.model_jobs.held_out import HeldOut, held_out_rows
        from services.trainer.run.model_jobs.making import Maker

        proof, log = self._recipe.proof, self._reporter.log
        rows = HeldOut([], "nothing")
        if not proof.skip:
            rows = held_out_rows(every[0], proof, self._settings, self._loop, self._reporter)
            log(f"The proof is on {rows.origin} ({rows.tokens} tokens).")
        return Maker(self._recipe, every, rows, self._settings.work_dir, self._stage, log)

    def _stage(self, name: str) -> None:
        self._stop.check()
        self._stages += 1
        self._reporter.log(f"Stage {self._stages}: {name}.")

    def _make(self, every: list[Pulled]) -> Result:
        """Makes the result below the work folder; what a failure leaves is removed."""
        partial, between = self._fresh("result.partial"), self._fresh("merged.partial")
        try:
            maker = self._maker(every)
            if self._recipe.output_adapter:
                report = maker.adapter(partial)
            elif self._recipe.requantization == "none":
                report = maker.model(partial, self._recipe.dtype)
            else:
                report = maker.model(between, self._recipe.dtype)
                maker.requantized(between, partial, report)
            self._leave(REPORT, report.as_dict())
            report.write(partial, self._libraries(every))
            return self._store(every, partial, report.metrics)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(between, ignore_errors=True)

    def _export(self, every: list[Pulled], export: Exporting) -> None:
        """Makes what is exported beside its place, and moves it there when it is proven."""
        beside = export.path.with_name(f".{export.path.name}.partial")
        between = self._fresh("merged.partial")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.parent.mkdir(parents=True, exist_ok=True)
            if export.gguf_type:
                _check_architecture(every[0])
            maker = self._maker(every)
            if export.gguf_type:
                beside.mkdir()
                report = maker.model(between, "float32")
                made = beside / export.path.name
                maker.gguf(between, made, every[0].version.name, report)
            elif self._recipe.requantization != "none":
                report = maker.model(between, self._recipe.dtype)
                maker.requantized(between, made := beside, report)
            else:
                report = maker.model(made := beside, self._recipe.dtype)
            self._leave(REPORT, report.as_dict())
            if not export.gguf_type:
                report.write(made, self._libraries(every))
            made.rename(export.path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
            shutil.rmtree(between, ignore_errors=True)
        self._reporter.log(f"Exported to {export.path}.")

    def _fresh(self, name: str) -> Path:
        folder = self._settings.work_dir / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _leave(self, name: str, content: dict[str, Any]) -> None:
        """For whoever started this process, and reads its work folder."""
        write_atomic(self._settings.work_dir / name, json.dumps(content).encode())

    def _libraries(self, every: list[Pulled]) -> dict[str, str]:
        quantized = any(one.base_spec.quantization != "none" for one in every)
        return library_versions(quantized or self._recipe.requantization == "nf4")

    def _store(self, every: list[Pulled], partial: Path, metrics: dict[str, float]) -> Result:
        record = every[0].base.record
        to_adapter = bool(self._recipe.output_adapter)
        request = CommitVersionRequest(
            parent=self._output,
            method=_ADAPTER_METHOD if to_adapter else _BASE_METHOD,
            base_fingerprint=record.fingerprint.digest if to_adapter else "",
            request_id=commit_id(self._settings.job, self._spec_json),
            lineage=Lineage(
                job=self._settings.job,
                attempt=self._settings.attempt,
                spec_json=self._spec_json,
                library_versions=self._libraries(every),
                metrics=metrics,
                parent_versions=[one.version.name for one in every],
                sources=[f"{record.name} {record.fingerprint.digest}"],
            ),
        )
        files = sorted(str(p.relative_to(partial)) for p in partial.rglob("*") if p.is_file())
        return store_result(self._settings.result_dir, partial, request, files)

    async def _publish(self, pulled: Pulled, result: Result) -> Version:
        settings = self._settings
        key = load_key(settings.signing_key) if settings.signing_key else None
        async with open_channel(settings.registry_address) as channel:
            publisher = self._publisher(channel)
            if self._recipe.output_adapter:
                await publisher.prepare(pulled.base.record, self._output)
            else:
                made = read_base(result.folder, self._output)
                await publisher.prepare_bases(pulled.base.record, made)
            async with publisher.holding(result):
                await publisher.upload(result)
                self._reporter.stage(stages.JOB_STAGE_COMMITTING)
                version = await publisher.commit(result, self._stop.committing)
            if key is not None:
                await publisher.sign(version, result, key)
            return version

    def _publisher(self, channel: Any) -> Publisher:
        return Publisher(
            channel,
            self._settings.job,
            self._settings.registry_patience_s,
            self._reporter.log,
            self._stop.check,
            self._reporter.waiting,
        )


def _check_method(pulled: Pulled) -> None:
    """Refuses what cannot be merged: a base's version, and adapters that are more than other weights."""
    version = pulled.version
    method = METHODS.get(version.method)
    mergeable = method is None or Use.MERGE in method.info.uses
    if not pulled.is_adapter or not mergeable:
        what = "a base" if not pulled.is_adapter else f"made by {version.kind}"
        raise GraftError(
            Reason.INVALID_SPEC,
            f"{version.name} is {what} and cannot be merged into a base",
            next_step="Merge an adapter of a method that `graft methods` calls mergeable, such as lora.",
            field="version",
        )


def _check_architecture(pulled: Pulled) -> None:
    """Refuses what GGUF cannot hold before anything is computed."""
    from services.trainer.run.model_jobs.gguf_file import check_exportable
    from services.trainer.run.model_jobs.gguf_vocabulary import read_vocabulary

    config = json.loads((pulled.base.folder / "config.json").read_text("utf-8"))
    check_exportable(config)
    read_vocabulary(pulled.base.folder, config["vocab_size"])
