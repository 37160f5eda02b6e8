"""What `graft merge`, `convert`, `export` and `adapters blend` have in common: their options, and the spec of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graft.trainer.v1 import conversion_pb2 as pb
from graft.trainer.v1.model_jobs_pb2 import MergeSpec

_PROOF, _WHERE = "Proof", "Where it is done"

Base = Annotated[
    str, typer.Option(help="Folder of the base; the one that the registry knows if not given.")
]
Text = Annotated[
    Path | None,
    typer.Option(
        help="Held-out texts, one per line; the version's own held-out rows if not given.",
        rich_help_panel=_PROOF,
    ),
]
Tokens = Annotated[
    int, typer.Option(help="Tokens that are compared; 512 if 0.", rich_help_panel=_PROOF)
]
Error = Annotated[
    float,
    typer.Option(
        help="Largest difference of the logits, as a share of their spread; the usual one if 0.",
        rich_help_panel=_PROOF,
    ),
]
Skip = Annotated[bool, typer.Option("--skip-check", help="Prove nothing.", rich_help_panel=_PROOF)]
Spec = Annotated[
    Path | None,
    typer.Option(
        help="Write the spec to this file and do nothing: graft jobs submit FILE --kind merge.",
        rich_help_panel=_WHERE,
    ),
]
Work = Annotated[
    Path | None,
    typer.Option(
        help="For what is needed meanwhile, and kept; else a temporary folder.",
        rich_help_panel=_WHERE,
    ),
]
Dtype = Annotated[
    str, typer.Option(help="bfloat16, float16 or float32; as the base stores them if not given.")
]
Quantize = Annotated[str, typer.Option(help="nf4 or w4a16: quantize the merged model again.")]


def make_spec(
    base: str,
    dtype: str,
    quantize: str,
    text: Path | None,
    tokens: int,
    max_error: float,
    skip_check: bool,
) -> MergeSpec:
    """What all commands have in common."""
    spec = MergeSpec(dtype=dtype, skip_check=skip_check)
    spec.base.source = str(Path(base).absolute()) if base and Path(base).is_dir() else base
    if quantize:
        spec.requantization = enum_value(
            pb.Requantization, "REQUANTIZATION_", quantize, "--quantize"
        )
    if text is not None:
        spec.proof.text_file = str(text.absolute())
    spec.proof.max_tokens, spec.proof.max_relative_rms = tokens, max_error
    return spec


def enum_value(kind: Any, prefix: str, word: str, option: str) -> Any:
    """An enum's value by its short name; 0 for none.

    Raises:
        typer.BadParameter: naming the option.
    """
    values = dict(kind.items())
    names = [name.removeprefix(prefix).lower() for name in values][1:]
    if not word:
        return 0
    if word.lower() not in names:
        raise typer.BadParameter(f"{word!r} is none of {', '.join(names)}", param_hint=option)
    return values[prefix + word.upper()]
