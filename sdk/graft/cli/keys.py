"""`graft keys`: Ed25519 keys that sign versions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from graft import keys
from graft.cli.output import Output
from graft.cli.session import JsonOption, options, reported

app = typer.Typer(no_args_is_help=True, help="Keys that sign versions.")


@app.command()
def new(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A new file; the public key goes to FILE.pub.")],
    as_json: JsonOption = False,
) -> None:
    """Make a key. $GRAFT_KEY_PASSPHRASE, where it is set, encrypts the private one."""
    out = Output(as_json)
    with reported(out, options(ctx).debug):
        passphrase = os.environ.get(keys.PASSPHRASE_VARIABLE, "")
        public = keys.new_key(file, passphrase)
        if as_json:
            out.json({"key_id": public.key_id, "private": file, "public": f"{file}.pub"})
        kept = "encrypted" if passphrase else "not encrypted; keep it secret"
        out.note(f"{file} signs ({kept}); {file}.pub is to be trusted.")
        out.note(f"Key id: {public.key_id}")


@app.command()
def show(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="Files with public keys.")],
    as_json: JsonOption = False,
) -> None:
    """Print the ids of public keys."""
    out = Output(as_json)
    with reported(out, options(ctx).debug):
        found = [(path, key.key_id) for path in files for key in keys.load_trusted([path])]
        if as_json:
            out.json([{"file": path, "key_id": key_id} for path, key_id in found])
        out.table(("FILE", "KEY ID"), found)
