"""A base as it is named, and as it lies on this machine's disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from graft.errors import GraftError, Reason
from graft.names import ModelReference, base_name

from services.inference.domain import AdapterFile

_GROUP = "bases/"
_FULL = re.compile(
    r"namespaces/(?P<namespace>[^/]+)/bases/(?P<name>[^/]+)"
    r"(?:/versions/(?P<version>\d+)|/aliases/(?P<alias>[^/]+))?"
)


@dataclass(frozen=True, slots=True)
class BaseReference:
    """A version of a base by what it is called; with neither alias nor number, as ModelReference."""

    namespace: str
    name: str
    alias: str | None = None
    number: int | None = None

    @classmethod
    def parse(cls, text: str, namespace: str) -> Self | None:
        """What a text names in the registry; None where it names a folder.

        Args:
            text: "bases/tiny", "bases/tiny@production", "bases/tiny:7", "{ns}/bases/...", or a full name.
            namespace: where it is, unless text says so.

        Raises:
            GraftError: INVALID_REFERENCE.
        """
        full = _FULL.fullmatch(text)
        if full is not None:
            number = int(full["version"]) if full["version"] else None
            return cls(full["namespace"], full["name"], full["alias"], number)
        before, found, rest = text.rpartition(_GROUP)
        if not found or before.startswith((".", "/")) or before.count("/") > 1 or "/" in rest:
            return None
        if before and not before.endswith("/"):
            return None
        try:
            parsed = ModelReference.parse(before + rest, namespace)
        except GraftError:
            raise GraftError(
                Reason.INVALID_REFERENCE,
                f"{text!r} is not a reference of a base",
                next_step="Write bases/name, bases/name@alias, bases/name:7, or a folder's absolute path.",
            ) from None
        return cls(parsed.namespace, parsed.name, parsed.alias, parsed.version)

    @property
    def base(self) -> str:
        """Full name of the base."""
        return base_name(self.namespace, self.name)

    def __str__(self) -> str:
        suffix = f"@{self.alias}" if self.alias else f":{self.number}" if self.number else ""
        return f"{_GROUP}{self.name}{suffix}"


@dataclass(frozen=True, slots=True)
class BaseVersion:
    """A version of a base, as the registry verified it.

    Attributes:
        name: "namespaces/{ns}/bases/{base}/versions/{number}".
        digest: "sha256:{hex}" of its manifest.
        fingerprint: what adapters that were trained on it refer to.
        files: all of its files.
    """

    name: str
    digest: str
    fingerprint: str
    files: tuple[AdapterFile, ...]

    @property
    def base(self) -> str:
        """Full name of the base that it is a version of."""
        return self.name.partition("/versions/")[0]

    @property
    def reference(self) -> str:
        """What names exactly this one: "bases/tiny:7"."""
        return f"{_GROUP}{self.base.rpartition('/')[2]}:{self.name.rpartition('/')[2]}"

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Loading:
    """How an engine is told to load a base; None is what its config.json, or the service's setting, says."""

    quantization: str | None = None
    dtype: str | None = None


AS_IT_SAYS = Loading()


@dataclass(frozen=True, slots=True)
class Source:
    """A base that can be loaded: its files are here.

    Attributes:
        folder: its files; never changes while it is served.
        version: what the registry says of it; None for a folder that somebody named.
        loading: how its engine is told to load it.
    """

    folder: Path
    version: BaseVersion | None = None
    loading: Loading = AS_IT_SAYS

    @property
    def reference(self) -> str:
        """What names exactly this one."""
        return str(self.folder) if self.version is None else self.version.reference
