"""`label` and `describe` of adapters and bases, and the options of whatever lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from graft.catalogue import Find
from graft.cli.output import Output
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.metadata import Described

FilterOption = Annotated[
    str, typer.Option("--filter", help="'labels.team = a AND metrics.eval_loss < 0.5'.")
]
SortOption = Annotated[
    str, typer.Option("--sort", help="'create_time desc', 'metrics.eval_loss' and so on.")
]
DeletedOption = Annotated[bool, typer.Option("--deleted", help="What is deleted too.")]
LimitOption = Annotated[int, typer.Option(min=0, help="At most this many; 0 for all.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="bot or bot:7.")]


def find(filter: str, sort: str, deleted: bool, limit: int) -> Find:
    """What those options ask for."""
    return Find(filter=filter, order_by=sort, show_deleted=deleted, limit=limit)


def labels_text(labels: Mapping[str, str]) -> str:
    """Labels in a cell of a table: "stage=done team=a"."""
    return " ".join(f"{key}={value}" if value else key for key, value in sorted(labels.items()))


def changes_of(texts: Sequence[str]) -> dict[str, str | None]:
    """What "team=a" (set) and "team-" (remove) mean.

    Raises:
        GraftError: INVALID_REQUEST, naming the text.
    """
    changes: dict[str, str | None] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign and text.endswith("-"):
            key = text[:-1]
        elif not sign:
            key = ""
        if not key or key in changes:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"{text!r} does not say what becomes of a label, or its label is named twice",
                next_step="Write team=a to set the label team, team- to remove it.",
            )
        changes[key] = value if sign else None
    return changes


def add_commands(adapters: typer.Typer, bases: typer.Typer) -> None:
    """Adds label and describe to both groups."""
    _add(adapters, "")
    _add(bases, "bases/")


def _add(app: typer.Typer, group: str) -> None:
    def full(name: str) -> str:
        """As graft.names.full_name takes it."""
        if name.startswith("namespaces/"):
            return name
        namespace, slash, rest = name.rpartition("/")
        return f"{namespace}{slash}{group}{rest}"

    @app.command()
    def label(
        ctx: typer.Context,
        name: NameArgument,
        labels: Annotated[
            list[str] | None, typer.Argument(metavar="[KEY=VALUE|KEY-]...", help="None: show them.")
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Set labels (team=a) and remove them (team-); the others stay."""
        out = Output(as_json)

        async def work(client: Client) -> None:
            changes = changes_of(labels or ())
            if changes:
                found = await client.metadata.label(full(name), changes)
            else:
                found = await client.metadata.get(full(name))
            _show(out, found, labels_text(found.labels) or "(no labels)")

        run(ctx, out, work)

    @app.command()
    def describe(
        ctx: typer.Context,
        name: NameArgument,
        description: Annotated[str, typer.Argument(metavar="TEXT", help='"" for none.')],
        as_json: JsonOption = False,
    ) -> None:
        """Say what people should know about it."""
        out = Output(as_json)

        async def work(client: Client) -> None:
            found = await client.metadata.update(full(name), description=description)
            _show(out, found, found.description or "(no description)")

        run(ctx, out, work)


def _show(out: Output, found: Described, said: str) -> None:
    if out.as_json:
        out.json(found)
    out.note(f"{found.name}: {said}")
