"""What a merge's spec asks for, checked and with its defaults. No torch, and nothing of the registry, here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graft.blends import Combining
from graft.errors import GraftError, Reason
from graft.trainer.v1 import conversion_pb2 as pb
from graft.trainer.v1.model_jobs_pb2 import MergeSpec

from services.trainer.fields import choice, identifier, integer, invalid_field, one_of, positive
from services.trainer.spec.paths import local_path

_DTYPES = ("auto", "bfloat16", "float16", "float32")
_GGUF_TYPES = ("f16", "bf16", "f32", "q8_0")
_MOST_WEIGHT = 1e3


@dataclass(frozen=True, slots=True)
class Source:
    """A version that takes part, and its weight among others."""

    version: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ProofSettings:
    """What is compared on; a limit of 0 is the usual one."""

    texts: tuple[str, ...]
    max_tokens: int
    max_relative_rms: float
    skip: bool


@dataclass(frozen=True, slots=True)
class Exporting:
    """Files in place of a version; gguf_type is "" for a folder."""

    path: Path
    gguf_type: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is made of what.

    Attributes:
        sources: at least one version.
        combining: set where there are several.
        plain_rank: rank of a plain LoRA that is not exact; 0 where none is made.
        output_base, output_adapter, export: exactly one of them.
        dtype: of the merged weights.
        requantization: "none", "nf4" or "w4a16".
    """

    sources: tuple[Source, ...]
    combining: Combining | None
    plain_rank: int
    output_base: str
    output_adapter: str
    export: Exporting | None
    dtype: str
    requantization: str
    proof: ProofSettings


def parse_recipe(spec: MergeSpec) -> Recipe:
    """Checks every field.

    Raises:
        GraftError: INVALID_SPEC; BAD_DATA, when the proof's texts cannot be read.
    """
    sources = _sources(spec)
    recipe = Recipe(
        sources=sources,
        combining=_combining(spec, len(sources)),
        plain_rank=integer("plain_lora.rank", spec.plain_lora.rank, 16, 1, 4096)
        if spec.HasField("plain_lora")
        else 0,
        output_base=spec.output_base and identifier("output_base", spec.output_base),
        output_adapter=spec.output_adapter and identifier("output_adapter", spec.output_adapter),
        export=_export(spec.export) if spec.HasField("export") else None,
        dtype=choice("dtype", spec.dtype, _DTYPES),
        requantization=_word(
            "requantization", pb.Requantization.items(), spec.requantization, "none"
        ),
        proof=_proof(spec),
    )
    _check_outputs(recipe)
    return recipe


def _sources(spec: MergeSpec) -> tuple[Source, ...]:
    if bool(spec.version) == bool(spec.versions):
        raise _spec_error(
            "Both version and versions are set"
            if spec.version
            else "version is empty; it must name a version",
            "Write bot:3, bot@production, bases/name:2 or a full name in version; several adapters in versions.",
            "version",
        )
    if spec.version:
        return (Source(spec.version),)
    found = []
    for index, one in enumerate(spec.versions):
        weight = one.weight if one.HasField("weight") else 1.0
        if not one.version or not 0 < abs(weight) <= _MOST_WEIGHT:
            raise invalid_field(
                f"versions[{index}]",
                f"{one.version}={weight:g}",
                f"a version with a weight that is not 0 and within {_MOST_WEIGHT:g}",
            )
        found.append(Source(one.version, weight))
    return tuple(found)


def _combining(spec: MergeSpec, count: int) -> Combining | None:
    if count == 1:
        if spec.HasField("combination"):
            raise _spec_error(
                "combination is set, and there is one adapter",
                "Name the adapters that become one in versions.",
                "combination",
            )
        return None
    given = spec.combination
    kind = _word("combination.kind", pb.CombinationKind.items(), given.kind, "linear")
    made = Combining(
        kind=kind,
        density=positive("combination.density", given.density, 0.5, 1.0),
        rank=integer("combination.rank", given.rank, 0, 0, 4096),
        seed=given.seed,
    )
    if given.rank and not kind.endswith("svd"):
        raise _spec_error(
            f"combination.rank is set, and {kind} does not choose one",
            "Leave it out, or use a kind that ends with svd.",
            "combination.rank",
        )
    if given.density and kind in ("linear", "cat", "svd"):
        raise _spec_error(
            f"combination.density is set, and {kind} drops nothing",
            "Leave it out, or use ties, dare or magnitude_prune.",
            "combination.density",
        )
    return made


