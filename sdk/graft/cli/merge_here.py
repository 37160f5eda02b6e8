"""Does what a merge's spec says on this machine, by a worker process, or writes it for `graft jobs submit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
import yaml
from google.protobuf.json_format import MessageToDict

from graft.cli.output import Output
from graft.cli.session import options, run
from graft.cli.waiting import Waiting
from graft.cli.worker_process import Done, run_worker
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.names import full_name
from graft.results import short_id
from graft.trainer.v1.model_jobs_pb2 import MergeSpec


def merge_here(
    ctx: typer.Context,
    out: Output,
    spec: MergeSpec,
    write_spec: Path | None,
    work_dir: Path | None,
    *,
    in_order: bool = False,
) -> None:
    """Writes a spec, or does what it says here and tells how it went.

    Args:
        in_order: its versions are put in the order of their names, as an endpoint blends them.
    """

    async def work(client: Client) -> None:
        if write_spec is not None:
            _write(out, spec, write_spec)
            return
        await _pin(client, spec)
        if in_order:
            spec.versions.sort(key=lambda one: one.version)
        with Waiting(out) as waiting:
            done = await run_worker(
                "merge",
                spec,
                client.endpoints.registry,
                options(ctx).namespace,
                lambda line: _show(out, waiting, line),
                work_dir,
            )
        _tell(out, spec, done)

    run(ctx, out, work)


def _show(out: Output, waiting: Waiting, line: str) -> None:
    """A line of the worker: its stages where they can be watched, all else below each other."""
    if waiting.shown and line.startswith("Stage "):
        waiting.show(line)
    elif out.as_json:
        out.json({"log": line})
    else:
        out.note(line)


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
