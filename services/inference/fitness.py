"""Whether a version fits this service's base and engine. That it is sound was the registry's to check."""

from __future__ import annotations

from collections.abc import Mapping

from graft.errors import GraftError, Reason

from services.inference.domain import AdapterVersion, Base
from services.inference.engines.base import Limits

_RANKED = ("LORA", "DORA")


def check_version(version: AdapterVersion, base: Base, limits: Limits) -> None:
    """By what the registry says of it.

    Raises:
        GraftError: WRONG_BASE, RANK_TOO_LARGE, ADAPTER_UNUSABLE.
    """
    if version.base_fingerprint != base.fingerprint:
        raise GraftError(
            Reason.WRONG_BASE,
            f"{version.name} was trained on another base ({version.base_fingerprint}) "
            f"than {base.name} ({base.fingerprint})",
            next_step="Ask the service that serves its base, or train it on this one.",
        )
    if limits.max_adapters == 0 and limits.takes_slot(version.peft_type):
        raise unusable(version, "this service serves the base alone (max_adapters=0)")
    if version.peft_type not in limits.kinds:
        served = ", ".join(sorted(limits.kinds))
        raise unusable(version, f"it is {version.peft_type}, and this engine serves {served}")
    _check_rank(version, version.rank, limits)


def check_config(version: AdapterVersion, config: Mapping[str, object], limits: Limits) -> None:
    """By its adapter_config.json, which is what the engine goes by.

    Raises:
        GraftError: RANK_TOO_LARGE, ADAPTER_UNUSABLE.
    """
    kind = kind_of(version.peft_type, config)
    if kind == "DORA" and kind not in limits.kinds:
        raise unusable(version, "it is a DoRA, whose magnitudes this engine does not apply")
    if config.get("modules_to_save"):
        raise unusable(version, "it brings fully trained modules, as a reward model does")
    if kind not in _RANKED:
        return
    pattern = config.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise unusable(version, "the rank_pattern of its adapter_config.json is not an object")
    for rank in (config.get("r"), *pattern.values()):
        if not isinstance(rank, int) or rank < 1:
            raise unusable(version, f"its adapter_config.json has the rank {rank!r}")
        _check_rank(version, rank, limits)


def kind_of(peft_type: str, config: Mapping[str, object]) -> str:
    """What an engine has to be able to compute: the PEFT type, and "DORA" for a LoRA with magnitudes."""
    return "DORA" if peft_type == "LORA" and config.get("use_dora") else peft_type


def unusable(version: AdapterVersion, why: str) -> GraftError:
    """ADAPTER_UNUSABLE, naming the version."""
    return GraftError(
        Reason.ADAPTER_UNUSABLE,
        f"{version.name} cannot be served: {why}",
        next_step="Commit a version with a plain LoRA for this engine.",
    )


def _check_rank(version: AdapterVersion, rank: int, limits: Limits) -> None:
    if rank > limits.max_rank:
        raise GraftError(
            Reason.RANK_TOO_LARGE,
            f"{version.name} has rank {rank}, and this engine takes up to {limits.max_rank}",
            next_step="Start it with a larger GRAFT_INFERENCE_MAX_LORA_RANK (vllm serve: --max-lora-rank).",
        )
