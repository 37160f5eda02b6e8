"""Makes a version: verified first, then stored with its report in one transaction."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graft.errors import GraftError, RefusedError

from services.registry.admission.admit import Admission
from services.registry.admission.base import DeclaredBase
from services.registry.catalogue.base import Catalogue, NewVersion, RequestKey
from services.registry.convert.messages import manifest_digest
from services.registry.domain import BaseContent, File, Kind, Lineage, Manifest, Report, Version
from services.registry.errors import deleted
from services.registry.metrics import RegistryMetrics

_KEPT_CONTENTS = 256


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """What somebody wants to be the next version of an adapter or a base."""

    parent: str
    files: Sequence[File]
    base_fingerprint: str
    lineage: Lineage
    key: RequestKey | None
    method: str
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


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
        self._contents: OrderedDict[tuple[str, str], BaseContent] = OrderedDict()

    async def commit(self, request: CommitRequest) -> Version:
        """The committed version, or the one that the same request or manifest made before.

        Raises:
            GraftError: VERSION_REFUSED with the check and the tensor; ADAPTER_NOT_FOUND;
                BASE_NOT_FOUND; DELETED; QUOTA_EXCEEDED; REQUEST_ID_REUSED.
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
            done = await self._catalogue.find_committed(request.parent, request.key)
            if done is not None:
                return done
        if "/bases/" in request.parent:
            new = await self._new_base_version(request)
        else:
            new = await self._new_adapter_version(request)
        return await self._catalogue.commit_version(new, request.key)

    async def _new_adapter_version(self, request: CommitRequest) -> NewVersion:
        content = await self._content_for(request)
        admitted = await self._admission.verify(request.files, content, request.base_fingerprint)
        manifest = Manifest(
            base=content.name,
            base_fingerprint=content.fingerprint.digest,
            peft_type=admitted.peft_type,
            rank=admitted.rank,
            alpha=admitted.alpha,
            target_modules=admitted.target_modules,
            files=_sorted(request.files),
            lineage=request.lineage,
            kind=Kind.ADAPTER,
            method=request.method or admitted.method,
        )
        return _new(request, manifest, admitted.report)

    async def _content_for(self, request: CommitRequest) -> BaseContent:
        """What the adapter was trained on, where that is of its base; else its base."""
        # Neither an adapter's base nor what has a fingerprint ever changes; what was deleted since
        # is found by the catalogue.
        key = (request.parent, request.base_fingerprint)
        if key in self._contents:
            self._contents.move_to_end(key)
            return self._contents[key]
        adapter = await self._catalogue.get_adapter(request.parent)
        if adapter.life.deleted:
            raise deleted("adapter", adapter.name, adapter.life)
        base = await self._catalogue.get_base(adapter.base)
        content = await self._catalogue.base_content(base.name, request.base_fingerprint)
        if content is None:
            return BaseContent(base.name, base.fingerprint, base.config_json, base.modules)
        self._contents[key] = content
        if len(self._contents) > _KEPT_CONTENTS:
            self._contents.popitem(last=False)
        return content

    async def _new_base_version(self, request: CommitRequest) -> NewVersion:
        base = await self._catalogue.get_base(request.parent)
        if base.life.deleted:
            raise deleted("base", base.name, base.life)
        declared = DeclaredBase(fingerprint=request.base_fingerprint)
        admitted = await self._admission.verify_base(request.files, base, declared)
        manifest = Manifest(
            base=base.name,
            base_fingerprint="",
            peft_type="",
            rank=0,
            alpha=0.0,
            target_modules=(),
            files=_sorted(request.files),
            lineage=request.lineage,
            kind=Kind.BASE,
            method=request.method,
            quantization=admitted.quantization,
            fingerprint=admitted.fingerprint,
        )
        content = BaseContent(
            base.name, admitted.fingerprint, admitted.config_json, admitted.modules
        )
        return _new(request, manifest, admitted.report, content)


def _sorted(files: Sequence[File]) -> list[File]:
    return sorted(files, key=lambda file: file.path)


def _new(
    request: CommitRequest, manifest: Manifest, report: Report, content: BaseContent | None = None
) -> NewVersion:
    return NewVersion(
        parent=request.parent,
        digest=manifest_digest(manifest),
        manifest=manifest,
        report=report,
        description=request.description,
        labels=request.labels,
        content=content,
    )
