"""`graft merge` and `graft convert`: adapters into a base, several into one, and one of any kind into a plain LoRA.

Done on this machine by a worker process, or written as a spec for `graft jobs submit --kind merge`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from google.protobuf.json_format import MessageToDict
from rich.status import Status

from graft.cli.output import Output
from graft.cli.session import JsonOption, options, run
from graft.cli.worker_process import Done, run_worker
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.names import full_name
from graft.results import short_id
from graft.trainer.v1 import conversion_pb2 as pb
from graft.trainer.v1.model_jobs_pb2 import MergeSpec

_PROOF, _WHERE = "Proof", "Where it is done"
_KINDS = [name.removeprefix("COMBINATION_KIND_").lower() for name in pb.CombinationKind.keys()[1:]]

BaseOption = Annotated[
    str, typer.Option(help="Folder of the base; the one that the registry knows if not given.")
]
TextOption = Annotated[
    Path | None,
    typer.Option(
        help="Held-out texts, one per line; the version's own held-out rows if not given.",
        rich_help_panel=_PROOF,
    ),
]
TokensOption = Annotated[
    int, typer.Option(help="Tokens that are compared; 512 if 0.", rich_help_panel=_PROOF)
]
ErrorOption = Annotated[
    float,
    typer.Option(
        help="Largest difference of the logits, as a share of their spread; the usual one if 0.",
        rich_help_panel=_PROOF,
    ),
]
SkipOption = Annotated[
    bool, typer.Option("--skip-check", help="Prove nothing.", rich_help_panel=_PROOF)
]
SpecOption = Annotated[
    Path | None,
    typer.Option(
        help="Write the spec to this file and do nothing: graft jobs submit FILE --kind merge.",
        rich_help_panel=_WHERE,
    ),
]
WorkOption = Annotated[
    Path | None,
    typer.Option(
        help="For what is needed meanwhile, and kept; else a temporary folder.",
        rich_help_panel=_WHERE,
    ),
]
DtypeOption = Annotated[
    str, typer.Option(help="bfloat16, float16 or float32; as the base stores them if not given.")
]
QuantizeOption = Annotated[str, typer.Option(help="nf4 or w4a16: quantize the merged model again.")]


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
    base: BaseOption = "",
    dtype: DtypeOption = "",
    quantize: QuantizeOption = "",
    text: TextOption = None,
    tokens: TokensOption = 0,
    max_error: ErrorOption = 0.0,
    skip_check: SkipOption = False,
    write_spec: SpecOption = None,
    work_dir: WorkOption = None,
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
        spec.combination.kind = _enum(pb.CombinationKind, "COMBINATION_KIND_", by, "--by")
        spec.combination.density, spec.combination.rank = density, rank
        spec.combination.seed = seed
    do(ctx, out, spec, write_spec, work_dir)


def convert(
    ctx: typer.Context,
    version: Annotated[str, typer.Argument(help="An adapter's version of any method.")],
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", help="The adapter that gets the plain LoRA.")
    ],
    rank: Annotated[
        int, typer.Option(help="Where it is not exact: of the LoRA that comes nearest.")
    ] = 16,
    base: BaseOption = "",
    text: TextOption = None,
    tokens: TokensOption = 0,
    max_error: ErrorOption = 0.0,
    skip_check: SkipOption = False,
    write_spec: SpecOption = None,
    work_dir: WorkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a plain LoRA of an adapter, exactly or as near as its rank allows, and say how near.

    Exit codes as those of `graft merge`: 4 when it is further away than --max-error.
    """
    out = Output(as_json)
    spec = make_spec(base, "", "", text, tokens, max_error, skip_check)
    spec.version, spec.output_adapter = version, adapter
    spec.plain_lora.rank = rank
    do(ctx, out, spec, write_spec, work_dir)


def do(
    ctx: typer.Context, out: Output, spec: MergeSpec, write_spec: Path | None, work_dir: Path | None
) -> None:
    """Writes a spec, or does what it says here and tells how it went."""

    async def work(client: Client) -> None:
        if write_spec is not None:
            _write(out, spec, write_spec)
            return
        await _pin(client, spec)
        with _Progress(out) as progress:
            done = await run_worker(
                "merge",
                spec,
                client.endpoints.registry,
                options(ctx).namespace,
                progress.line,
                work_dir,
            )
        _tell(out, spec, done)

    run(ctx, out, work)


class _Progress:
    """Lines as they come, and the stage that is being worked at, where there is somebody to see it."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._status = Status("starting", console=out.console) if out.live else None

    def __enter__(self) -> _Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def line(self, text: str) -> None:
        """Takes a line of the worker."""
        if self._status is not None and text.startswith("Stage "):
            self._status.update(text)
        elif self._out.as_json:
            self._out.json({"log": text})
        else:
            self._out.note(text)


def _tell(out: Output, spec: MergeSpec, done: Done) -> None:
    if out.as_json:
        out.json({"version": done.version, "path": spec.export.path, "report": done.report})
        return
    if done.version:
        out.note(f"Made {done.version}.")
        parent, _, number = done.version.rpartition("/versions/")
        name = short_id(parent)
        shown = (
            f"bases show {name} {number}"
            if "/bases/" in parent
            else f"adapters show {name}:{number}"
        )
        out.note(f"Look at it: graft {shown}")
    else:
        out.note(f"{spec.export.path} is there.")


async def _pin(client: Client, spec: MergeSpec) -> None:
    """Names of versions in place of aliases, so that the spec says the same tomorrow.

    Raises:
        GraftError: VERSION_NOT_FOUND, ALIAS_NOT_FOUND, ADAPTER_NOT_FOUND.
    """
    every: list[Any] = [spec, *spec.versions]
    for one in every:
        if not one.version:
            continue
        full = full_name(one.version, client.namespace)
        if "/bases/" in full:
            base, found, number = full.partition("/versions/")
            if found:
                one.version = (await client.base_versions.get(base, int(number))).name
            continue
        one.version = (await client.adapters.version(one.version)).name


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
        spec.requantization = _enum(pb.Requantization, "REQUANTIZATION_", quantize, "--quantize")
    if text is not None:
        spec.proof.text_file = str(text.absolute())
    spec.proof.max_tokens, spec.proof.max_relative_rms = tokens, max_error
    return spec


def _weighted(given: str) -> pb.WeightedVersion:
    version, equals, weight = given.partition("=")
    made = pb.WeightedVersion(version=version)
    if equals:
        try:
            made.weight = float(weight)
        except ValueError:
            raise typer.BadParameter(f"{given}: the weight {weight!r} is no number") from None
    return made


def _enum(kind: Any, prefix: str, word: str, option: str) -> Any:
    """An enum's value by its short name; 0 for none."""
    values = dict(kind.items())
    names = [name.removeprefix(prefix).lower() for name in values][1:]
    if not word:
        return 0
    if word.lower() not in names:
        raise typer.BadParameter(f"{word!r} is none of {', '.join(names)}", param_hint=option)
    return values[prefix + word.upper()]


def _write(out: Output, spec: MergeSpec, path: Path) -> None:
    text = yaml.safe_dump(MessageToDict(spec, preserving_proto_field_name=True), sort_keys=False)
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{path} cannot be written ({error.strerror})",
            next_step="Name another file with --write-spec.",
        ) from None
    out.note(f"Wrote {path}. Start it: graft jobs submit {path} --kind merge")
