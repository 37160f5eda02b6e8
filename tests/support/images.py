"""An image without a container engine: the files and the locked packages that a Dockerfile names.

The packages are those of this virtual environment, made visible one by one by links, so that nothing is
installed again; what a lock does not name cannot be imported.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, distributions
from pathlib import Path

from tests.support.processes import ROOT

_NAME = re.compile(r"[-_.]+")


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """What a Dockerfile's last stage has, with ACCELERATOR=cpu.

    copies: sources in the repository and their target. locks: of all stages.
    """

    copies: Sequence[tuple[Sequence[str], str]]
    locks: Sequence[Path]
    environment: Mapping[str, str]
    work_dir: str
    entry_point: Sequence[str]

    @classmethod
    def read(cls, path: Path) -> Dockerfile:
        """Reads one; it must use the instructions as those of this repository do."""
        text = path.read_text("utf-8").replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        last = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
        copies = [_copy(line) for line in lines[last:] if line.startswith("COPY ")]
        installed = re.findall(r"pip [^\n]*install [^\n]*-r [\"']?(/locks/[^\s\"';]+\.lock)", text)
        named = {one.replace("${ACCELERATOR}", "cpu").removeprefix("/locks/") for one in installed}
        environment: dict[str, str] = {}
        for line in lines[last:]:
            if line.startswith("ENV "):
                environment |= dict(part.split("=", 1) for part in shlex.split(line[4:]))
        return cls(
            [one for one in copies if one is not None],
            [ROOT / "requirements/images" / name for name in sorted(named)],
            environment,
            next(line.split()[1] for line in lines[last:] if line.startswith("WORKDIR ")),
            shlex.split(
                next(line for line in lines[last:] if line.startswith("ENTRYPOINT "))
                .removeprefix("ENTRYPOINT ")
                .translate(str.maketrans("[],", "   "))
            ),
        )


def _copy(line: str) -> tuple[Sequence[str], str] | None:
    *sources, target = line.split()[1:]
    return None if sources[0].startswith("--from") else (sources, target)


class Image:
    """An image's files below a folder, and a Python that sees its packages only.

    Args:
        dockerfile: of the image.
        root: an empty folder.
    """

    def __init__(self, dockerfile: Dockerfile, root: Path) -> None:
        self.dockerfile, self._root = dockerfile, root
        self.code = root / dockerfile.work_dir.removeprefix("/")
        self.code.mkdir(parents=True)
        for sources, target in dockerfile.copies:
            for source in sources:
                _copy_into(ROOT / source, self.code / target, target.endswith("/"))
        builder = venv.EnvBuilder(with_pip=False, symlinks=True)
        builder.create(root / "venv")
        self.python = root / "venv/bin/python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self._link(root / "venv/lib" / version / "site-packages")

    @property
    def packages(self) -> Mapping[str, str]:
        """Versions of the locked packages by name."""
        lines = [line for lock in self.dockerfile.locks for line in lock.read_text().splitlines()]
        pairs = (line.partition(" ")[0].partition("==") for line in lines if "==" in line)
        return {_canonical(name): version for name, _, version in pairs}

    def environment(self, **settings: str) -> dict[str, str]:
        """Variables of a process in the image, with others."""
        own = {
            name: value.replace(self.dockerfile.work_dir, str(self.code))
            for name, value in self.dockerfile.environment.items()
        }
        home = self._root / "home"
        home.mkdir(exist_ok=True)
        moved = {"HOME": str(home), "GRAFT_HOME": str(home), "PATH": os.environ["PATH"]}
        return {**own, **moved, "TMPDIR": str(home), **settings}

    def _link(self, site: Path) -> None:
        found, owners = _installed()
        for name, version in self.packages.items():
            assert name in found, f"{name} of the lock is not installed here: run make"
            there = found[name].version
            assert there.partition("+")[0] == version.partition("+")[0], (name, there, version)
            _link_parts(Path(sysconfig.get_paths()["purelib"]), site, name, owners)


Owners = Mapping[str, frozenset[str]]


@cache
def _installed() -> tuple[Mapping[str, Distribution], Owners]:
    """Distributions of this environment, and who has files at or below each path, three deep."""
    found: dict[str, Distribution] = {}
    owners: dict[str, set[str]] = {}
    for one in distributions(path=[sysconfig.get_paths()["purelib"]]):
        name = _canonical(one.metadata["Name"])
        found[name] = one
        for file in one.files or ():
            if ".." in file.parts or "__pycache__" in file.parts:
                continue
            for depth in range(1, min(4, len(file.parts)) + 1):
                owners.setdefault("/".join(file.parts[:depth]), set()).add(name)
    return found, {path: frozenset(names) for path, names in owners.items()}


def _link_parts(source: Path, site: Path, name: str, owners: Owners) -> None:
    """Links what only this distribution has; goes into what it shares with others."""
    shared: set[str] = set()
    for path in sorted(owners, key=lambda one: one.count("/")):
        if name not in owners[path]:
            continue
        parent = path.rpartition("/")[0]
        if parent and parent not in shared:
            continue
        target = site / path
        if len(owners[path]) > 1 and (source / path).is_dir():
            shared.add(path)
            target.mkdir(parents=True, exist_ok=True)
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source / path)


def _copy_into(source: Path, target: Path, into: bool) -> None:
    """Like COPY: a folder's content goes to the target, a file into it where it ends in a slash."""
    if source.is_dir():
        left_out = shutil.ignore_patterns("__pycache__", "Dockerfile")
        shutil.copytree(source, target, ignore=left_out, dirs_exist_ok=True)
        return
    assert source.is_file(), f"COPY names {source}, which is not there"
    target = target / source.name if into else target
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def sent_to_the_builder(path: str) -> bool:
    """Whether .dockerignore lets a path of the repository through."""
    sent = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        allows = rule.startswith("!")
        pattern = rule.removeprefix("!").rstrip("/").removeprefix("**/")
        if _matches(path, pattern):
            sent = allows
    return sent


def _matches(path: str, pattern: str) -> bool:
    parts = path.split("/")
    return any(
        fnmatch.fnmatch("/".join(parts[: end + 1]), pattern) for end in range(len(parts))
    ) or any(fnmatch.fnmatch(part, pattern) for part in parts)


def _canonical(name: str) -> str:
    return _NAME.sub("-", name).lower()
