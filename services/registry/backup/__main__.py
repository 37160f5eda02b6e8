"""`python -m services.registry.backup save|restore|settle|check|mend`, with the registry's settings."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graft.errors import GraftError
from pydantic import ValidationError

from services.registry.backup.check import check
from services.registry.backup.folder import BackupFolder
from services.registry.backup.mend import mend
from services.registry.backup.opening import opened
from services.registry.backup.restore import restore, settle
from services.registry.backup.save import save
from services.registry.config import RegistrySettings

_DAMAGED, _USAGE = 1, 2
_FAILED = 3


def main(arguments: list[str]) -> int:
    """Runs one command; its result is one line of JSON on standard output.

    Returns:
        0 when all is well, 1 when bytes or entries are damaged or missing, 2 for wrong arguments or
        settings, 3 when it could not be done.
    """
    chosen = _parser().parse_args(arguments)
    try:
        result, damaged = asyncio.run(_run(chosen, RegistrySettings()))
    except ValidationError as error:
        for problem in error.errors():
            name = f"GRAFT_REGISTRY_{problem['loc'][0] if problem['loc'] else ''}".upper()
            print(f"{name}: {problem['msg']}", file=sys.stderr)
        return _USAGE
    except GraftError as error:
        print(f"{error.message}\nNext: {error.next_step}", file=sys.stderr)
        return _FAILED
    print(json.dumps(result))
    return _DAMAGED if damaged else 0


async def _run(chosen: argparse.Namespace, settings: RegistrySettings) -> tuple[Any, bool]:
    folder = BackupFolder(chosen.folder) if "folder" in chosen else BackupFolder(Path())
    alone = chosen.command in ("restore", "settle")
    async with opened(settings, alone) as registry:
        match chosen.command:
            case "save":
                saved = await save(registry, folder, with_bytes=not chosen.catalogue_only)
                return {**asdict(saved.info), "copied": saved.copied, "lost": saved.lost}, bool(
                    saved.lost
                )
            case "restore":
                restored = await restore(registry, folder, chosen.nothing_lost)
                return asdict(restored), bool(restored.missing)
            case "settle":
                return asdict(await settle(registry)), False
            case "mend":
                mended = await mend(registry, folder)
                return asdict(mended), bool(mended.missing)
            case _:
                checked = await check(registry, deep=not chosen.quick)
                return asdict(checked), bool(checked.damages)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.registry.backup",
        description="Backup, restore and check of the registry that GRAFT_REGISTRY_* names. "
        "See docs/backup.md.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("save", help="take a backup; the registry may serve meanwhile")
    one.add_argument("folder", type=Path, help="a backup that is there is brought up to date")
    one.add_argument("--catalogue-only", action="store_true", help="leave the bytes out")
    one = commands.add_parser("restore", help="fill an empty registry, that is not running")
    one.add_argument("folder", type=Path)
    one.add_argument(
        "--nothing-lost",
        action="store_true",
        help="the backup was taken of a stopped registry and nothing came after it: a move, for "
        "example to PostgreSQL; revisions and version numbers go on",
    )
    commands.add_parser(
        "settle", help="after pg_restore, a point in time or a volume's snapshot; not running"
    )
    one = commands.add_parser("check", help="look at every version's bytes; may run beside it")
    one.add_argument("--quick", action="store_true", help="sizes only, without reading the bytes")
    one = commands.add_parser("mend", help="bring lost bytes back from a backup; may run beside it")
    one.add_argument("folder", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
