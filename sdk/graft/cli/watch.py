"""`graft watch`: what changes in the registry, as it happens."""

from __future__ import annotations

from typing import Annotated

import typer

from graft.cli.output import Output
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.results import Alias, Change, ChangeAction, short_id

_COMMITTED = {ChangeAction.CREATED: "committed", ChangeAction.UPDATED: "changed"}
_RECORDED = {ChangeAction.CREATED: "recorded", ChangeAction.UPDATED: "changed"}
_CREATED = {ChangeAction.UPDATED: "changed"}


def watch(
    ctx: typer.Context,
    after: Annotated[
        int | None,
        typer.Option(
            "--from-revision", "--after", min=0, help="Only what came after it. By default: now."
        ),
    ] = None,
    from_first: Annotated[
        bool, typer.Option("--all", help="Everything there ever was, and then what comes.")
    ] = False,
    resource: Annotated[
        str, typer.Option(help="Only of an adapter (bot) or a base (bases/tiny).")
    ] = "",
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only adapter, base, version, alias or policy; again for more."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print every change in the registry as it happens; Ctrl-C ends it.

    It goes on where it was when the registry was away. To go on later, give the last revision that
    was printed as --from-revision.
    """
    out = Output(as_json)

    async def work(client: Client) -> None:
        begin = 0 if from_first else after
        async for change in client.watch(begin, resource=resource, kinds=kind or ()):
            if as_json:
                out.json(change)
            out.note(describe_change(change))

    run(ctx, out, work)


def describe_change(change: Change) -> str:
    """A change in one line."""
    moment = change.time.astimezone().strftime("%H:%M:%S") if change.time else ""
    return f"{change.revision:>6} {moment} {_what(change)}"


def _what(change: Change) -> str:
    def done(words: dict[ChangeAction, str]) -> str:
        return words.get(change.action, change.action.value)

    if change.alias is not None:
        return _moved(change.alias, change.action)
    if change.policy is not None:
        return f"policy of {_short_alias(change.policy)} set"
    if change.version is not None:
        return f"{short_version(change.version.name)} {done(_COMMITTED)}"
    if change.adapter is not None:
        return f"adapter {short_id(change.adapter.name)} {done(_CREATED)}"
    return f"base {short_id(change.base.name)} {done(_RECORDED)}" if change.base else "changed"


def _moved(alias: Alias, action: ChangeAction) -> str:
    by = f" by {alias.actor}" if alias.actor else ""
    why = f": {alias.reason}" if alias.reason else ""
    name = _short_alias(alias.name)
    if action is ChangeAction.DELETED or alias.deleted:
        return f"{name} deleted{by}{why}"
    parts = "".join(
        f" and {short_id(version)} ({weight:g} %)" for version, weight in alias.canaries.items()
    )
    return f"{name} names {short_id(alias.version)}{parts}{by}{why}"


def _short_alias(name: str) -> str:
    parent, _, alias = name.rpartition("/aliases/")
    return f"{short_id(parent)}@{alias}"


def short_version(name: str) -> str:
    """ "bot:7"."""
    adapter, _, number = name.rpartition("/versions/")
    return f"{short_id(adapter)}:{number}"
