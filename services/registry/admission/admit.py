"""Verifies a version before it exists: files, base, configuration, header, shapes and values.

Streams, so that its memory is bounded by the header's limit and one chunk, whatever is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from services.registry.admission import adapter_config, pairs, values
from services.registry.admission import files as files_check
from services.registry.admission import header as header_check
from services.registry.admission.adapter_config import AdapterConfig
from services.registry.admission.header import LENGTH_BYTES, Tensor
from services.registry.admission.limits import Limits
from services.registry.admission.pairs import Pair
from services.registry.admission.values import FiniteScan
from services.registry.blobs.base import BlobStore
from services.registry.domain import Base, Check, File, Report
from services.registry.errors import refused

__all__ = ["Admission", "Admitted", "Limits"]


@dataclass(frozen=True, slots=True)
class Admitted:
    """What was found in an adapter that may become a version."""

    rank: int
    alpha: float
    target_modules: Sequence[str]
    report: Report


class Admission:
    """Verifies versions.

    Args:
        blobs: where their bytes are.
        limits: how large they may be.
    """

    def __init__(self, blobs: BlobStore, limits: Limits) -> None:
        self._blobs, self._limits = blobs, limits

    async def verify(self, files: Sequence[File], base: Base, base_fingerprint: str) -> Admitted:
        """Runs every check, the cheap ones first.

        Args:
            files: the version's files.
            base: the base of its adapter.
            base_fingerprint: digest of the base that it was trained on.

        Raises:
            GraftError: VERSION_REFUSED, with check and, where one is at fault, tensor.
        """
        by_path = files_check.check_files(files, self._limits)
        _check_fingerprint(base, base_fingerprint)
        await self._check_stored(files)
        await self._check_text(by_path)
        config = adapter_config.read_config(await self._read(by_path[files_check.CONFIG]))
        weights = by_path[files_check.WEIGHTS]
        tensors = await self._tensors(weights)
        found, targets = await asyncio.to_thread(self._compare, tensors, config, base)
        await self._scan(weights, tensors)
        return Admitted(
            rank=max(pair.rank for pair in found),
            alpha=config.alpha,
            target_modules=targets,
            report=_report(files, base, tensors, found, targets),
        )

    def _compare(
        self, tensors: list[Tensor], config: AdapterConfig, base: Base
    ) -> tuple[list[Pair], list[str]]:
        found = pairs.pair_up(tensors)
        pairs.check_pairs(found, config, base, self._limits)
        return found, pairs.check_targets(found, config)

    async def _check_stored(self, files: Sequence[File]) -> None:
        missing = set(await self._blobs.missing([file.digest for file in files]))
        for file in files:
            if file.digest in missing:
                raise refused(
                    files_check.CHECK,
                    f"{file.path} ({file.digest}) was not uploaded",
                    "Upload it with BlobService.Write, then commit again.",
                    digest=file.digest,
                )
            size_bytes = await self._blobs.size(file.digest)
            if size_bytes != file.size_bytes:
                raise refused(
                    files_check.CHECK,
                    f"{file.path} is said to have {file.size_bytes} bytes and has {size_bytes}",
                    "List the file with its real size.",
                )

    async def _check_text(self, by_path: dict[str, File]) -> None:
        for path, file in by_path.items():
            if path in (files_check.CONFIG, files_check.WEIGHTS):
                continue
            try:
                text = (await self._read(file)).decode("utf-8")
            except UnicodeDecodeError:
                text = "\0"
            if "\0" in text:
                raise refused(
                    files_check.CHECK,
                    f"{path} is not text in UTF-8",
                    "Leave it out, or save it as text.",
                )

    async def _read(self, file: File, offset: int = 0, limit: int = 0) -> bytes:
        return b"".join([chunk async for chunk in self._blobs.read(file.digest, offset, limit)])

    async def _tensors(self, weights: File) -> list[Tensor]:
        prefix = await self._read(weights, 0, 2 * LENGTH_BYTES)
        length = header_check.header_length(prefix, weights.size_bytes, self._limits)
        text = await self._read(weights, LENGTH_BYTES, length) if length else b""
        return await asyncio.to_thread(
            header_check.parse_header, text, weights.size_bytes, self._limits
        )

    async def _scan(self, weights: File, tensors: list[Tensor]) -> None:
        scan = FiniteScan(tensors)
        async for chunk in self._blobs.read(weights.digest, tensors[0].begin):
            await asyncio.to_thread(scan.feed, chunk)
        assert scan.done, "the header covers the file to its end"


def _check_fingerprint(base: Base, base_fingerprint: str) -> None:
    if base_fingerprint != base.fingerprint.digest:
        raise refused(
            "base-fingerprint",
            f"It was trained on a base with the fingerprint {base_fingerprint[:80] or '(none)'}, and "
            f"{base.name} has {base.fingerprint.digest}",
            "Train it on this base, or commit it to an adapter of its own base.",
            expected=base.fingerprint.digest,
            found=base_fingerprint[:80],
        )


def _report(
    files: Sequence[File],
    base: Base,
    tensors: Sequence[Tensor],
    found: Sequence[Pair],
    targets: Sequence[str],
) -> Report:
    parameters = sum(tensor.parameters for tensor in tensors)
    ranks = sorted({pair.rank for pair in found})
    dtypes = sorted({tensor.dtype for tensor in tensors})
    total_bytes = sum(file.size_bytes for file in files)
    checks = [
        Check(files_check.CHECK, f"{len(files)} files, {total_bytes} bytes, no pickle and no code"),
        Check("base-fingerprint", f"{base.fingerprint.digest} of {base.name}"),
        Check(adapter_config.CHECK, "a LoRA that the engine can serve"),
        Check(header_check.CHECK, f"{len(tensors)} tensors of {', '.join(dtypes)}, without gaps"),
        Check(pairs.NAMES, f"{len(found)} pairs of lora_A and lora_B"),
        Check(pairs.LAYERS, f"all {len(found)} modules are in the base"),
        Check(pairs.SHAPES, "all features are the base's"),
        Check(pairs.RANKS, f"rank {', '.join(map(str, ranks))}, as the configuration says"),
        Check(pairs.TARGETS, ", ".join(targets)),
        Check(values.CHECK, f"{parameters} values, none of them NaN or infinite"),
    ]
    return Report(checks, len(tensors), parameters)
