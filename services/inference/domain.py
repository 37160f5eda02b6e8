"""What the inference service knows of adapters: versions, aliases, and the events that change them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """One file of a version; digest is "sha256:{hex}"."""

    path: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """An immutable version, as the registry verified it.

    Attributes:
        name: "namespaces/{ns}/adapters/{adapter}/versions/{number}".
        adapter: "namespaces/{ns}/adapters/{adapter}".
        number: from 1.
        digest: "sha256:{hex}" of its manifest.
        base_fingerprint: of the base that it was trained on.
        peft_type: for example "LORA".
        rank: largest of any module.
        files: all of its files.
        manifest_digest: of the manifest as it was read here; empty where there is none.
        envelopes: its signatures, not yet verified. They may grow: the version stays the same.
    """

    name: str
    adapter: str
    number: int
    digest: str
    base_fingerprint: str
    peft_type: str
    rank: int
    files: tuple[AdapterFile, ...]
    manifest_digest: str = field(default="", compare=False)
    envelopes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def adapter_id(self) -> str:
        """Last part of the adapter's name."""
        return self.adapter.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Base:
    """The base that this service serves."""

    name: str
    fingerprint: str

    @property
    def base_id(self) -> str:
        """Last part of its name."""
        return self.name.rpartition("/")[2]

    @property
    def namespace(self) -> str:
        """The namespace that it lies in."""
        return self.name.split("/")[1]


@dataclass(frozen=True, slots=True)
class AdapterSeen:
    """An adapter exists; latest is the number of its newest version, 0 for none."""

    name: str
    base: str
    latest: int


@dataclass(frozen=True, slots=True)
class AliasSeen:
    """An alias names a version since a revision."""

    adapter: str
    alias: str
    version: str
    revision: int


@dataclass(frozen=True, slots=True)
class Gone:
    """An adapter was deleted, with all its names; or, where alias is not empty, one of its aliases."""

    adapter: str
    alias: str = ""


@dataclass(frozen=True, slots=True)
class Returned:
    """A deleted adapter is back, with aliases that no event tells of."""

    adapter: str


Change = AdapterSeen | AdapterVersion | AliasSeen | Gone | Returned


@dataclass(frozen=True, slots=True)
class Event:
    """A change, or none for a bookmark, at a revision; time_s is when it happened, in Unix seconds."""

    revision: int
    time_s: float
    change: Change | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All adapters and aliases of a namespace; every change after revision comes as an event."""

    revision: int
    adapters: tuple[AdapterSeen, ...] = field(default=())
    aliases: tuple[AliasSeen, ...] = field(default=())
