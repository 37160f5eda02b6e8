"""Blends: several adapters with weights, named as one model, as in `0.7*bot@production+0.3*tone:2~ties~density=0.5`.

What a blend is called, and how its adapters become one. Nothing is computed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Self

from graft.errors import GraftError, Reason
from graft.names import DEFAULT_NAMESPACE, ModelReference

MAX_PARTS = 8
_MAX_CHARACTERS = 2048
_MAX_WEIGHT, _PLACES = 1000, 6
_MAX_RANK, _MAX_SEED = 4096, 2**63 - 1
DEFAULT_KIND, DEFAULT_DENSITY = "cat", 0.5
_PLAIN = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
KINDS = ("cat", "svd", *_PLAIN, *(f"{kind}_svd" for kind in _PLAIN[1:]))
# What people call them.
_ALSO = {"dare": "dare_linear", "dare_svd": "dare_linear_svd", "sum": "cat"}
_NUMBER = re.compile(rf"(-?)([0-9]{{1,4}}(?:\.[0-9]{{1,{_PLACES}}})?|\.[0-9]{{1,{_PLACES}}})")
_WHOLE = re.compile(r"[0-9]{1,19}")
_EXAMPLE = "0.7*bot@production+0.3*tone:2"


@dataclass(frozen=True, slots=True)
class Combining:
    """How several adapters become one, in the terms of PEFT's add_weighted_adapter.

    Attributes:
        kind: one of KINDS.
        density: share of the numbers that ties, dare and magnitude_prune keep.
        rank: of the result, for the kinds that end with svd; 0 is the largest of the adapters'.
        seed: of the draws of dare.
    """

    kind: str
    density: float = DEFAULT_DENSITY
    rank: int = 0
    seed: int = 0

    @property
    def needs_equal_ranks(self) -> bool:
        """Whether it adds A to A and B to B."""
        return self.kind in _PLAIN

    @property
    def is_sum(self) -> bool:
        """Whether the weighted sum of the updates is what it stands for."""
        return self.kind in ("linear", "cat", "svd")

    @property
    def chooses_rank(self) -> bool:
        """Whether its result is cut to a rank."""
        return self.kind.endswith("svd")

    @property
    def draws(self) -> bool:
        """Whether it drops numbers at random."""
        return self.kind.startswith("dare")

    def rank_of(self, ranks: Iterable[int]) -> int:
        """The rank of the result, of adapters with these."""
        ranks = list(ranks)
        return sum(ranks) if self.kind == "cat" else self.rank or max(ranks)


@dataclass(frozen=True, slots=True)
class WeightedReference:
    """An adapter among others; what its update is multiplied by is not 0, and may be below."""

    reference: ModelReference
    weight: float

    def __str__(self) -> str:
        return f"{weight_text(self.weight)}*{self.reference}"


@dataclass(frozen=True, slots=True)
class BlendReference:
    """A blend as a request names it, in its one canonical form: parts in the order of their names."""

    parts: tuple[WeightedReference, ...]
    how: Combining

    @classmethod
    def make(cls, parts: Iterable[WeightedReference], how: Combining) -> Self:
        """Puts parts in order and adds the weights of one that is named twice.

        Raises:
            GraftError: INVALID_REFERENCE.
        """
        return cls(tuple(_united(parts, str(how.kind))), how)

    @classmethod
    def parse(cls, text: str, namespace: str = DEFAULT_NAMESPACE) -> Self:
        """Reads `[weight*]adapter[+[weight*]adapter...][~kind[~density=D][~rank=R][~seed=S]]`.

        A weight is 1 when left out, the kind cat: the exact weighted sum of the updates.

        Raises:
            GraftError: INVALID_REFERENCE, naming the part.
        """
        if len(text) > _MAX_CHARACTERS:
            raise invalid_blend(
                f"{text[:40]!r}... has {len(text)} characters",
                f"Name a blend in at most {_MAX_CHARACTERS}.",
            )
        summed, *options = text.split("~")
        pieces = summed.split("+")
        if len(pieces) > MAX_PARTS:
            raise invalid_blend(
                f"{text!r} blends {len(pieces)} adapters, and {MAX_PARTS} may be",
                "Register a blend of some with `graft adapters blend`, and blend it with the others.",
            )
        how = _combining(text, options)
        return cls.make((_part(piece, text, namespace) for piece in pieces), how)

    def __str__(self) -> str:
        summed = "+".join(str(part) for part in self.parts)
        return f"{summed}{_suffix(self.how)}"


def is_blend(text: str) -> bool:
    """Whether a model's name is meant to be a blend: no other reference has one of these characters."""
    return any(mark in text for mark in "*+~")


