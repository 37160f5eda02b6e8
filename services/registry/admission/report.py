"""Words the report that is kept with a version: every check with what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from services.registry.admission import adapter_config, coverage, files, header, pairs, values
from services.registry.admission.adapter_config import AdapterConfig
from services.registry.admission.header import Tensor
from services.registry.admission.kinds.base import Expected
from services.registry.admission.pairs import Pair
from services.registry.domain import BaseContent, Check, File, Report

NOTES = "notes"
_SHOWN = 5


def listed(names: Sequence[str]) -> str:
    """The first few of them and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def files_check(listing: Sequence[File]) -> Check:
    """What the files are."""
    total_bytes = sum(file.size_bytes for file in listing)
    return Check(
        files.CHECK, f"{len(listing)} files, {total_bytes} bytes, no pickle, no archive, no code"
    )


def tensors_check(tensors: Sequence[Tensor]) -> Check:
    """How many of which type."""
    dtypes = Counter(tensor.dtype for tensor in tensors)
    kinds = ", ".join(f"{count} of {dtype}" for dtype, count in sorted(dtypes.items()))
    return Check(header.CHECK, f"{len(tensors)} tensors ({kinds}), without gap or overlap")


def values_check(parameters: int, largest: Mapping[str, float]) -> Check:
    """What values there are."""
    if not largest:
        return Check(values.CHECK, f"{parameters} values, all of whole numbers' types")
    name, top = max(largest.items(), key=lambda one: one[1])
    return Check(
        values.CHECK,
        f"{parameters} values, none of them NaN or infinite; the largest is {top:.6g}, in {name}",
    )


def adapter_report(
    listing: Sequence[File],
    base: BaseContent,
    config: AdapterConfig,
    tensors: Sequence[Tensor],
    found: Sequence[Pair],
    layers: str,
    targets: Sequence[str],
    largest: Mapping[str, float],
) -> Report:
    """The report of an adapter's version."""
    parameters = sum(tensor.parameters for tensor in tensors)
    scaled = "alpha / sqrt(r)" if config.rslora else "alpha / r"
    checks = [
        files_check(listing),
        Check("base-fingerprint", f"{base.fingerprint.digest} of {base.name}"),
        Check(
            adapter_config.CHECK,
            f"{_called(config)}, alpha {config.alpha:g}, scaled by {scaled}",
        ),
        tensors_check(tensors),
        Check(pairs.NAMES, f"{len(found)} pairs of lora_A and lora_B"),
        Check(pairs.LAYERS, f"all {len(found)} modules are in the base"),
        Check(coverage.CHECK, layers),
        Check(pairs.SHAPES, "all features are the base's"),
        Check(pairs.RANKS, f"{_ranks(found)}, as the configuration says"),
        Check(pairs.TARGETS, ", ".join(targets)),
        values_check(parameters, largest),
    ]
    notes = _notes(config, found, largest)
    if notes:
        checks.append(Check(NOTES, "; ".join(notes)))
    return Report(checks, len(tensors), parameters)


def _called(config: AdapterConfig) -> str:
    if config.heads:
        return "a reward model's LoRA with its head"
    return "a DoRA" if config.dora else "a LoRA that the engine can serve"


def kind_report(
    listing: Sequence[File],
    base: BaseContent,
    peft_type: str,
    expected: Expected,
    tensors: Sequence[Tensor],
    largest: Mapping[str, float],
) -> Report:
    """The report of an adapter's version that is no LoRA."""
    parameters = sum(tensor.parameters for tensor in tensors)
    checks = [
        files_check(listing),
        Check("base-fingerprint", f"{base.fingerprint.digest} of {base.name}"),
        Check(adapter_config.CHECK, f"{peft_type}: {expected.summary}"),
        tensors_check(tensors),
        Check(pairs.NAMES, "every tensor that configuration and base ask for, and no other"),
        Check(pairs.SHAPES, "all sizes are the base's and the configuration's"),
        values_check(parameters, largest),
    ]
    return Report(checks, len(tensors), parameters)


def _ranks(found: Sequence[Pair]) -> str:
    """Ranks by module: rank 4 in q_proj, v_proj (62 modules), rank 2 in v_proj (2 modules)."""
    names: dict[int, set[str]] = {}
    for pair in found:
        names.setdefault(pair.rank, set()).add(pair.module.rpartition(".")[2])
    counts = Counter(pair.rank for pair in found)
    return ", ".join(
        f"rank {rank} in {listed(sorted(names[rank]))} ({counts[rank]} modules)"
        for rank in sorted(names)
    )


def _notes(config: AdapterConfig, found: Sequence[Pair], largest: Mapping[str, float]) -> list[str]:
    notes = []
    zero = [pair.module for pair in found if largest[pair.up.name] == 0]
    if zero:
        every = "all" if len(zero) == len(found) else str(len(zero))
        notes.append(
            f"{every} lora_B matrices are zero, so that they change nothing: {listed(zero)}"
        )
    for field, selector in (("rank_pattern", config.ranks), ("alpha_pattern", config.alphas)):
        used = {name for pair in found for name in selector.fitting(pair.module)}
        unused = [name for name in selector.values if name not in used]
        if unused:
            notes.append(f"{field} names modules that are not adapted: {listed(unused)}")
    return notes
