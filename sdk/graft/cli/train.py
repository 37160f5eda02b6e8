"""`graft train`: starts a job and shows it until it ends."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from graft.cli.follow import follow
from graft.cli.output import Output
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.endpoints import graft_home, served_base
from graft.errors import GraftError, Reason
from graft.jobs import JobHandle
from graft.results import short_id
from graft.specs import TrainOptions, is_elsewhere

_LORA, _LOOP, _DATA = "Adapter", "Optimization", "Data"


def train(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="A .json, .jsonl, .csv, .parquet or .arrow file, a folder, hf://owner/name or s3://bucket/key."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Folder of the base model, or a hub id; what `graft up` serves."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", "-a", help="The adapter that gets a new version.")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(help="Points at the new version, for example production.")
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Job spec in YAML or JSON; options override it."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="lora, qlora, dora, full and so on: see `graft methods`.", rich_help_panel=_LORA
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="sft, cpt, dpo, kto, orpo, grpo, reward or distillation.", rich_help_panel=_LOOP
        ),
    ] = None,
    output_base: Annotated[
        str | None,
        typer.Option(
            help="With --method full: the base that gets a new version.", rich_help_panel=_LORA
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(rich_help_panel=_LORA)] = None,
    alpha: Annotated[float | None, typer.Option(rich_help_panel=_LORA)] = None,
    dropout: Annotated[float | None, typer.Option(rich_help_panel=_LORA)] = None,
    target_modules: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="Module to adapt, for example q_proj; repeat it.",
            rich_help_panel=_LORA,
        ),
    ] = None,
    qlora: Annotated[
        bool | None,
        typer.Option(
            "--qlora/--no-qlora", help="Hold the base in 4-bit NF4.", rich_help_panel=_LORA
        ),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(help="Hold the base in none, nf4, fp4 or int8.", rich_help_panel=_LORA),
    ] = None,
    epochs: Annotated[float | None, typer.Option(rich_help_panel=_LOOP)] = None,
    max_steps: Annotated[int | None, typer.Option(rich_help_panel=_LOOP)] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="Peak learning rate.", rich_help_panel=_LOOP)
    ] = None,
    micro_batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", help="Sequences per forward pass.", rich_help_panel=_LOOP),
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None, typer.Option("--gradient-accumulation", rich_help_panel=_LOOP)
    ] = None,
    max_length_tokens: Annotated[
        int | None,
        typer.Option("--max-length", help="Longest sequence in tokens.", rich_help_panel=_LOOP),
    ] = None,
    packing: Annotated[
        bool | None,
        typer.Option(
            "--packing/--no-packing", help="Several rows in one sequence.", rich_help_panel=_LOOP
        ),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="linear, cosine or constant.", rich_help_panel=_LOOP)
    ] = None,
    seed: Annotated[int | None, typer.Option(rich_help_panel=_LOOP)] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="alpaca, sharegpt, messages, prompt_completion, text, preference, kto or prompt; "
            "found out if not given.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    eval_fraction: Annotated[
        float | None, typer.Option(help="Rows held out, 0 to 0.5.", rich_help_panel=_DATA)
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(help="Only the first rows.", rich_help_panel=_DATA)
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--template",
            help="A named chat template instead of the base's own.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    loss_on: Annotated[
        str | None,
        typer.Option(help="assistant, last_turn or everything.", rich_help_panel=_DATA),
    ] = None,
    upload: Annotated[
        bool,
        typer.Option(help="Send the data along, for a trainer elsewhere.", rich_help_panel=_DATA),
    ] = False,
    slots: Annotated[int | None, typer.Option(help="Accelerators to use.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Start the job and come back.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train on DATA. Ctrl-C asks whether to detach or cancel.

    Exit codes: 0 done, 64 bad config, 65 bad data, 66 out of memory, 67 refused by the registry,
    70 internal, 79 cancelled.
    """
    # Parameters that a spec has too are named as in TrainOptions.
    out, chosen = Output(as_json), given_options(ctx.params)

    async def work(client: Client) -> int | None:
        if data is not None and (upload or is_here(client.endpoints.trainer)):
            check_data(data)
        if base is None and spec is None and (served := served_base(graft_home())):
            chosen["base"] = served
        handle = await client.train(spec, upload=upload, **chosen)
        return await _show(out, handle, detach)

    run(ctx, out, work)


async def _show(out: Output, handle: JobHandle, detach: bool) -> int | None:
    if out.as_json:
        out.json({"event": "created", "job": handle.name})
    out.note(f"{short_id(handle.name)} is created.")
    if detach:
        out.note(f"Watch it: graft jobs watch {short_id(handle.name)}")
        return None
    return await follow(out, handle, may_cancel=True)


def given_options(params: Mapping[str, Any]) -> TrainOptions:
    """The options that stood on the command line, also those of 0, false or no text."""
    given = {name: params.get(name) for name in TrainOptions.__annotations__}
    # An option that may be repeated and never was is an empty list.
    return cast(TrainOptions, {k: v for k, v in given.items() if v not in (None, [], ())})


def is_here(address: str) -> bool:
    """Whether a service is on this machine, so that it sees what is seen from here."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_data(data: str) -> None:
    """Checks that a file or folder is there, before anything is asked of the trainer.

    Raises:
        GraftError: BAD_DATA.
    """
    if not is_elsewhere(data) and not Path(data).expanduser().exists():
        raise GraftError(
            Reason.BAD_DATA,
            f"There is no {data}",
            next_step="Name a .json, .jsonl, .csv, .parquet or .arrow file, a folder of them, "
            "hf://owner/name or s3://bucket/key.",
            path=data,
        )
