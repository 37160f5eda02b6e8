"""`graft export`: a merged model as a folder or a GGUF file, or a whole namespace as an archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graft.cli import merge_options
from graft.cli.archive import export_archive
from graft.cli.merge_here import merge_here
from graft.cli.output import Output
from graft.cli.session import JsonOption, run
from graft.trainer.v1 import conversion_pb2 as pb

_MODEL = "Of a model"
_FORMATS = ("archive", "folder", "gguf")


def export_command(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(help="A version (bot:3, bot@production, bases/tiny:2), or a namespace."),
    ],
    path: Annotated[Path, typer.Argument(help="A new folder, a new .gguf file, or a new tar.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="folder (transformers and vLLM load it), gguf (llama.cpp), or archive: a namespace. "
            "If not given: by what is named.",
        ),
    ] = "",
    gguf_type: Annotated[
        str, typer.Option(help="f16, bf16, f32 or q8_0.", rich_help_panel=_MODEL)
    ] = "",
    base: merge_options.Base = "",
    dtype: merge_options.Dtype = "",
    quantize: merge_options.Quantize = "",
    text: merge_options.Text = None,
    tokens: merge_options.Tokens = 0,
    max_error: merge_options.Error = 0.0,
    skip_check: merge_options.Skip = False,
    write_spec: merge_options.Spec = None,
    work_dir: merge_options.Work = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version, merged into its base and proven, to a folder or a GGUF file; or a namespace to a tar.

    Exit codes as those of `graft merge`.
    """
    out = Output(as_json)
    chosen = kind or _format(what, path)
    if chosen not in _FORMATS:
        raise typer.BadParameter(
            f"{chosen!r} is none of {', '.join(_FORMATS)}", param_hint="--format"
        )
    if chosen == "archive":
        run(ctx, out, lambda client: export_archive(client, out, what, path))
        return
    spec = merge_options.make_spec(base, dtype, quantize, text, tokens, max_error, skip_check)
    spec.version = what
    spec.export.path = str(path.absolute())
    spec.export.format = pb.ExportFormat.Value(f"EXPORT_FORMAT_{chosen.upper()}")
    spec.export.gguf_type = gguf_type
    merge_here(ctx, out, spec, write_spec, work_dir)


def _format(what: str, path: Path) -> str:
    """A namespace's name has neither version nor alias."""
    if path.suffix == ".gguf":
        return "gguf"
    return "folder" if set(what) & set(":@/") else "archive"
