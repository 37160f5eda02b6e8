"""`graft adapters protect|policy|approve|approvals|unalias`: what must hold before an alias moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from graft.cli.output import Output, ago
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.names import DEFAULT_ALIAS, ModelReference
from graft.promotion import Policy
from graft.results import Alias, short_id

_Adapter = Annotated[str, typer.Argument(metavar="ADAPTER")]
_Version = Annotated[str, typer.Argument(metavar="ADAPTER:VERSION")]
_Alias = Annotated[str, typer.Option(help="The alias.")]
_Reason = Annotated[str, typer.Option(help="Why, for the audit log.")]


def protect(
    ctx: typer.Context,
    adapter: _Adapter,
    alias: _Alias = DEFAULT_ALIAS,
    mover: Annotated[
        list[str] | None, typer.Option(help="Who may move it; several times for several.")
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help='What must hold: "accuracy >= 0.9".'),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Protect it no longer.")] = False,
    reason: _Reason = "",
    as_json: JsonOption = False,
) -> None:
    """Set what must hold before an alias moves, and who may move it; replaces what was set."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        policy = await client.promotion.set_policy(
            adapter,
            alias=alias,
            protected=bool(mover) and not off,
            movers=mover or (),
            conditions=require or (),
            reason=reason,
        )
        _show(out, policy)

    run(ctx, out, work)


def policy(
    ctx: typer.Context,
    adapter: _Adapter,
    alias: _Alias = DEFAULT_ALIAS,
    as_json: JsonOption = False,
) -> None:
    """Show what must hold before an alias moves."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        _show(out, await client.promotion.policy(adapter, alias=alias))

    run(ctx, out, work)


def approve(
    ctx: typer.Context,
    version: _Version,
    alias: Annotated[str, typer.Option(help="Only for this alias; else for every.")] = "",
    revoke: Annotated[bool, typer.Option("--revoke", help="Take it back.")] = False,
    reason: _Reason = "",
    as_json: JsonOption = False,
) -> None:
    """Agree with a version's promotion."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        name, number = version_of(version)
        if revoke:
            approval = await client.promotion.revoke(name, number, alias=alias)
        else:
            approval = await client.promotion.approve(name, number, alias=alias, reason=reason)
        if as_json:
            out.json(approval)
        done = "takes back the approval of" if revoke else "approves"
        out.note(f"{approval.actor} {done} {short_id(approval.version)}.")

    run(ctx, out, work)


def approvals(ctx: typer.Context, version: _Version, as_json: JsonOption = False) -> None:
    """List who agrees with a version's promotion."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        found = await client.promotion.approvals(*version_of(version))
        if as_json:
            out.json(found)
            return
        out.table(
            ("BY", "FOR", "WHEN", "WHY"),
            (
                (one.actor, one.alias or "every alias", ago(one.create_time), one.reason)
                for one in found
            ),
        )

    run(ctx, out, work)


def unalias(
    ctx: typer.Context,
    adapter: _Adapter,
    alias: Annotated[str, typer.Option(help="The alias to remove.")],
    reason: _Reason = "",
    as_json: JsonOption = False,
) -> None:
    """Remove an alias; its history stays."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        gone = await client.adapters.delete_alias(adapter, alias=alias, reason=reason)
        if as_json:
            out.json(gone)
        out.note(f"{short_id(gone.name)} is gone; it named {short_id(gone.version)}.")

    run(ctx, out, work)


def add_commands(app: typer.Typer) -> None:
    """Adds the commands to `graft adapters`."""
    for command in (protect, policy, approve, approvals, unalias):
        app.command()(command)


def canaries_of(texts: Sequence[str]) -> dict[int, float]:
    """Canaries of "8=5" or "8=5%" each. Raises INVALID_REQUEST."""
    found: dict[int, float] = {}
    for text in texts:
        number, _, percent = text.partition("=")
        try:
            found[int(number)] = float(percent.removesuffix("%"))
        except ValueError:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"{text!r} is not a version and its percent",
                next_step="Write it like --canary 8=5 for 5 % of the requests.",
            ) from None
    return found


def canaries_text(alias: Alias) -> str:
    """An alias' canaries for a table: "8 5%"."""
    return ", ".join(
        f"{name.rpartition('/')[2]} {percent:g}%" for name, percent in alias.canaries.items()
    )


def tell_gate(out: Output, alias: Alias) -> None:
    """What a gate found at a move, for people."""
    for check in alias.gate_report:
        out.note(f"  {check.name}: {check.detail}")


def version_of(text: str) -> tuple[str, int]:
    """The adapter and the number of "bot:7".

    Raises:
        GraftError: INVALID_REQUEST, INVALID_REFERENCE.
    """
    reference = ModelReference.parse(text)
    if reference.version is None:
        raise GraftError(
            Reason.INVALID_REQUEST, f"{text!r} names no version", next_step="Write it like bot:7."
        )
    return text.rpartition(":")[0], reference.version


def _show(out: Output, policy: Policy) -> None:
    if out.as_json:
        out.json(policy)
        return
    out.fields(
        [
            ("alias", short_id(policy.name)),
            ("protected", "yes" if policy.protected else "no"),
            ("movers", ", ".join(policy.movers)),
            ("requires", "\n".join(policy.conditions) or "nothing"),
            ("set by", f"{policy.actor}, {ago(policy.update_time)}" if policy.actor else None),
        ]
    )
