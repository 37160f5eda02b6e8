"""`graft adapters blend`: what requests name as a blend becomes a version of its own, with its lineage.

Done as `graft merge` does it, by the same arithmetic as at the endpoint, and proven on logits before it exists.
"""

from __future__ import annotations

from typing import Annotated

import typer

from graft.blends import (
    DEFAULT_KIND,
    KINDS,
    BlendReference,
    WeightedReference,
    canonical_weight,
    combining,
    invalid_blend,
)
from graft.cli import merge_options
from graft.cli.merge_here import merge_here
from graft.cli.output import Output
from graft.cli.session import JsonOption, options
from graft.errors import GraftError
from graft.names import DEFAULT_NAMESPACE, ModelReference
from graft.trainer.v1 import conversion_pb2 as pb
from graft.trainer.v1.model_jobs_pb2 import MergeSpec


def blend(
    ctx: typer.Context,
    adapter: Annotated[
        str, typer.Argument(metavar="NEW", help="The adapter that gets it as its next version.")
    ],
    model: Annotated[
        str,
        typer.Argument(
            metavar="[BLEND]",
            help="As requests name it: 0.7*bot@production+0.3*tone:2~ties~density=0.5",
        ),
    ] = "",
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="REFERENCE=WEIGHT", help="In place of BLEND: bot:3=0.7, repeated."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help=f"With --part, how: {', '.join(KINDS)}; {DEFAULT_KIND} if not given."),
    ] = "",
    density: Annotated[
        float, typer.Option(help="Share that ties, dare and magnitude_prune keep; 0.5 if 0.")
    ] = 0.0,
    rank: Annotated[int, typer.Option(help="Of a kind that ends with svd.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the draws of dare.")] = 0,
    base: merge_options.Base = "",
    text: merge_options.Text = None,
    tokens: merge_options.Tokens = 0,
    max_error: merge_options.Error = 0.0,
    skip_check: merge_options.Skip = False,
    write_spec: merge_options.Spec = None,
    work_dir: merge_options.Work = None,
    as_json: JsonOption = False,
) -> None:
    """Register a blend of adapters as a version: what an endpoint answers for it, under a name and with lineage.

    Exit codes as those of `graft merge`.
    """
    out = Output(as_json)
    spec = merge_options.make_spec(base, "", "", text, tokens, max_error, skip_check)
    try:
        given = _reference(model, part or [], options(ctx).namespace, (method, density, rank, seed))
    except GraftError as error:
        raise typer.BadParameter(str(error)) from None
    _describe(spec, given)
    spec.output_adapter = adapter
    merge_here(ctx, out, spec, write_spec, work_dir, in_order=True)


def _reference(
    model: str, parts: list[str], namespace: str, how: tuple[str, float, int, int]
) -> BlendReference:
    if bool(model) == bool(parts):
        raise invalid_blend(
            "Both BLEND and --part are given" if model else "Neither BLEND nor --part is given",
            "Name the blend in one of the two ways.",
        )
    if not model:
        return BlendReference.make((_part(one, namespace) for one in parts), combining(*how))
    if any(how):
        raise invalid_blend(
            "--method, --density, --rank and --seed go with --part", "Write them into BLEND: ~ties."
        )
    return BlendReference.parse(model, namespace)


def _part(given: str, namespace: str) -> WeightedReference:
    reference, equals, weight = given.partition("=")
    try:
        value = float(weight) if equals else 1.0
    except ValueError:
        raise invalid_blend(
            f"{given}: the weight {weight!r} is no number", "Write bot:3=0.7."
        ) from None
    named = ModelReference.parse(reference, namespace)
    return WeightedReference(named, canonical_weight(value, reference))


def _describe(spec: MergeSpec, given: BlendReference) -> None:
    """A blend in the terms of a merge."""
    for one in given.parts:
        reference = one.reference
        # The spec's namespace is that of the job; another one is written out.
        prefix = f"{reference.namespace}/" if reference.namespace == DEFAULT_NAMESPACE else ""
        spec.versions.add(version=f"{prefix}{reference}", weight=one.weight)
    how = given.how
    spec.combination.kind = pb.CombinationKind.Value(f"COMBINATION_KIND_{how.kind.upper()}")
    spec.combination.density = 0.0 if how.is_sum else how.density
    spec.combination.rank, spec.combination.seed = how.rank, how.seed
