"""A checkpoint's manifest: what it belongs to, what it is worth, and the digest of every file, its own included."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.digests import digest_bytes, digest_file
from graft.files import write_atomic

_NAME = "manifest.json"
_DIGEST = "digest"


@dataclass(frozen=True, slots=True)
class Score:
    """What a step is worth by the metric that decides which one is best."""

    metric: str
    value: float
    higher_is_better: bool = False

    @property
    def rank(self) -> float:
        """Less is better."""
        if math.isnan(self.value):
            return math.inf
        return -self.value if self.higher_is_better else self.value

    def beats(self, other: Score | None) -> bool:
        """Whether it is better than another, or there is none of the same metric."""
        return other is None or other.metric != self.metric or self.rank < other.rank


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint's manifest says."""

    step: int
    run_key: str
    files: Mapping[str, str]
    score: Score | None


def seal(folder: Path, step: int, run_key: str, score: Score | None) -> None:
    """Flushes every file to the disk and writes the manifest with their digests last."""
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digests[path.relative_to(folder).as_posix()] = digest_file(path)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    content: dict[str, Any] = {"step": step, "run_key": run_key, "files": digests}
    if score is not None:
        content["score"] = [score.metric, score.value, score.higher_is_better]
    write_atomic(folder / _NAME, json.dumps({**content, _DIGEST: _digest(content)}).encode())


def read_manifest(folder: Path) -> Manifest | None:
    """What the manifest says; None when it cannot be read or is not what was written."""
    try:
        content = json.loads((folder / _NAME).read_bytes())
        # One of an earlier release has none.
        digest = content.pop(_DIGEST, None)
        if digest is not None and digest != _digest(content):
            return None
        score = content.get("score")
        return Manifest(
            int(content["step"]),
            str(content["run_key"]),
            dict(content["files"]),
            None if score is None else Score(*score),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def verify(folder: Path, run_key: str) -> str:
    """Why a checkpoint cannot be used; "" when its every byte is right."""
    manifest = read_manifest(folder)
    if manifest is None:
        return "it has no readable manifest"
    if manifest.run_key != run_key:
        return "it belongs to another spec, base or data"
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            return f"its file {name} is missing"
        try:
            found = digest_file(folder / name)
        except OSError as error:
            return f"its file {name} cannot be read ({error.strerror})"
        if found != digest:
            return f"its file {name} is damaged"
    return ""


def _digest(content: Mapping[str, Any]) -> str:
    return digest_bytes(json.dumps(content, sort_keys=True).encode())
