"""Small resources for tests of the catalogue's tables, without bytes behind them."""

from __future__ import annotations

from collections.abc import Mapping

from services.registry.catalogue.base import AliasMove, Catalogue, NewAdapter, NewBase, NewVersion
from services.registry.catalogue.blob_index import BlobIndex
from services.registry.catalogue.database import Database
from services.registry.domain import (
    Check,
    File,
    Fingerprint,
    Kind,
    Lineage,
    Manifest,
    Module,
    Report,
)

NS = "namespaces/default"
BOT = f"{NS}/adapters/bot"
PRODUCTION = f"{BOT}/aliases/production"
BLOB = "sha256:x"
BASE = NewBase(
    f"{NS}/bases/tiny",
    "/models/tiny",
    Fingerprint("sha256:f", "sha256:c", "sha256:t", "sha256:w"),
    '{"model_type": "llama"}',
    [Module("model.layers.0.self_attn.q_proj", 64, 32)],
)


def adapter(name: str = "bot", ns: str = "default") -> NewAdapter:
    """A new adapter of the base."""
    return NewAdapter(f"namespaces/{ns}/adapters/{name}", BASE.name, "answers", {"team": "a"})


def version(
    number: int,
    parent: str = BOT,
    metrics: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    blob: str = BLOB,
) -> NewVersion:
    """A new version whose digest is its number."""
    lineage = Lineage(
        job=f"{NS}/jobs/j",
        data_digest="sha256:d",
        metrics=metrics if metrics is not None else {"loss": 0.5},
        library_versions={"peft": "1"},
    )
    files = [File("adapter_model.safetensors", blob, 9)]
    manifest = Manifest(
        BASE.name, "sha256:f", "LORA", 8, 16.0, ["q_proj"], files, lineage, Kind.ADAPTER, "lora"
    )
    report = Report([Check("finite-values", "all of them")], 2, 768)
    return NewVersion(parent, f"sha256:{number}", manifest, report, labels=labels or {})


def move(to: int | None, expected: int | None = None, etag: str | None = None) -> AliasMove:
    """A move of bot@production."""
    return AliasMove(PRODUCTION, to, expected, etag, "ann", "better answers")


async def fill(database: Database, catalogue: Catalogue, versions: int = 2) -> None:
    """Puts a base, the adapter bot and versions of it there."""
    await BlobIndex(database).register(BLOB, 9)
    await catalogue.create_base(BASE)
    await catalogue.create_adapter(adapter(), None)
    for number in range(1, versions + 1):
        await catalogue.commit_version(version(number), None)
