"""docs/methods.md, made from what methods and objectives say of themselves. `python -m` writes it; not for spec checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from services.trainer.methods import METHODS, MethodInfo
from services.trainer.objectives import OBJECTIVES, ObjectiveInfo

DOCUMENT = Path("docs/methods.md")
_HEAD = """# Methods and objectives

Generated from `services/trainer/methods` and `services/trainer/objectives` by `make docs`; change the code, not
this file. `yes`, and a format that is named, mean that a job's spec is accepted; all else is refused when the job is
submitted, with the reason.
"""


def document() -> str:
    """The whole page, in Markdown."""
    methods = [method.info for method in METHODS.values()]
    objectives = [objective.info for objective in OBJECTIVES.values()]
    parts = [
        _HEAD,
        "## Methods\n",
        *(_method(info) for info in methods),
        "## What goes together\n",
        _combinations(methods),
        "## Objectives\n",
        *(_objective(info) for info in objectives),
        "## Method with objective\n",
        _pairs(methods, objectives),
    ]
    return "\n".join(parts)


def _method(info: MethodInfo) -> str:
    uses = ", ".join(sorted(info.uses)) or "kept as a version, and loaded beside its base"
    return (
        f"**{info.title}** (`{info.kind}`). {info.summary} {info.source}.\n"
        f"Learning rate {info.learning_rate:g} ({info.learning_rate_source}). The result can be: {uses}.\n"
    )


def _objective(info: ObjectiveInfo) -> str:
    return f"**{info.title}** (`{info.kind}`). {info.summary} {info.source}. Learns from {info.needs}.\n"


def _combinations(methods: Iterable[MethodInfo]) -> str:
    rows = [
        (
            f"`{info.kind}`",
            _quantized(info),
            "yes" if info.gradient_checkpointing else f"no: {info.checkpointing_note}",
            "yes" if info.packing else f"no: {info.packing_note}",
        )
        for info in methods
    ]
    return _table(("method", "quantized bases", "gradient checkpointing", "packing"), rows)


def _quantized(info: MethodInfo) -> str:
    formats = ", ".join(sorted(info.quantizations)) or "no"
    needed = "" if info.default_quantization == "none" else " (one is needed)"
    note = f": {info.quantization_note}" if info.quantization_note else ""
    return formats + needed + note


def _pairs(methods: Sequence[MethodInfo], objectives: Sequence[ObjectiveInfo]) -> str:
    rows = [
        (
            f"`{method.kind}`",
            *("no" if method.kind in o.refused_methods else "yes" for o in objectives),
        )
        for method in methods
    ]
    reasons = [
        f"- `{kind}` with `{objective.kind}`: {why}."
        for objective in objectives
        for kind, why in objective.refused_methods.items()
    ]
    return "\n".join([_table(("method", *(f"`{o.kind}`" for o in objectives)), rows), *reasons, ""])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
