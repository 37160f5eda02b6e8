"""`graft rollout`: a new version gets a growing part of the requests, and is taken back when it is bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from graft.cli.output import Output
from graft.cli.promotion import canaries_text, version_of
from graft.cli.rollout_tables import alias_text, show_alias, show_here
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.names import DEFAULT_ALIAS
from graft.results import Alias, short_id
from graft.rollout_policy import DEFAULT_MIN_REQUESTS, RolloutLimits

app = typer.Typer(
    no_args_is_help=True,
    help="A new version gets a growing part of the requests, and is taken back when it is bad.",
)
_Adapter = Annotated[str, typer.Argument(metavar="ADAPTER")]
_Version = Annotated[str, typer.Argument(metavar="ADAPTER:VERSION")]
_Alias = Annotated[str, typer.Option(help="The alias.")]
_Reason = Annotated[str, typer.Option(help="Why, for its history.")]
_Share = Annotated[float | None, typer.Option(metavar="SHARE", help="Of its requests, 0 to 1.")]
_Seconds = Annotated[float | None, typer.Option(metavar="SECONDS", help="For 9 of 10 answers.")]
_Ratio = Annotated[
    float | None, typer.Option(metavar="RATIO", help="As a multiple of the stable version's.")
]


@app.command()
def start(
    ctx: typer.Context,
    version: _Version,
    percent: Annotated[float, typer.Option(help="Its part, where there are no steps.")] = 5.0,
    steps: Annotated[
        str, typer.Option(metavar="5,25,100", help="Its parts in percent, one after the other.")
    ] = "",
    window: Annotated[
        str, typer.Option(metavar="60s", help="How far back it is judged; a step lasts as long.")
    ] = "",
    min_requests: Annotated[
        int, typer.Option(help="Of the version in the window, before it is judged.")
    ] = DEFAULT_MIN_REQUESTS,
    max_error_rate: _Share = None,
    max_first_token_s: _Seconds = None,
    max_first_token_ratio: _Ratio = None,
    max_token_s: _Seconds = None,
    max_token_ratio: _Ratio = None,
    max_refusal_rate: _Share = None,
    refusal_pattern: Annotated[
        list[str] | None, typer.Option(help="Beginning of an answer that refuses; repeat it.")
    ] = None,
    max_babble_rate: _Share = None,
    max_length_ratio: _Ratio = None,
    alias: _Alias = DEFAULT_ALIAS,
    reason: _Reason = "",
    as_json: JsonOption = False,
) -> None:
    """Give a version a part of an alias' requests; a limit that it passes takes it back by itself."""
    out = Output(as_json)
    given = {
        "max_error_rate": max_error_rate,
        "max_first_token_s": max_first_token_s,
        "max_first_token_ratio": max_first_token_ratio,
        "max_token_s": max_token_s,
        "max_token_ratio": max_token_ratio,
        "max_refusal_rate": max_refusal_rate,
        "max_babble_rate": max_babble_rate,
        "max_length_ratio": max_length_ratio,
    }

    async def work(client: Client) -> None:
        limits = _limits(window, min_requests, given, refusal_pattern or ())
        name, number = version_of(version)
        moved = await client.rollouts.start(
            name,
            number,
            limits=limits,
            percent=percent,
            steps=_steps(steps),
            alias=alias,
            reason=reason,
        )
        _tell(out, moved)

    run(ctx, out, work)


@app.command()
def shadow(
    ctx: typer.Context,
    version: Annotated[str, typer.Argument(metavar="ADAPTER[:VERSION]")],
    percent: Annotated[float, typer.Option(help="Part of the requests that is copied.")] = 10.0,
    off: Annotated[bool, typer.Option("--off", help="No copies any more.")] = False,
    alias: _Alias = DEFAULT_ALIAS,
    reason: _Reason = "",
    as_json: JsonOption = False,
) -> None:
    """Send copies of requests to a version, compare its answers, and throw them away."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        name, number = (version, None) if off else version_of(version)
        _tell(
            out,
            await client.rollouts.shadow(name, number, percent=percent, alias=alias, reason=reason),
        )

    run(ctx, out, work)


@app.command()
def status(
    ctx: typer.Context,
    adapter: _Adapter,
    alias: _Alias = DEFAULT_ALIAS,
    as_json: JsonOption = False,
) -> None:
    """Show an alias' parts and limits, and how they fare on the endpoint that answers."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        now, here, why = await client.rollouts.status(adapter, alias=alias), None, ""
        try:
            found = await client.rollouts.here()
            here = next((one for one in found if one.alias == now.name), None)
        except GraftError as error:
            why = error.message
        if as_json:
            out.json({"alias": now, "here": here})
            return
        show_alias(out, now)
        if here is not None:
            show_here(out, here)
        elif why:
            out.warn(f"No endpoint says how it fares: {why}")

    run(ctx, out, work)


@app.command()
def pause(
    ctx: typer.Context,
    adapter: _Adapter,
    alias: _Alias = DEFAULT_ALIAS,
    reason: _Reason = "",
    as_json: JsonOption = False,
) -> None:
    """Hold the steps where they are; limits are judged all the same."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        _tell(out, await client.rollouts.pause(adapter, alias=alias, reason=reason))

    run(ctx, out, work)


@app.command()
def resume(
    ctx: typer.Context,
    adapter: _Adapter,
    alias: _Alias = DEFAULT_ALIAS,
    reason: _Reason = "",
    as_json: JsonOption = False,
) -> None:
    """Let the steps go on."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        _tell(out, await client.rollouts.pause(adapter, alias=alias, paused=False, reason=reason))

    run(ctx, out, work)


@app.command()
def abort(
    ctx: typer.Context,
    adapter: _Adapter,
    alias: _Alias = DEFAULT_ALIAS,
    reason: _Reason = "",
    as_json: JsonOption = False,
) -> None:
    """Take the new version out; the alias' version answers all requests again."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        _tell(out, await client.rollouts.abort(adapter, alias=alias, reason=reason))

    run(ctx, out, work)


def _limits(
    window: str, min_requests: int, given: dict[str, float | None], patterns: Sequence[str]
) -> RolloutLimits | None:
    wanted = {name: value for name, value in given.items() if value is not None}
    if not window:
        if not wanted and not patterns:
            return None
        raise GraftError(
            Reason.INVALID_REQUEST,
            "There are limits, and no window over which they are judged",
            next_step="Say how far back requests are looked at, for example --window 60s.",
        )
    return RolloutLimits(
        window_s=_seconds(window),
        min_requests=min_requests,
        refusal_patterns=tuple(patterns),
        **wanted,
    )


def _seconds(text: str) -> float:
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, factor = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        return float(number) * factor
    except ValueError:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{text!r} is not a time",
            next_step="Write it like 60s, 5m or 1h.",
        ) from None


def _steps(text: str) -> list[float]:
    try:
        return [float(step.strip().removesuffix("%")) for step in text.split(",") if step.strip()]
    except ValueError:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{text!r} are not steps in percent",
            next_step="Write them like --steps 5,25,100.",
        ) from None


def _tell(out: Output, alias: Alias) -> None:
    if out.as_json:
        out.json(alias)
        return
    canaries = canaries_text(alias)
    parts = f", canaries {canaries}" if canaries else ""
    out.note(f"{alias_text(alias)} names version {short_id(alias.version)}{parts}.")
