"""`graft methods`: what a job's spec can name, what each takes when left out, and what goes together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated

import typer

from graft.cli.output import Output
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.methods import ChatTemplate, Method, Methods, Objective, Setting

_KEPT = "loaded beside its base"


def methods(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="One method, objective or template, shown whole.")
    ] = None,
    objectives: Annotated[
        bool, typer.Option("--objectives", help="What can be optimized for.")
    ] = False,
    templates: Annotated[
        bool, typer.Option("--templates", help="Chat templates that can be named.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show training methods: defaults, what they combine with, and what becomes of the result."""
    out = Output(as_json)
    if sum((name is not None, objectives, templates)) > 1:
        raise typer.BadParameter("give one of NAME, --objectives and --templates")

    async def work(client: Client) -> None:
        found = await client.methods()
        if name is not None:
            _show_one(out, _find(found, name))
        elif objectives:
            _list_objectives(out, found.objectives)
        elif templates:
            _list_templates(out, found.chat_templates)
        elif as_json:
            out.json(found)
        else:
            _list_methods(out, found.methods)

    run(ctx, out, work)


def _find(found: Methods, name: str) -> Method | Objective | ChatTemplate:
    everything: dict[str, Method | Objective | ChatTemplate] = {
        **{one.name: one for one in found.chat_templates},
        **{one.kind: one for one in found.objectives},
        **{one.kind: one for one in found.methods},
    }
    wanted = name.lower().replace("-", "_")
    if wanted in everything:
        return everything[wanted]
    close = get_close_matches(wanted, everything, 1)
    usual = [*(one.kind for one in found.methods), *(one.kind for one in found.objectives)]
    raise GraftError(
        Reason.INVALID_REQUEST,
        f"There is no method, objective or chat template {name!r}",
        next_step=f"Did you mean {close[0]}?" if close else f"Use one of {', '.join(usual)}.",
    )


def _list_methods(out: Output, methods: Iterable[Method]) -> None:
    out.table(
        (
            "method",
            "learning rate",
            "quantized base",
            "checkpointing",
            "packing",
            "result",
            "not with",
        ),
        [
            (
                one.kind,
                f"{one.learning_rate:g}",
                ", ".join(one.quantizations) or "no",
                _yes(one.gradient_checkpointing),
                _yes(one.packing),
                ", ".join(one.uses) or _KEPT,
                ", ".join(one.refused_objectives),
            )
            for one in methods
        ],
    )
    out.note("")
    out.note("`graft methods NAME` shows one whole; also --objectives and --templates.")


def _list_objectives(out: Output, objectives: Sequence[Objective]) -> None:
    if out.as_json:
        out.json(objectives)
        return
    out.table(
        ("objective", "learns from", "learning rate", "packing", "streaming", "not with"),
        [
            (
                one.kind,
                one.needs.partition(" (")[0],
                _rate(one.adapter_learning_rate),
                "by default" if one.packs_by_default else _yes(one.packing),
                _yes(one.streaming),
                ", ".join(one.refused_methods),
            )
            for one in objectives
        ],
    )


def _list_templates(out: Output, templates: Sequence[ChatTemplate]) -> None:
    if out.as_json:
        out.json(templates)
        return
    rows = [(one.name, one.title, _yes(one.tools), one.source) for one in templates]
    out.table(("template", "format", "tools", "source"), rows)


def _show_one(out: Output, one: Method | Objective | ChatTemplate) -> None:
    if out.as_json:
        out.json(one)
    elif isinstance(one, Method):
        _show_method(out, one)
    elif isinstance(one, Objective):
        _show_objective(out, one)
    else:
        out.fields(
            [
                ("template", one.name),
                ("format", one.title),
                ("source", one.source),
                ("tools", _yes(one.tools)),
            ]
        )


def _show_method(out: Output, one: Method) -> None:
    out.note(f"{one.title}: {one.summary}")
    quantized = ", ".join(one.quantizations) or "no"
    if one.default_quantization != "none":
        quantized += f"; {one.default_quantization} when left out"
    out.fields(
        [
            ("source", one.source),
            ("learning rate", f"{one.learning_rate:g} ({one.learning_rate_source})"),
            ("quantized base", _because(quantized, one.quantization_note)),
            (
                "gradient checkpointing",
                _because(_yes(one.gradient_checkpointing), one.checkpointing_note),
            ),
            ("packing", _because(_yes(one.packing), one.packing_note)),
            ("result", ", ".join(one.uses) or _KEPT),
            ("version of", "a base" if one.makes_base else "an adapter"),
        ]
    )
    _show_refusals(out, one.refused_objectives)
    _show_settings(out, f"method.{one.kind}", one.settings)


def _show_objective(out: Output, one: Objective) -> None:
    out.note(f"{one.title}: {one.summary}")
    full, adapter = _rate(one.full_learning_rate), _rate(one.adapter_learning_rate)
    out.fields(
        [
            ("source", one.source),
            ("learns from", one.needs),
            ("learning rate", f"{adapter} with an adapter, {full} with all parameters"),
            ("from", one.learning_rate_source),
            ("packing", "by default" if one.packs_by_default else _yes(one.packing)),
            ("streaming", _yes(one.streaming)),
        ]
    )
    _show_refusals(out, one.refused_methods)
    _show_settings(out, f"objective.{one.kind}", one.settings)


def _show_refusals(out: Output, refused: Mapping[str, str]) -> None:
    for kind, reason in refused.items():
        out.note(f"not with {kind}: {reason}")


def _show_settings(out: Output, path: str, settings: Iterable[Setting]) -> None:
    rows = [(f"{path}.{one.name}", "required" if one.required else one.default) for one in settings]
    if rows:
        out.note("")
        out.table(("setting", "when left out"), rows)


def _rate(rate: float | None) -> str:
    return "the method's" if rate is None else f"{rate:g}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _because(answer: str, note: str) -> str:
    return f"{answer}: {note}" if note else answer
