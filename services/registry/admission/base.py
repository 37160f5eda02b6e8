"""Verifies a version of a base: files, configuration, shards and index, values, and its fingerprint.

Streams shard after shard: its memory is bounded by the headers' limits, not by the weights.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graft.bases import fingerprint, is_weights, matrices

from services.registry.admission import base_config, base_files, quantization, report, shards
from services.registry.admission import content as contents
from services.registry.admission.content import Content
from services.registry.admission.dtypes import DTYPE_BITS, FLOATS
from services.registry.admission.header import HeaderRules, Tensor
from services.registry.admission.limits import Limits
from services.registry.admission.shards import ShardIndex
from services.registry.admission.weights import read_header, scan_values
from services.registry.domain import Base, Check, File, Fingerprint, Module, Report
from services.registry.errors import refused

_FINGERPRINT, _FAMILY = "fingerprint", "model-type"
_SCORING = ("ForSequenceClassification", "ForTokenClassification", "ForRewardModel")
_DTYPES = frozenset(DTYPE_BITS) - {"C64"}


@dataclass(frozen=True, slots=True)
class DeclaredBase:
    """What the maker of a base's version says that it is; "" for what is not said.

    fingerprint is its digest, quantization one of the contract's words.
    """

    fingerprint: str = ""
    quantization: str = ""


@dataclass(frozen=True, slots=True)
class AdmittedBase:
    """What was found in a model that may become a base's version.

    config_json, fingerprint and modules are what graft.bases.read_base finds in the same folder;
    parameters counts the numbers stored, also those of scales and packed weights.
    """

    fingerprint: Fingerprint
    config_json: str
    modules: Sequence[Module]
    quantization: str
    parameters: int
    report: Report


@dataclass(slots=True)
class _Found:
    """What the shards held, gathered one by one."""

    names: set[str] = field(default_factory=set)
    embeddings: list[Tensor] = field(default_factory=list)
    modules: list[Module] = field(default_factory=list)
    dtypes: Counter[str] = field(default_factory=Counter)
    parameters: int = 0
    largest: tuple[float, str] = (0.0, "")
    has_floats: bool = False


class BaseAdmission:
    """Verifies versions of bases.

    Args:
        content: their bytes.
        limits: how large they may be.
    """

    def __init__(self, content: Content, limits: Limits) -> None:
        self._content, self._limits = content, limits

    async def verify(
        self, listing: Sequence[File], base: Base, declared: DeclaredBase
    ) -> AdmittedBase:
        """Runs every check, the cheap ones first.

        Raises:
            GraftError: VERSION_REFUSED, with check and, where one is at fault, tensor or path.
        """
        by_path = base_files.check_base_files(listing, self._limits)
        config = await self._config(by_path)
        quantized = quantization.quantization_of(config)
        identity = fingerprint(config, {path: file.digest for path, file in by_path.items()})
        _check_family(base, config)
        _check_declared(declared, identity.digest, quantized)
        found = await self._weights(by_path, config)
        checks = [
            report.files_check(listing),
            Check(base_config.CHECK, f"a {ascii(config['model_type'])[1:-1][:80]} without code"),
            Check(_FAMILY, f"{base.name} is one, too"),
            Check(quantization.CHECK, quantized),
            Check(_FINGERPRINT, identity.digest),
            _tensors_check(found, by_path),
            Check(base_config.EMBEDDINGS, base_config.check_embeddings(config, found.embeddings)),
            Check(base_config.LAYERS, base_config.check_layers(config, found.names)),
            report.values_check(
                found.parameters, {found.largest[1]: found.largest[0]} if found.has_floats else {}
            ),
        ]
        return AdmittedBase(
            fingerprint=Fingerprint(**identity._asdict()),
            config_json=_canonical(config),
            modules=found.modules,
            quantization=quantized,
            parameters=found.parameters,
            report=Report(checks, len(found.names), found.parameters),
        )

    async def _config(self, by_path: Mapping[str, File]) -> dict[str, Any]:
        """config.json; every other file beside the weights is looked at, too."""
        text = await self._content.whole(by_path[base_files.CONFIG])
        config = base_config.read_json(base_files.CONFIG, text)
        base_config.check_model_type(config)
        for path, file in by_path.items():
            if is_weights(path) or path in (base_files.CONFIG, base_files.INDEX):
                continue
            if base_files.is_json(path):
                base_config.read_json(path, await self._content.whole(file))
            elif path in base_files.BINARY:
                head = await self._content.part(file, 0, 512)
                contents.refuse_disguise(path, head)
                await self._content.check_size(file)
            else:
                await self._content.check_text(file)
        return config

    async def _weights(self, by_path: Mapping[str, File], config: Mapping[str, Any]) -> _Found:
        paths = sorted(path for path in by_path if is_weights(path))
        index = None
        if base_files.INDEX in by_path:
            text = await self._content.whole(by_path[base_files.INDEX])
            index = ShardIndex(text, paths, self._limits.max_base_tensors)
        found = _Found()
        for path in paths:
            await self._shard(by_path[path], index, config, found)
        if index is not None:
            index.check_complete(found.names)
        return found

    async def _shard(
        self, file: File, index: ShardIndex | None, config: Mapping[str, Any], found: _Found
    ) -> None:
        left = self._limits.max_base_tensors - len(found.names)
        rules = HeaderRules(
            file.path, _DTYPES, self._limits.max_header_bytes, min(left, self._limits.max_tensors)
        )
        weights = await read_header(self._content, file, rules)
        names = [tensor.name for tensor in weights.tensors]
        if index is not None:
            index.check(file.path, names)
        found.names.update(names)
        found.embeddings += [one for one in weights.tensors if base_config.is_embedding(one)]
        shapes = ((tensor.name, tensor.shape) for tensor in weights.tensors)
        found.modules += [Module(*matrix) for matrix in matrices(shapes, config)]
        for tensor in weights.tensors:
            found.dtypes[tensor.dtype] += 1
            found.parameters += tensor.parameters
            found.has_floats = found.has_floats or tensor.dtype in FLOATS
        for name, top in (await scan_values(self._content, weights)).items():
            found.largest = max(found.largest, (top, name))


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def _check_family(base: Base, config: Mapping[str, Any]) -> None:
    """A merge, a tuning and a quantization leave the kind of model what it is."""
    expected = json.loads(base.config_json or "{}").get("model_type", config["model_type"])
    if config["model_type"] != expected:
        found = ascii(config["model_type"])[1:-1][:80]
        raise refused(
            _FAMILY,
            f"config.json says that it is a {found}, and {base.name} is a {expected}",
            "Record it as a base of its own with CreateBase.",
            path=base_files.CONFIG,
        )
    head = _scoring_head(config)
    if head and not _scoring_head(json.loads(base.config_json or "{}")):
        raise refused(
            _FAMILY,
            f"config.json says that it is a {ascii(head)[1:-1][:80]}, which scores texts, and {base.name} "
            "writes them",
            "Train a reward model as a LoRA and commit it to an adapter, or record this as a base of its own.",
            path=base_files.CONFIG,
        )


def _scoring_head(config: Mapping[str, Any]) -> str:
    """The architecture, where it is one of a classifier or a reward model."""
    named = config.get("architectures")
    found = (one for one in named if isinstance(one, str)) if isinstance(named, list) else ()
    return next((one for one in found if one.endswith(_SCORING)), "")


def _check_declared(declared: DeclaredBase, digest: str, quantized: str) -> None:
    for check, said, found in (
        (_FINGERPRINT, declared.fingerprint, digest),
        (quantization.CHECK, declared.quantization, quantized),
    ):
        if said and said != found:
            raise refused(
                check,
                f"It is said to have the {check} {ascii(said[:80])[1:-1]}, and its files have {found}",
                "Commit the files that were described, or describe them anew with read_base().",
                expected=found,
                found=ascii(said[:80])[1:-1],
            )


def _tensors_check(found: _Found, by_path: Mapping[str, File]) -> Check:
    kinds = ", ".join(f"{count} of {dtype}" for dtype, count in sorted(found.dtypes.items()))
    count = sum(map(is_weights, by_path))
    indexed = "as the index says" if base_files.INDEX in by_path else "without gap or overlap"
    return Check(shards.CHECK, f"{len(found.names)} tensors ({kinds}) in {count} files, {indexed}")
