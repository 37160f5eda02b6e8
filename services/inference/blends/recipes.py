"""From what a request names to the version that is derived of it: which parts, by which digest, and whether it can be.

Decided by what the registry says of the parts, before anything is fetched or computed.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graft.blends import (
    BlendReference,
    Combining,
    WeightedReference,
    blend_text,
    canonical_weight,
    invalid_blend,
    weight_text,
)
from graft.digests import digest_bytes
from graft.errors import GraftError, Reason
from graft.names import DEFAULT_NAMESPACE

from services.combining.plain import NotCombinableError, check_ranks
from services.inference.domain import AdapterVersion, Base, Blend, BlendPart
from services.inference.engines.base import Limits

# Enough that nobody finds two blends with the same name.
_NAME_DIGITS = 32
Resolve = Callable[[str], Awaitable[AdapterVersion | None]]


class Recipes:
    """The blends of one base.

    Args:
        limits: of the engine, now.
        code: what computes blends, of Blender.code.
    """

    def __init__(self, base: Base, limits: Callable[[], Limits], code: str) -> None:
        self._base, self._limits, self._code = base, limits, code

    async def derive(self, blend: BlendReference, resolve: Resolve) -> AdapterVersion:
        """The version that a blend means now.

        A single adapter with the weight 1 in an exact sum is that adapter's own version.

        Args:
            resolve: what an adapter's reference means now.

        Raises:
            GraftError: of resolve; INVALID_REFERENCE, WRONG_BASE, ADAPTER_UNUSABLE, RANK_TOO_LARGE,
                each naming the part.
        """
        found: dict[str, BlendPart] = {}
        for part in blend.parts:
            version = await self._version(blend, part, resolve)
            before = found.get(version.name)
            weight = part.weight + (0.0 if before is None else before.weight)
            found[version.name] = BlendPart(version, weight)
        parts = tuple(
            replace(one, weight=canonical_weight(one.weight, one.version.reference))
            for _, one in sorted(found.items())
        )
        if len(parts) == 1 and parts[0].weight == 1 and blend.how.kind in ("linear", "cat"):
            return parts[0].version
        return self._derived(parts, blend.how)

    async def _version(
        self, blend: BlendReference, part: WeightedReference, resolve: Resolve
    ) -> AdapterVersion:
        reference = part.reference
        # With its namespace in any case: the default one is not always the one that is served.
        text = f"{reference.namespace}/{replace(reference, namespace=DEFAULT_NAMESPACE)}"
        try:
            version = await resolve(text)
        except GraftError as error:
            raise _of_part(
                blend, part, error.reason, error.message, error.next_step, error.metadata
            ) from None
        if version is None:
            raise invalid_blend(
                f"{blend} names the base {reference.name!r}, which is in every answer already",
                "Name adapters alone; weights need not add up to 1.",
            )
        if version.base_fingerprint != self._base.fingerprint:
            raise _of_part(
                blend, part, Reason.WRONG_BASE,
                f"{version.name} was trained on another base ({version.base_fingerprint}) than "
                f"{self._base.name} ({self._base.fingerprint})",
                "Blend adapters of the base that is served here.",
            )  # fmt: skip
        if version.peft_type != "LORA":
            raise _of_part(
                blend, part, Reason.ADAPTER_UNUSABLE,
                f"{version.name} is {version.peft_type}, and LoRA adapters alone are blended",
                "Make a plain LoRA of it first: graft convert.",
            )  # fmt: skip
        return version

    def _derived(self, parts: Sequence[BlendPart], how: Combining) -> AdapterVersion:
        weights = {one.version.reference: one.weight for one in parts}
        reference = blend_text(weights, how)
        ranks = {one.version.reference: one.version.rank for one in parts}
        try:
            check_ranks(ranks, how)
        except NotCombinableError as error:
            raise GraftError(
                Reason.ADAPTER_UNUSABLE,
                f"{reference} cannot be served: {error}",
                next_step=error.next_step,
            ) from None
        rank, most = how.rank_of(ranks.values()), self._limits().max_rank
        if rank > most:
            said = ", ".join(f"{name} has {one}" for name, one in ranks.items())
            raise GraftError(
                Reason.RANK_TOO_LARGE,
                f"{reference} has rank {rank}, and this engine takes up to {most}: {said}",
                next_step=f"Cut it to a rank: ~svd~rank={most}.",
            )
        digest = self._digest(parts, how, rank)
        adapters = "+".join(sorted({one.version.adapter_id for one in parts}))
        adapter = f"namespaces/{self._base.namespace}/blends/{adapters}"
        return AdapterVersion(
            name=f"{adapter}/versions/{digest.removeprefix('sha256:')[:_NAME_DIGITS]}",
            adapter=adapter,
            number=0,
            digest=digest,
            base_fingerprint=self._base.fingerprint,
            peft_type="LORA",
            rank=rank,
            files=(),
            blend=Blend(reference, tuple(parts), how),
        )

    def _digest(self, parts: Sequence[BlendPart], how: Combining, rank: int) -> str:
        """Of all that decides the files, and of nothing else."""
        recipe = {
            "code": self._code,
            "base": self._base.fingerprint,
            "kind": how.kind,
            "density": "" if how.is_sum else weight_text(how.density),
            "rank": rank,
            "seed": how.seed if how.draws else 0,
            "parts": [[one.version.digest, weight_text(one.weight)] for one in parts],
        }
        return digest_bytes(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode())


def _of_part(
    blend: BlendReference,
    part: WeightedReference,
    reason: Reason,
    what: str,
    next_step: str,
    metadata: Mapping[str, Any] | None = None,
) -> GraftError:
    said = {**(metadata or {}), "part": str(part.reference)}
    return GraftError(reason, f"{blend} cannot be served: {what}", next_step=next_step, **said)
