"""Merges an adapter into its base: one model, without anything beside it, as a version of a base.

What an adapter learned on a quantized base fits the values that the base had there. So such a base is
quantized again, dequantized, and merged; merging into the original weights would be another model.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from graft.bases import read_base
from graft.channel import open_channel
from graft.errors import GraftError, Reason
from graft.keys import load_key
from graft.names import base_name
from graft.registry.v1.registry_service_pb2 import CommitVersionRequest, Lineage, Version
from graft.trainer.v1 import stages_pb2 as stages
from graft.trainer.v1.model_jobs_pb2 import MergeSpec

from services.trainer.fields import identifier
from services.trainer.methods import METHODS
from services.trainer.methods.base import Use
from services.trainer.run.background import BackgroundLoop
from services.trainer.run.model_jobs.pulled import Pulled, Puller, load_pulled
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

_PROBE = "probe.npz"
_PROBE_TOKENS = 32
# Of the spread of the logits, as a root mean square: what rounding to the type of the base's weights may move them
# by. An adapter that is missing altogether moves them by about 1.
_MOST_DIFFERENCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}


class MergeWorker:
    """Does one attempt of a merge.

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
        name = identifier("output_base", spec.output_base)
        self._output = base_name(settings.namespace, name)

    def run(self) -> str:
        """Merges and commits, or commits what an earlier attempt merged; returns the version's name.

        Raises:
            GraftError: what is wrong with the spec, the version or its base.
            RegistryRefusedError: the registry does not take the result.
        """
        settings = self._settings
        settings.work_dir.mkdir(parents=True, exist_ok=True)
        self._reporter.stage(stages.JOB_STAGE_PREPARING)
        pulled = Puller(settings, self._loop, self._reporter).pull(
            self._spec.version, self._spec.base
        )
        _check_method(pulled)
        made = self._loop.run(self._made())
        if made is not None:
            self._reporter.log(f"This job has made {made.name} already; nothing is merged again.")
            return made.name
        fingerprint = pulled.base.record.fingerprint.digest
        result = find_result(settings.result_dir, self._spec_json, fingerprint)
        if result is None or pulled.version.name not in result.request.lineage.parent_versions:
            self._reporter.stage(stages.JOB_STAGE_MERGING)
            result = self._merge(pulled)
        self._stop.check()
        self._reporter.finalizing()
        self._reporter.stage(stages.JOB_STAGE_UPLOADING)
        self._reporter.log(describe(result))
        return self._loop.run(self._publish(pulled, result)).name

    async def _made(self) -> Version | None:
        async with open_channel(self._settings.registry_address) as channel:
            publisher = self._publisher(channel)
            return await publisher.find(self._output, self._settings.job, self._spec_json)

    def _merge(self, pulled: Pulled) -> Result:
        from services.trainer.run import whole_models

        partial = self._settings.work_dir / "result.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self._reporter.log(f"Loading the base ({pulled.base_spec.quantization} quantization).")
        model = load_pulled(pulled, dequantized=True)
        probe = self._settings.work_dir / _PROBE
        if not self._spec.skip_check:
            _write_logits(model, probe)
        self._stop.check()
        merged = model.merge_and_unload(safe_merge=True)
        merged.config.use_cache = True
        whole_models.save(merged, pulled.base.folder, partial)
        del model, merged
        metrics = {}
        if not self._spec.skip_check:
            metrics["logits_difference"] = self._check(partial, probe)
        return self._store(pulled, partial, metrics)

    def _store(self, pulled: Pulled, partial: Path, metrics: dict[str, float]) -> Result:
        origin = f"{pulled.base.record.name} {pulled.base.record.fingerprint.digest}"
        request = CommitVersionRequest(
            parent=self._output,
            method="merge",
            request_id=commit_id(self._settings.job, self._spec_json),
            lineage=Lineage(
                job=self._settings.job,
                attempt=self._settings.attempt,
                spec_json=self._spec_json,
                library_versions=library_versions(pulled.base_spec.quantization != "none"),
                metrics=metrics,
                parent_versions=[pulled.version.name],
                sources=[origin],
            ),
        )
        files = sorted(str(p.relative_to(partial)) for p in partial.rglob("*") if p.is_file())
        return store_result(self._settings.result_dir, partial, request, files)

    def _check(self, merged: Path, probe: Path) -> float:
        """Loads the merged folder in a fresh process; how far its logits are off, over their spread.

        Raises:
            GraftError: INTERNAL, when it is larger than rounding explains.
        """
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "services.trainer.run.model_jobs.check",
                str(merged),
                str(probe),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
            raise _not_the_same(f"a fresh process could not load it ({why})")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        difference, dtype = float(found["difference"]), str(found["dtype"])
        if not difference <= _MOST_DIFFERENCE.get(dtype, 0.1):
            raise _not_the_same(f"its logits differ by {difference:.2g} of their spread ({dtype})")
        self._reporter.log(
            f"A fresh process computes the same: logits differ by {difference:.2g} of their spread."
        )
        return difference

    async def _publish(self, pulled: Pulled, result: Result) -> Version:
        settings = self._settings
        key = load_key(settings.signing_key) if settings.signing_key else None
        async with open_channel(settings.registry_address) as channel:
            publisher = self._publisher(channel)
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


def _not_the_same(why: str) -> GraftError:
    return GraftError(
        Reason.INTERNAL,
        f"The merged model is not what base and adapter are together: {why}; nothing was committed",
        next_step="Report it with the adapter's method and the base; skip_check: true leaves this check out.",
    )


def _write_logits(model: Any, path: Path) -> None:
    """What the unmerged model says of some tokens."""
    import numpy as np
    import torch

    from services.trainer.run.trainers.common import without_dropout

    vocabulary = model.config.get_text_config().vocab_size
    ids = (torch.arange(_PROBE_TOKENS) * 7919 + 3).remainder(vocabulary)[None]
    with torch.no_grad(), without_dropout(model):
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    np.savez(path, ids=ids.numpy(), logits=logits.float().cpu().numpy())
