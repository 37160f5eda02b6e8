"""A version that a job works on: its files, its base's folder, and the model of both."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from graft import convert
from graft.client import Client
from graft.digests import digest_file
from graft.errors import GraftError, NotFoundError, Reason
from graft.names import full_name
from graft.registry.v1.registry_service_pb2 import GetVersionRequest
from graft.results import Version
from graft.trainer.v1 import job_spec_pb2

from services.trainer.run.background import BackgroundLoop
from services.trainer.run.bases import BaseFolder, open_base
from services.trainer.run.reporters import Reporter
from services.trainer.run.settings import WorkerSettings
from services.trainer.spec import BaseSpec, parse_spec
from services.trainer.spec.base import parse_base

_PEER = "the registry"


@dataclass(frozen=True, slots=True)
class Pulled:
    """A version on this machine's disk.

    Attributes:
        version: as the registry has it.
        folder: its files.
        base: what it was trained on; for a base's version the version itself.
        base_spec: how that is loaded: quantized as it was while it was trained on.
    """

    version: Version
    folder: Path
    base: BaseFolder
    base_spec: BaseSpec

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter's version, and not a base's."""
        return "/adapters/" in self.version.name


class Puller:
    """Fetches versions for a job.

    Args:
        settings: of the worker.
        loop: for everything over the network.
        reporter: gets a line for people.

    Raises:
        GraftError: INVALID_REQUEST, without a registry.
    """

    def __init__(self, settings: WorkerSettings, loop: BackgroundLoop, reporter: Reporter) -> None:
        if not settings.registry_address:
            raise GraftError(
                Reason.INVALID_REQUEST,
                "This job works on a version of a registry, and none is named",
                next_step="Set GRAFT_WORKER_REGISTRY to its host:port.",
            )
        self._settings = settings
        self._loop = loop
        self._reporter = reporter

    def client(self) -> Client:
        """A client of the registry, for use on the background loop."""
        return Client(
            registry=self._settings.registry_address,
            namespace=self._settings.namespace,
            patience_s=self._settings.registry_patience_s,
            actor=self._settings.job,
        )

    def pull(self, reference: str, base: job_spec_pb2.BaseSpec) -> Pulled:
        """Fetches a version and finds its base.

        Args:
            reference: "bot", "bot@production", "bot:3", "bases/tiny:2" or a full name.
            base: the base as the job's spec has it; its source may be left out.

        Raises:
            GraftError: INVALID_SPEC, when there is no such version; WRONG_BASE; NOT_A_MODEL; UNAVAILABLE.
        """
        if not reference:
            raise GraftError(
                Reason.INVALID_SPEC,
                "version is empty; it must name a version",
                next_step="Write bot:3, bot@production, bases/name:2 or a full name.",
                field="version",
            )
        try:
            version, folder, source = self._loop.run(self._fetch(reference))
        except NotFoundError as error:
            raise GraftError(
                Reason.INVALID_SPEC, error.message, next_step=error.next_step, field="version"
            ) from None
        self._reporter.log(f"Fetched {version.name} ({version.size_bytes:,} bytes).")
        return self._with_base(version, folder, base, source)

    async def _fetch(self, reference: str) -> tuple[Version, Path, str]:
        async with self.client() as client:
            version = await self._find(client, reference)
            if version.deleted:
                raise GraftError(
                    Reason.INVALID_SPEC,
                    f"{version.name} was deleted",
                    next_step="Name another version, or take it back: graft adapters undelete.",
                    field="version",
                )
            folder = self._settings.work_dir / "versions" / version.digest.rpartition(":")[2]
            if folder.is_dir() and not _whole(folder, version):
                self._reporter.log(
                    f"The files of {version.name} here are damaged; fetching them anew."
                )
                shutil.rmtree(folder)
            if not folder.is_dir():
                folder.parent.mkdir(parents=True, exist_ok=True)
                await _pull(client, version.name, folder)
            if "/bases/" in version.name:
                return version, folder, str(folder)
            return version, folder, (await client.bases.get(version.base)).source

    async def _find(self, client: Client, reference: str) -> Version:
        full = full_name(reference, self._settings.namespace)
        if "/versions/" not in full and "/aliases/" not in full:
            return await client.adapters.version(reference)
        request = GetVersionRequest(name=full)
        connection = client.connection
        found = await connection.call(connection.registry.GetVersion, request, _PEER)
        return convert.version(found)

    def _with_base(
        self, version: Version, folder: Path, given: job_spec_pb2.BaseSpec, source: str
    ) -> Pulled:
        own = "/bases/" in version.name
        name = (version.name.rpartition("/versions/")[0] if own else version.base).split("/")[-1]
        message = job_spec_pb2.BaseSpec()
        message.CopyFrom(given)
        message.source = source if own else given.source or source
        message.name = message.name or name
        trained = _trained_base(version)
        spec = parse_base(message, trained.quantization if trained else "none")
        base = open_base(spec, self._settings.namespace)
        if not own and base.record.fingerprint.digest != version.base_fingerprint:
            raise GraftError(
                Reason.WRONG_BASE,
                f"{version.name} was trained on another base than {message.source}: its fingerprint is "
                f"{version.base_fingerprint}, that of the folder {base.record.fingerprint.digest}",
                next_step="Name the base that it was trained on in base.source.",
            )
        return Pulled(version, folder, base, spec)


async def _pull(client: Client, name: str, folder: Path) -> None:
    parent, _, number = name.rpartition("/versions/")
    if "/bases/" in name:
        await client.base_versions.pull(parent, int(number), folder)
        return
    namespace, adapter = parent.split("/")[1::2]
    await client.adapters.pull(f"{namespace}/{adapter}:{number}", folder)


def _whole(folder: Path, version: Version) -> bool:
    """Whether what an earlier attempt fetched is still what was fetched."""
    return all(
        (folder / file.path).is_file() and digest_file(folder / file.path) == file.digest
        for file in version.files
    )


def _trained_base(version: Version) -> BaseSpec | None:
    """How the base was held while this version was trained; None where nobody knows."""
    try:
        given = json_format.ParseDict(
            dict(version.lineage.spec), job_spec_pb2.JobSpec(), ignore_unknown_fields=True
        )
        return parse_spec(given).base
    except (GraftError, json_format.ParseError):
        return None


def load_pulled(pulled: Pulled, *, dequantized: bool = False) -> Any:
    """The model that a version stands for.

    Args:
        pulled: the version.
        dequantized: a quantized base's values as plain weights, below the adapter.

    Raises:
        GraftError: NOT_A_MODEL; INVALID_SPEC, when the adapter cannot be put on the base.
    """
    from peft import PeftModel

    from services.trainer.run.bottleneck import load_bottleneck
    from services.trainer.run.models import load_model

    model = load_model(pulled.base.folder, pulled.base_spec)
    if dequantized and pulled.base_spec.quantization != "none":
        model = model.dequantize()
    if not pulled.is_adapter:
        return model
    if pulled.version.peft_type == "BOTTLENECK":
        return load_bottleneck(model, pulled.folder)
    return PeftModel.from_pretrained(model, str(pulled.folder))
