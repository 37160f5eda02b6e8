"""docs/methods.md, made from what the trainer says of itself. `python -m` writes it; nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from graft.trainer.v1 import methods_pb2 as pb

from services.trainer.describe import list_methods

DOCUMENT = Path("docs/methods.md")
_HEAD = """# Methods and objectives

Generated from `services/trainer/methods`, `services/trainer/objectives` and `services/trainer/chat_templates` by
`make docs`; change the code, not this file. `graft methods` prints the same. `yes`, and a format that is named, mean
that a job's spec is accepted; all else is refused when the job is submitted, with the reason and what works instead.
Every optimizer (`adamw`, `adamw_8bit`, `paged_adamw_8bit`) goes with every method and objective.
`tests/unit/trainer_worker/test_combinations.py` trains what is said to work.
"""


def document() -> str:
    """The whole page, in Markdown."""
    found = list_methods()
    parts = [
        _HEAD,
        "## Methods\n",
        *(_method(one) for one in found.methods),
        "## What goes together\n",
        _combinations(found.methods),
        "## Objectives\n",
        *(_objective(one) for one in found.objectives),
        _reading(found.objectives),
        "## Method with objective\n",
        _pairs(found.methods, found.objectives),
        "## Chat templates\n",
        "For `dataset.chat_template`; the base's own is used when it is left out.\n",
        _templates(found.chat_templates),
    ]
    return "\n".join(parts)


def _method(one: pb.MethodDescription) -> str:
    uses = ", ".join(one.uses) or "kept as a version, and loaded beside its base"
    return (
        f"**{one.title}** (`{one.kind}`). {one.summary} {one.source}.\n"
        f"Learning rate {one.learning_rate:g} ({one.learning_rate_source}). The result can be: {uses}.\n"
        f"{_settings(one.settings)}"
    )


def _objective(one: pb.ObjectiveDescription) -> str:
    return (
        f"**{one.title}** (`{one.kind}`). {one.summary} {one.source}. Learns from {one.needs}.\n"
        f"{_rates(one)}{_settings(one.settings)}"
    )


def _rates(one: pb.ObjectiveDescription) -> str:
    adapter, full = (
        f"{getattr(one, field):g}" if one.HasField(field) else "the method's own"
        for field in ("adapter_learning_rate", "full_learning_rate")
    )
    if adapter == full:
        return f"Learning rate: {adapter}.\n"
    return f"Learning rate {adapter} with an adapter, {full} with all parameters ({one.learning_rate_source}).\n"


def _settings(settings: Iterable[pb.SettingDescription]) -> str:
    words = [
        f"`{one.name}` " + ("(required)" if one.required else one.default_value) for one in settings
    ]
    return f"Settings, when left out: {', '.join(words)}.\n" if words else ""


def _combinations(methods: Iterable[pb.MethodDescription]) -> str:
    rows = [
        (
            f"`{one.kind}`",
            _quantized(one),
            "yes" if one.gradient_checkpointing else f"no: {one.checkpointing_note}",
            "yes" if one.packing else f"no: {one.packing_note}",
        )
        for one in methods
    ]
    return _table(("method", "quantized bases", "gradient checkpointing", "packing"), rows)


def _quantized(one: pb.MethodDescription) -> str:
    formats = ", ".join(one.quantizations) or "no"
    needed = "" if one.default_quantization == "none" else " (one is needed)"
    note = f": {one.quantization_note}" if one.quantization_note else ""
    return formats + needed + note


def _reading(objectives: Iterable[pb.ObjectiveDescription]) -> str:
    rows = [
        (
            f"`{one.kind}`",
            "by default" if one.packs_by_default else _yes(one.packing),
            _yes(one.streaming),
            f"no: {one.neftune_note}" if one.neftune_note else "yes",
        )
        for one in objectives
    ]
    return _table(("objective", "packing", "streaming", "NEFTune"), rows)


def _pairs(
    methods: Sequence[pb.MethodDescription], objectives: Sequence[pb.ObjectiveDescription]
) -> str:
    rows = []
    for method in methods:
        refused = {one.kind for one in method.refused_objectives}
        rows.append((f"`{method.kind}`", *(_yes(one.kind not in refused) for one in objectives)))
    reasons = [
        f"- `{one.kind}` with `{objective.kind}`: {one.reason}."
        for objective in objectives
        for one in objective.refused_methods
    ]
    head = ("method", *(f"`{one.kind}`" for one in objectives))
    return "\n".join([_table(head, rows), *reasons, ""])


def _templates(templates: Iterable[pb.ChatTemplateDescription]) -> str:
    rows = [(f"`{one.name}`", one.title, _yes(one.tools), one.source) for one in templates]
    return _table(("template", "format", "tools", "source"), rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