def _export(given: pb.ExportSpec) -> Exporting:
    kind = _word("export.format", pb.ExportFormat.items(), given.format, "folder")
    path = local_path(given.path).absolute() if given.path.strip() else None
    if path is None or path.exists():
        why = "exists already" if path else "is empty"
        raise _spec_error(
            f"export.path {given.path} {why}".replace("  ", " "),
            "Name a new folder, or a new .gguf file.",
            "export.path",
        )
    if given.gguf_type and kind != "gguf":
        raise _spec_error(
            "export.gguf_type is set, and export.format is folder",
            "Set export.format to gguf, or choose the weights' type by dtype.",
            "export.gguf_type",
        )
    return Exporting(
        path, choice("export.gguf_type", given.gguf_type, _GGUF_TYPES) if kind == "gguf" else ""
    )


def _proof(spec: MergeSpec) -> ProofSettings:
    given = spec.proof
    texts = [*given.texts]
    if given.text_file:
        texts += _lines(local_path(given.text_file))
    return ProofSettings(
        texts=tuple(text for text in texts if text.strip()),
        max_tokens=integer("proof.max_tokens", given.max_tokens, 512, 8, 65536),
        max_relative_rms=positive("proof.max_relative_rms", given.max_relative_rms, 1e-12, 1e6)
        if given.max_relative_rms
        else 0.0,
        skip=spec.skip_check,
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GraftError(
            Reason.BAD_DATA,
            f"proof.text_file {path} cannot be read ({error})",
            next_step="Name a UTF-8 file with one text per line.",
            path=path,
        ) from None


def _check_outputs(recipe: Recipe) -> None:
    outputs = {
        "output_base": bool(recipe.output_base),
        "output_adapter": bool(recipe.output_adapter),
        "export": recipe.export is not None,
    }
    named = [name for name, given in outputs.items() if given]
    if len(named) != 1:
        raise _spec_error(
            f"{' and '.join(named)} are set" if named else "output_base is empty",
            f"Set exactly one of {one_of(tuple(outputs))}: it says what is made.",
            named[0] if named else "output_base",
        )
    wanted = recipe.requantization != "none" or recipe.dtype != "auto"
    if recipe.output_adapter:
        if wanted:
            raise _spec_error(
                "dtype or requantization is set, and an adapter is made",
                "Leave them out: they are about merged weights.",
                "requantization",
            )
        if recipe.combining is None and not recipe.plain_rank:
            raise _spec_error(
                "output_adapter is set, and nothing would be changed",
                "Name several adapters in versions, or set plain_lora.",
                "output_adapter",
            )
        if recipe.combining is not None and recipe.plain_rank:
            raise _spec_error(
                "plain_lora is set, and several adapters are combined",
                "Leave it out: a combination is a plain LoRA.",
                "plain_lora",
            )
    elif recipe.plain_rank:
        raise _spec_error(
            "plain_lora is set, and no adapter is made",
            "Set output_adapter; a merge needs no conversion.",
            "plain_lora",
        )
    if recipe.export is not None and recipe.export.gguf_type and wanted:
        raise _spec_error(
            "dtype or requantization is set, and a GGUF file is made",
            "Choose export.gguf_type in place of it.",
            "export.gguf_type",
        )


def _word(path: str, items: Sequence[tuple[str, int]], value: int, default: str) -> str:
    """An enum's value as its short name in lower case."""
    prefix = items[0][0].removesuffix("UNSPECIFIED")
    names = {number: name.removeprefix(prefix).lower() for name, number in items if number}
    if not value:
        return default
    if value not in names:
        raise invalid_field(path, value, one_of(tuple(names.values())))
    return names[value]


def _spec_error(what: str, next_step: str, field: str) -> GraftError:
    return GraftError(Reason.INVALID_SPEC, what, next_step=next_step, field=field)