def combining(kind: str = "", density: float = 0.0, rank: int = 0, seed: int = 0) -> Combining:
    """A way of combining with its defaults; 0 and "" count as left out.

    Raises:
        GraftError: INVALID_REFERENCE.
    """
    name = _ALSO.get(kind, kind or DEFAULT_KIND)
    if name not in KINDS:
        raise invalid_blend(f"{kind!r} is no way to blend adapters", f"Use {', '.join(KINDS)}.")
    made = Combining(name, round(density, _PLACES) if density else DEFAULT_DENSITY, rank, seed)
    if density and made.is_sum:
        raise invalid_blend(f"density is set, and {name} drops nothing", "Leave it out.")
    if not 0 < made.density <= 1:
        raise invalid_blend(f"density is {density:g}", "Use a share above 0, up to 1.")
    if rank and not made.chooses_rank:
        raise invalid_blend(
            f"rank is set, and {name} does not choose one", "Leave it out, or use svd."
        )
    if not 0 <= rank <= _MAX_RANK:
        raise invalid_blend(f"rank is {rank}", f"Use 1 to {_MAX_RANK}.")
    if seed and not made.draws:
        raise invalid_blend(f"seed is set, and {name} draws nothing", "Leave it out, or use dare.")
    if not 0 <= seed <= _MAX_SEED:
        raise invalid_blend(f"seed is {seed}", f"Use 0 to {_MAX_SEED}.")
    return made


def canonical_weight(weight: float, of: str) -> float:
    """A weight to the places that a blend's name shows.

    Raises:
        GraftError: INVALID_REFERENCE, for what is 0, too large or no number.
    """
    # Written so that a NaN fails, too.
    if not abs(weight) <= _MAX_WEIGHT:
        raise invalid_blend(f"{of} has the weight {weight:g}", f"Use at most {_MAX_WEIGHT}.")
    rounded = round(weight, _PLACES)
    if not rounded:
        raise invalid_blend(f"{of} has the weight 0", "Leave it out of the blend.")
    return rounded


def weight_text(weight: float) -> str:
    """A weight as the canonical form has it: no exponent, and no zeros at its end."""
    return f"{weight:.{_PLACES}f}".rstrip("0").rstrip(".")


def blend_text(parts: Mapping[str, float], how: Combining) -> str:
    """The canonical form of a blend of references that are known to be right."""
    summed = "+".join(f"{weight_text(parts[name])}*{name}" for name in sorted(parts))
    return summed + _suffix(how)


def invalid_blend(what: str, next_step: str) -> GraftError:
    """INVALID_REFERENCE."""
    return GraftError(Reason.INVALID_REFERENCE, what, next_step=next_step)


def _suffix(how: Combining) -> str:
    words = []
    if not how.is_sum and how.density != DEFAULT_DENSITY:
        words.append(f"density={weight_text(how.density)}")
    if how.rank:
        words.append(f"rank={how.rank}")
    if how.seed:
        words.append(f"seed={how.seed}")
    if how.kind != DEFAULT_KIND or words:
        words.insert(0, how.kind)
    return "".join(f"~{word}" for word in words)


def _united(parts: Iterable[WeightedReference], kind: str) -> list[WeightedReference]:
    found: dict[str, WeightedReference] = {}
    for part in parts:
        name = str(part.reference)
        before = found.get(name)
        weight = part.weight if before is None else before.weight + part.weight
        found[name] = replace(part, weight=weight)
    return [
        replace(found[name], weight=canonical_weight(found[name].weight, name))
        for name in sorted(found)
    ]


def _part(piece: str, text: str, namespace: str) -> WeightedReference:
    before, found, after = piece.rpartition("*")
    reference = after.strip()
    if not reference:
        raise invalid_blend(
            f"{text!r} has a part that names no adapter", f"Write it as {_EXAMPLE}."
        )
    weight = _number(before.strip(), f"The weight of {reference}") if found else 1.0
    try:
        named = ModelReference.parse(reference, namespace)
    except GraftError:
        raise invalid_blend(
            f"{reference[:80]!r} in {text!r} is not an adapter", f"Write the blend as {_EXAMPLE}."
        ) from None
    return WeightedReference(named, canonical_weight(weight, reference))


def _combining(text: str, options: list[str]) -> Combining:
    kind, *settings = options or [""]
    given: dict[str, str] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in ("density", "rank", "seed") or name in given:
            raise invalid_blend(
                f"{setting[:40]!r} in {text!r} is no setting of a blend, or is there twice",
                "Write ~density=0.5, ~rank=16 or ~seed=1 after the kind.",
            )
        given[name] = value
    if options and not kind:
        raise invalid_blend(f"{text!r} names no kind after its ~", f"Use {', '.join(KINDS)}.")
    density = _number(given["density"], "density") if "density" in given else 0.0
    rank, seed = (_whole(given[name], name) if name in given else 0 for name in ("rank", "seed"))
    for name, amount in (("density", density), ("rank", rank)):
        if name in given and not amount:
            raise invalid_blend(f"{name} is 0 in {text!r}", "Leave it out, or use more than 0.")
    return combining(kind, density, rank, seed)


def _number(text: str, what: str) -> float:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise invalid_blend(
            f"{what} is {text[:40]!r}",
            f"Write a plain number of at most {_MAX_WEIGHT} with at most {_PLACES} decimals, as 0.7.",
        )
    return float(Decimal(text))


def _whole(text: str, what: str) -> int:
    if _WHOLE.fullmatch(text) is None:
        raise invalid_blend(f"{what} is {text[:40]!r}", "Write a whole number.")
    return int(text)
