"""Opens the sets that a spec names: each is fetched if it is elsewhere, and can then be read row by row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graft.digests import digest_bytes
from graft.errors import GraftError, Reason

from services.trainer.formats.load import ReadOptions, RowReader
from services.trainer.sources.base import Log, Source
from services.trainer.sources.blob import BlobSource, Run
from services.trainer.sources.hub import HubSource, hub_place
from services.trainer.sources.local import LocalSource
from services.trainer.sources.objects import ObjectSource
from services.trainer.spec import DatasetSource, DatasetSpec, local_path


@dataclass(frozen=True, slots=True)
class OpenSet:
    """A set on this machine.

    Attributes:
        reader: reads its rows.
        origin: where it came from, for the lineage; "" for this machine and the registry.
        spec: what the job says of it.
    """

    reader: RowReader
    origin: str
    spec: DatasetSource

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.spec.path if self.origin else self.reader.path.name


@dataclass(frozen=True, slots=True)
class OpenSets:
    """All sets of a job, in the spec's order."""

    training: tuple[OpenSet, ...]
    evaluation: tuple[OpenSet, ...]

    @property
    def origins(self) -> tuple[str, ...]:
        """Places outside that they came from, each once."""
        every = (one.origin for one in (*self.training, *self.evaluation))
        return tuple(dict.fromkeys(origin for origin in every if origin))

    @property
    def format(self) -> str:
        """The formats of the training sets, in words."""
        return ", ".join(dict.fromkeys(one.reader.format for one in self.training))

    def digest(self) -> str:
        """Of everything that decides which rows there are: the files' bytes, and what the spec says of them.

        One whole file with nothing said of it has its own digest, as `sha256sum` gives it.
        """
        sets = [_facts(one) for one in self.training]
        held_out = [_facts(one) for one in self.evaluation]
        if len(sets) == 1 and not held_out and set(sets[0]) == {"digest"}:
            return str(sets[0]["digest"])
        facts = {"sources": sets, "eval_sources": held_out}
        return digest_bytes(json.dumps(facts, sort_keys=True).encode())


def _facts(one: OpenSet) -> dict[str, object]:
    said = {
        "columns": dict(one.spec.columns),
        "placeholders": dict(one.spec.placeholders),
        "max_rows": one.spec.max_rows,
        "weight": one.spec.weight,
    }
    return {"digest": one.reader.digest()} | {name: value for name, value in said.items() if value}


class SetOpener:
    """Brings sets here.

    Args:
        sources: the kinds of places, in the order in which they are asked whether a set is theirs.
        folder: where what is fetched is kept, for all attempts of the job.
    """

    def __init__(self, sources: Sequence[Source], folder: Path) -> None:
        self._sources, self._folder = tuple(sources), folder

    @classmethod
    def usual(
        cls, folder: Path, log: Log, registry_address: str, actor: str, run: Run
    ) -> SetOpener:
        """Opens every kind of place that there is.

        Args:
            log: takes a line for people.
            registry_address, actor, run: as of BlobSource.
        """
        blobs = BlobSource(registry_address, actor, run)
        return cls((blobs, ObjectSource(log), LocalSource(), HubSource(log)), folder)

    def open(self, where: str, name: str, options: ReadOptions, source: DatasetSource) -> OpenSet:
        """Fetches a set, if that is needed, and opens it.

        Args:
            where: the spec's field that names it.
            name: of the folder that it is kept in, if it is fetched.

        Raises:
            GraftError: as Source.fetch() and RowReader.
        """
        kind = next((kind for kind in self._sources if kind.takes(source)), None)
        if kind is None:
            raise _nowhere(where, source.path)
        fetched = kind.fetch(source, self._folder / name)
        return OpenSet(RowReader(fetched.path, options), fetched.origin, source)


def open_sets(spec: DatasetSpec, opener: SetOpener, *, here: bool = False) -> OpenSets:
    """Opens all sets of a job.

    Args:
        here: only those that are on this machine, or should be: without fetching anything.

    Raises:
        GraftError: as SetOpener.open().
    """
    return OpenSets(
        _open_all("sources", spec.sources, spec, opener, here),
        _open_all("eval_sources", spec.eval_sources, spec, opener, here),
    )


def is_elsewhere(source: DatasetSource) -> bool:
    """Whether a set has to be fetched before it can be read."""
    return bool(source.blob_digest) or "://" in source.path or hub_place(source.path) is not None


def _open_all(
    field: str, sources: Sequence[DatasetSource], spec: DatasetSpec, opener: SetOpener, here: bool
) -> tuple[OpenSet, ...]:
    several = len(sources) > 1 or field != "sources"
    opened = []
    for index, source in enumerate(sources):
        if here and is_elsewhere(source):
            continue
        where = f"dataset.{field}[{index}]" if several else "dataset"
        options = ReadOptions(
            format=source.format,
            columns=source.columns,
            placeholders=source.placeholders,
            max_rows=source.max_rows,
            drop_empty=spec.cleaning.drop_empty,
            where=where,
            label=f"{field}[{index}]" if several else "",
        )
        opened.append(opener.open(where, f"{field}-{index}", options, source))
    return tuple(opened)


def _nowhere(where: str, path: str) -> GraftError:
    return GraftError(
        Reason.BAD_DATA,
        f"There is no file or folder {local_path(path)}",
        next_step="Check the dataset's path: the worker must see it too.",
        field=f"{where}.path",
    )
