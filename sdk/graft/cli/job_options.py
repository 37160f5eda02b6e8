"""Options of the commands that take a job: `graft train`, `plan`, `recommend` and `preflight`.

A parameter that a spec has too is named as in TrainOptions, whatever the option is called.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from graft.client import Client
from graft.endpoints import graft_home, served_base
from graft.errors import GraftError, Reason
from graft.specs import TrainOptions, is_elsewhere

DataArgument = Annotated[
    str | None, typer.Argument(help="A file, a folder, hf://owner/name or s3://bucket/key.")
]
BaseOption = Annotated[str | None, typer.Option(help="Folder of the base model, or a hub id.")]
SpecOption = Annotated[
    Path | None, typer.Option("--file", "-f", help="Job spec in YAML or JSON; options override it.")
]
ObjectiveOption = Annotated[str | None, typer.Option(help="sft, dpo, kto and so on.")]
MaxLengthOption = Annotated[
    int | None, typer.Option("--max-length", help="Longest sequence in tokens.")
]
BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", help="Sequences per forward pass.")
]
PackingOption = Annotated[bool | None, typer.Option("--packing/--no-packing")]


def given_options(params: Mapping[str, Any]) -> TrainOptions:
    """The options that stood on the command line, also those of 0, false or no text."""
    given = {name: params.get(name) for name in TrainOptions.__annotations__}
    # An option that may be repeated and never was is an empty list.
    return cast(TrainOptions, {k: v for k, v in given.items() if v not in (None, [], ())})


def complete(
    chosen: TrainOptions, client: Client, spec: Path | None, *, upload: bool = False
) -> None:
    """Checks that data of this machine is there, and takes the base that `graft up` serves where none is named.

    Args:
        upload: the data is read here and sent, wherever the trainer is.

    Raises:
        GraftError: BAD_DATA.
    """
    data = chosen.get("data")
    if data is not None and (upload or is_here(client.endpoints.trainer)):
        check_data(str(data))
    if "base" not in chosen and spec is None and (served := served_base(graft_home())):
        chosen["base"] = served


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
