"""`graft plan` and `graft recommend`: what a job would take before it is started, and which job suits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.text import Text

from graft.cli.job_options import (
    BaseOption,
    BatchSizeOption,
    DataArgument,
    MaxLengthOption,
    ObjectiveOption,
    PackingOption,
    SpecOption,
    complete,
    given_options,
)
from graft.cli.output import Output, make_table, size
from graft.cli.session import JsonOption, run
from graft.cli.waiting import Waiting
from graft.client import Client
from graft.plan import Change, MemoryPlan, Plan, Recommendation, TimePlan

EXIT_DOES_NOT_FIT = 1
_BAR_WIDTH = 40
_PARTS = (
    ("weights", "weights_bytes"),
    ("adapter", "adapter_bytes"),
    ("gradients", "gradients_bytes"),
    ("optimizer", "optimizer_bytes"),
    ("activations", "activations_bytes"),
    ("overhead", "overhead_bytes"),
)
AcceleratorOption = Annotated[
    str, typer.Option(help="Plan for this card (H100, A10G, ...) or cpu, not the trainer's own.")
]


def plan(
    ctx: typer.Context,
    data: DataArgument = None,
    base: BaseOption = None,
    spec: SpecOption = None,
    method: Annotated[str | None, typer.Option(help="lora, qlora, full and so on.")] = None,
    objective: ObjectiveOption = None,
    accelerator: AcceleratorOption = "",
    probe: Annotated[
        bool, typer.Option(help="Try a few steps on the trainer's machine, to know the time.")
    ] = True,
    rank: Annotated[int | None, typer.Option(help="Of the low-rank update.")] = None,
    quantization: Annotated[str | None, typer.Option(help="none, nf4, fp4 or int8.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead.")] = None,
    micro_batch_size: BatchSizeOption = None,
    gradient_accumulation_steps: Annotated[
        int | None, typer.Option("--accumulate", help="Forward passes per optimizer step.")
    ] = None,
    max_length_tokens: MaxLengthOption = None,
    packing: PackingOption = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--checkpointing/--no-checkpointing")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adamw, adamw_8bit or paged_adamw_8bit.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what training on DATA would take: parameters, memory, time, and what makes it fit.

    Exit codes: 0 it fits, 1 it does not.
    """
    out, chosen = Output(as_json), given_options(ctx.params)

    async def work(client: Client) -> int:
        complete(chosen, client, spec)
        with Waiting(out) as waiting:
            found = await client.plan(
                spec, accelerator=accelerator, probe=probe, on_stage=waiting.show, **chosen
            )
        if as_json:
            out.json(found)
        else:
            show_plan(out, found)
        return 0 if found.fits else EXIT_DOES_NOT_FIT

    run(ctx, out, work)


def recommend(
    ctx: typer.Context,
    data: DataArgument = None,
    base: BaseOption = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", "-a", help="What the spec calls the adapter.")
    ] = None,
    output_base: Annotated[
        str | None,
        typer.Option(help="Name of a new base, when all parameters are to be trained."),
    ] = None,
    spec: SpecOption = None,
    objective: ObjectiveOption = None,
    accelerator: AcceleratorOption = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the spec to this YAML file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose a method and hyperparameters for a base, DATA and a card, and say why.

    Exit codes: 0 it fits, 1 nothing fits.
    """
    out, chosen = Output(as_json), given_options(ctx.params)

    async def work(client: Client) -> int:
        complete(chosen, client, spec)
        with Waiting(out) as waiting:
            found = await client.recommend(
                spec, accelerator=accelerator, on_stage=waiting.show, **chosen
            )
        if output is not None:
            output.write_text(_yaml(found), "utf-8")
        if as_json:
            out.json(found)
        else:
            show_recommendation(out, found, output)
        return 0 if found.plan.fits else EXIT_DOES_NOT_FIT

    run(ctx, out, work)


def show_plan(out: Output, plan: Plan) -> None:
    """The plan for people: parameters, time, memory as bars, the verdict and what to change."""
    share = plan.trained_parameters / max(plan.total_parameters, 1)
    data = plan.data
    out.fields(
        [
            (
                "parameters",
                f"{plan.trained_parameters:,} trained of {plan.total_parameters:,} ({share:.2%})",
            ),
            (
                "data",
                f"{data.rows:,} rows, {data.tokens:,} tokens, the longest sequence has {data.longest_tokens:,}",
            ),
            ("steps", f"{data.total_steps:,}"),
            ("time", _time(plan.time)),
            ("hardware", f"{plan.hardware.name}, {size(plan.hardware.memory_bytes)}"),
        ]
    )
    out.note("")
    out.show(_memory(plan.memory, plan.hardware.memory_bytes))
    if plan.measured_peak_bytes:
        out.note(f"The probe's peak was {size(plan.measured_peak_bytes)}.")
    out.note("")
    for note in plan.notes:
        out.show(Text("note: ", "bold blue") + Text(note))
    _verdict(out, plan)


def _time(time: TimePlan | None) -> str:
    if time is None:
        return "not known without a probe"
    how = "tried here" if time.source == "probe" else "rough, from the card's published figures"
    return f"{_duration(time.total_seconds)} at {time.tokens_per_second:,.0f} tokens/s ({how})"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _memory(memory: MemoryPlan, available_bytes: int) -> Any:
    scale = max(memory.total_bytes, 1)
    rows: list[tuple[object, ...]] = []
    for name, field in _PARTS:
        value = getattr(memory, field)
        if value:
            width = round(value / scale * _BAR_WIDTH)
            rows.append((name, size(value), Text("█" * width or "▏", "cyan")))
    enough = memory.total_bytes <= available_bytes
    total = Text(size(memory.total_bytes), "bold" if enough else "bold red")
    share = memory.total_bytes / max(available_bytes, 1)
    rows.append((Text("peak", "bold"), total, f"{share:.0%} of {size(available_bytes)}"))
    return make_table(("memory", "", ""), rows)


def _verdict(out: Output, plan: Plan) -> None:
    if plan.fits:
        out.show(Text("it fits", "bold green"))
        return
    if not plan.changes:
        out.show(Text("it does not fit, and no change of the spec makes it fit", "bold red"))
        out.note("Use a smaller base, or a card with more memory (--accelerator plans for one).")
        return
    out.show(Text("it does not fit; it does with", "bold red"))
    out.table(("change", "costs", "peak then"), [_change(one) for one in plan.changes])


def _change(change: Change) -> tuple[str, str, str]:
    settings = ", ".join(f"{field}: {value}" for field, value in change.settings.items())
    return settings, change.cost, size(change.memory.total_bytes)


def show_recommendation(out: Output, found: Recommendation, written: Path | None) -> None:
    """The recommendation for people: choices with reasons, the plan, and the spec."""
    rows = [(one.field, one.value, one.why, Text(one.source, "dim")) for one in found.choices]
    out.table(("field", "value", "why", "source"), rows)
    out.note("")
    show_plan(out, found.plan)
    out.note("")
    if written is None:
        out.note(_yaml(found))
    else:
        out.note(f"Written to {written}; start it with `graft train -f {written}`.")


def _yaml(found: Recommendation) -> str:
    lines = [f"# {one.field}: {one.why} ({one.source})" for one in found.choices]
    return "\n".join(lines) + "\n" + yaml.safe_dump(dict(found.spec), sort_keys=False)
