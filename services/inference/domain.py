"""What the inference service knows of adapters: versions, aliases, and the events that change them."""

from __future__ import annotations

from dataclasses import dataclass, field

from graft.blends import Combining
from graft.rollout_policy import Rollout, Shadow


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """One file of a version; digest is "sha256:{hex}"."""

    path: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BlendPart:
    """A version that is blended with others, and its weight."""

    version: AdapterVersion
    weight: float


@dataclass(frozen=True, slots=True)
class Blend:
    """What a derived version is made of.

    Attributes:
        reference: its canonical form with the versions' numbers: "0.7*bot:3+0.3*tone:2~ties".
        parts: in the order of their names.
    """

    reference: str
    parts: tuple[BlendPart, ...]
    how: Combining


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """An immutable version, as the registry verified it; or, with blend, one that was derived here.

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
        blend: what it is made of, where the registry does not know it. Its name then is
            "namespaces/{ns}/blends/{adapters}/versions/{digest}", its number 0, and its digest that
            of all that decides its files; these are not known before they are made.
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
    blend: Blend | None = None

    @property
    def registered(self) -> tuple[AdapterVersion, ...]:
        """The registry's versions that it stands on: itself, or the parts of a blend."""
        return (self,) if self.blend is None else tuple(one.version for one in self.blend.parts)

    @property
    def label(self) -> str:
        """What it is called among its adapter's versions: its number, or the end of a blend's name."""
        return str(self.number) if self.blend is None else self.name.rpartition("/")[2]

    @property
    def reference(self) -> str:
        """What a request would write to mean exactly this."""
        return f"{self.adapter_id}:{self.number}" if self.blend is None else self.blend.reference

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
    """The base that this service serves.

    Attributes:
        name: "namespaces/{ns}/bases/{base}".
        fingerprint: what its adapters were trained on.
        reference: what names exactly this one: "bases/tiny:7", or a folder.
        version: its version's name; empty for a folder.
        version_digest: that version's digest.
        quantization: in the contract's words.
    """

    name: str
    fingerprint: str
    reference: str = field(default="", compare=False)
    version: str = field(default="", compare=False)
    version_digest: str = field(default="", compare=False)
    quantization: str = field(default="", compare=False)

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
    """An alias names a version since a revision.

    Attributes:
        canaries: (number, percent) of other versions that get a part of its requests.
        rollout: what happens to them.
        etag: of this state.
        reason: why it was moved.
    """

    adapter: str
    alias: str
    version: str
    revision: int
    canaries: tuple[tuple[int, float], ...] = ()
    rollout: Rollout | None = None
    etag: str = ""
    reason: str = ""

    @property
    def number(self) -> int:
        """Of the version."""
        return int(self.version.rpartition("/")[2])

    @property
    def shadow(self) -> Shadow | None:
        """What copies of its requests go to."""
        return None if self.rollout is None else self.rollout.shadow


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
