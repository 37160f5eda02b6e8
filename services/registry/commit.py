"""Makes a version: verified first, then stored with its report in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graft.errors import GraftError, RefusedError

from services.registry.admission.admit import Admission
from services.registry.catalogue.base import Catalogue, NewVersion, RequestKey
from services.registry.convert import manifest_digest
from services.registry.domain import File, Lineage, Manifest, Version
from services.registry.metrics import RegistryMetrics


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """What somebody wants to be the adapter's next version."""

    adapter: str
    files: Sequence[File]
    base_fingerprint: str
    lineage: Lineage
    key: RequestKey | None


class VersionCommitter:
    """Commits versions.

    Args:
        catalogue: where they are stored.
        admission: what verifies them.
        metrics: counts outcomes.
    """

    def __init__(
        self, catalogue: Catalogue, admission: Admission, metrics: RegistryMetrics
    ) -> None:
        self._catalogue, self._admission, self._metrics = catalogue, admission, metrics

    async def commit(self, request: CommitRequest) -> Version:
        """The committed version, or the one that the same request or manifest made before.

        Raises:
            GraftError: VERSION_REFUSED with the check and the tensor; ADAPTER_NOT_FOUND;
                REQUEST_ID_REUSED.
        """
        try:
            version = await self._commit(request)
        except RefusedError as error:
            self._metrics.commits.labels("refused", error.metadata.get("check", "")).inc()
            raise
        except GraftError:
            self._metrics.commits.labels("failed", "").inc()
            raise
        self._metrics.commits.labels("committed", "").inc()
        return version

    async def _commit(self, request: CommitRequest) -> Version:
        if request.key is not None:
            done = await self._catalogue.find_committed(request.adapter, request.key)
            if done is not None:
                return done
        adapter = await self._catalogue.get_adapter(request.adapter)
        base = await self._catalogue.get_base(adapter.base)
        admitted = await self._admission.verify(request.files, base, request.base_fingerprint)
        manifest = Manifest(
            base=base.name,
            base_fingerprint=base.fingerprint.digest,
            peft_type="LORA",
            rank=admitted.rank,
            alpha=admitted.alpha,
            target_modules=admitted.target_modules,
            files=sorted(request.files, key=lambda file: file.path),
            lineage=request.lineage,
        )
        new = NewVersion(request.adapter, manifest_digest(manifest), manifest, admitted.report)
        return await self._catalogue.commit_version(new, request.key)
