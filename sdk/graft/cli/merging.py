"""`graft merge` and `graft convert`: adapters into a base, several into one, and one of any kind into a plain LoRA.

Done on this machine by a worker process, or written as a spec for `graft jobs submit --kind merge`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from graft.cli import merge_options
from graft.cli.merge_here import merge_here
from graft.cli.merge_options import enum_value, make_spec
from graft.cli.output import Output
from graft.cli.session import JsonOption
from graft.trainer.v1 import conversion_pb2 as pb

_KINDS = [name.removeprefix("COMBINATION_KIND_").lower() for name in pb.CombinationKind.keys()[1:]]


def merge(
    ctx: typer.Context,
    versions: Annotated[
        list[str],
        typer.Argument(
            metavar="VERSION...",
            help="bot:3 or bot@production; several, each with its weight: bot:3=0.7 poet:1=0.3",
        ),
    ],
    into: Annotated[
        str, typer.Option(help="The base that gets the merged model as its next version.")
    ] = "",
    adapter: Annotated[
        str,
        typer.Option("--adapter", "-a", help="The adapter that gets the combination, instead."),
    ] = "",
    by: Annotated[str, typer.Option(help=f"How several become one: {', '.join(_KINDS)}.")] = "",
    density: Annotated[
        float, typer.Option(help="Share that ties, dare and magnitude_prune keep; 0.5 if 0.")
    ] = 0.0,
    rank: Annotated[int, typer.Option(help="Of a combination by svd.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the draws of dare.")] = 0,
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
    """Merge an adapter into its base, or several adapters into one, and prove it.

    A fresh process loads the result and compares its logits with the trained model's. Exit codes: 0 made,
    2 the spec is wrong, 3 no such version, 4 it is not what was trained, or the registry refuses it, 5 nobody answers.
    """
    out = Output(as_json)
    spec = make_spec(base, dtype, quantize, text, tokens, max_error, skip_check)
    spec.output_base, spec.output_adapter = into, adapter
    given = [_weighted(one) for one in versions]
    if len(given) == 1 and not given[0].HasField("weight") and not by:
        spec.version = given[0].version
    else:
        spec.versions.extend(given)
        spec.combination.kind = enum_value(pb.CombinationKind, "COMBINATION_KIND_", by, "--by")
        spec.combination.density, spec.combination.rank = density, rank
        spec.combination.seed = seed
    merge_here(ctx, out, spec, write_spec, work_dir)


def convert(
    ctx: typer.Context,
    version: Annotated[str, typer.Argument(help="An adapter's version of any method.")],
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", help="The adapter that gets the plain LoRA.")
    ],
    rank: Annotated[
        int, typer.Option(help="Where it is not exact: of the LoRA that comes nearest.")
    ] = 16,
    base: merge_options.Base = "",
    text: merge_options.Text = None,
    tokens: merge_options.Tokens = 0,
    max_error: merge_options.Error = 0.0,
    skip_check: merge_options.Skip = False,
    write_spec: merge_options.Spec = None,
    work_dir: merge_options.Work = None,
    as_json: JsonOption = False,
) -> None:
    """Make a plain LoRA of an adapter, exactly or as near as its rank allows, and say how near.

    Exit codes as those of `graft merge`: 4 when it is further away than --max-error.
    """
    out = Output(as_json)
    spec = make_spec(base, "", "", text, tokens, max_error, skip_check)
    spec.version, spec.output_adapter = version, adapter
    spec.plain_lora.rank = rank
    merge_here(ctx, out, spec, write_spec, work_dir)


def _weighted(given: str) -> pb.WeightedVersion:
    version, equals, weight = given.partition("=")
    made = pb.WeightedVersion(version=version)
    if equals:
        try:
            made.weight = float(weight)
        except ValueError:
            raise typer.BadParameter(f"{given}: the weight {weight!r} is no number") from None
    return made
