"""Verifies a version before it exists: files, base, configuration, header, shapes and values.

Streams, so that its memory is bounded by the header's limit and one chunk, whatever is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.registry.admission import adapter_config, coverage, dora, files, pairs, report
from services.registry.admission.adapter_config import AdapterConfig
from services.registry.admission.base import AdmittedBase, BaseAdmission, DeclaredBase
from services.registry.admission.content import Content
from services.registry.admission.dtypes import ADAPTER_DTYPES
from services.registry.admission.header import HeaderRules, Tensor
from services.registry.admission.kinds import KINDS, Expected, Kind, check_common, compare
from services.registry.admission.kinds.base import hidden_size
from services.registry.admission.limits import Limits
from services.registry.admission.modules import BaseModules, ModulesCache
from services.registry.admission.pairs import Pair
from services.registry.admission.weights import Weights, read_header, scan_values
from services.registry.blobs.base import BlobStore
from services.registry.domain import Base, BaseContent, File, Report
from services.registry.errors import refused

__all__ = ["Admission", "Admitted", "AdmittedBase", "DeclaredBase", "Limits"]
# Above it comparing takes long enough to be worth a thread.
_FEW_TENSORS = 500


@dataclass(frozen=True, slots=True)
class Admitted:
    """What was found in an adapter that may become a version."""

    peft_type: str
    method: str
    rank: int
    alpha: float
    target_modules: Sequence[str]
    report: Report


@dataclass(frozen=True, slots=True)
class _Compared:
    pairs: list[Pair]
    layers: str
    targets: list[str]


class Admission:
    """Verifies versions.

    Args:
        blobs: where their bytes are.
        limits: how large they may be.
    """

    def __init__(self, blobs: BlobStore, limits: Limits) -> None:
        self._limits = limits
        self._content = Content(blobs)
        self._bases = BaseAdmission(self._content, limits)
        self._modules = ModulesCache()
        self._rules = HeaderRules(
            files.WEIGHTS, frozenset(ADAPTER_DTYPES), limits.max_header_bytes, limits.max_tensors
        )

    async def verify(
        self, listing: Sequence[File], base: BaseContent, base_fingerprint: str
    ) -> Admitted:
        """Runs every check of an adapter's version, the cheap ones first.

        Args:
            listing: the version's files.
            base: the base of its adapter.
            base_fingerprint: digest of the base that it was trained on.

        Raises:
            GraftError: VERSION_REFUSED, with check and, where one is at fault, tensor or path.
        """
        by_path = files.check_adapter_files(listing, self._limits)
        _check_fingerprint(base, base_fingerprint)
        given = adapter_config.read_config(await self._content.whole(by_path[files.CONFIG]))
        kind = KINDS.get(str(given.get("peft_type")))
        config = adapter_config.lora_config(given) if kind is None else None
        for path, file in by_path.items():
            if path not in (files.CONFIG, files.WEIGHTS):
                await self._content.check_text(file)
        weights = await read_header(self._content, by_path[files.WEIGHTS], self._rules)
        if config is not None:
            return await self._verify_lora(listing, base, config, weights)
        assert kind is not None, "what is no other kind is a LoRA, or refused"
        return await self._verify_kind(listing, base, kind, given, weights)

    async def _verify_lora(
        self, listing: Sequence[File], base: BaseContent, config: AdapterConfig, weights: Weights
    ) -> Admitted:
        arguments = (weights.tensors, config, self._modules.of(base), base)
        if len(weights.tensors) <= _FEW_TENSORS:
            found = self._compare(*arguments)
        else:
            found = await asyncio.to_thread(self._compare, *arguments)
        largest = await scan_values(self._content, weights)
        return Admitted(
            peft_type="LORA",
            method=_lora_method(config),
            rank=max(pair.rank for pair in found.pairs),
            alpha=config.alpha,
            target_modules=found.targets,
            report=report.adapter_report(
                listing, base, config, weights.tensors,
                found.pairs, found.layers, found.targets, largest,
            ),
        )  # fmt: skip

    async def _verify_kind(
        self,
        listing: Sequence[File],
        base: BaseContent,
        kind: Kind,
        given: Mapping[str, Any],
        weights: Weights,
    ) -> Admitted:
        modules = self._modules.of(base)
        arguments = (kind, given, modules, base.config_json, weights.tensors)
        if max(len(weights.tensors), len(modules)) <= _FEW_TENSORS:
            expected = _compare_kind(*arguments)
        else:
            expected = await asyncio.to_thread(_compare_kind, *arguments)
        largest = await scan_values(self._content, weights)
        return Admitted(
            peft_type=kind.peft_type,
            method=kind.method,
            rank=expected.rank,
            alpha=expected.alpha,
            target_modules=sorted(expected.targets),
            report=report.kind_report(
                listing, base, kind.peft_type, expected, weights.tensors, largest
            ),
        )

    async def verify_base(
        self, listing: Sequence[File], base: Base, declared: DeclaredBase | None = None
    ) -> AdmittedBase:
        """Runs every check of a base's version.

        Args:
            listing: the version's files: a folder that transformers loads, as safetensors.
            base: what it is to be a version of: the same kind of model.
            declared: what its maker says that it is, to be compared.

        Raises:
            GraftError: VERSION_REFUSED, with check and, where one is at fault, tensor or path.
        """
        return await self._bases.verify(listing, base, declared or DeclaredBase())

    def _compare(
        self, tensors: list[Tensor], config: AdapterConfig, base: BaseModules, content: BaseContent
    ) -> _Compared:
        rest, magnitudes, heads = dora.set_apart(tensors, config)
        found = pairs.pair_up(rest)
        pairs.check_pairs(found, config, base, content.name, self._limits)
        targets = pairs.check_targets(found, config, base, content.name)
        if config.dora:
            dora.check_magnitudes(magnitudes, found, base)
        if config.heads:
            dora.check_heads(heads, config, hidden_size(content.config_json))
        return _Compared(found, coverage.check_coverage(found, config, base), targets)


def _compare_kind(
    kind: Kind,
    config: Mapping[str, Any],
    modules: BaseModules,
    base_config: str,
    tensors: Sequence[Tensor],
) -> Expected:
    check_common(config)
    expected = kind.expected(config, modules, base_config)
    compare(tensors, expected)
    return expected


def _lora_method(config: AdapterConfig) -> str:
    """What made it, as far as its configuration tells."""
    if config.dora:
        return "dora"
    return "rslora" if config.rslora else "lora"


def _check_fingerprint(base: BaseContent, base_fingerprint: str) -> None:
    if base_fingerprint != base.fingerprint.digest:
        raise refused(
            "base-fingerprint",
            f"It was trained on a base with the fingerprint "
            f"{ascii(base_fingerprint[:80]) if base_fingerprint else '(none)'}, and "
            f"{base.name} has {base.fingerprint.digest}",
            "Train it on this base, or commit it to an adapter of its own base.",
            expected=base.fingerprint.digest,
            found=ascii(base_fingerprint[:80])[1:-1],
        )
