"""Opens the sets that a spec names: each is fetched if it is elsewhere, and can then be read row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graft.digests import digest_bytes
from graft.errors import GraftError, Reason

from services.trainer.formats.load import ReadOptions, RowReader
from services.trainer.sources.base import Fetched, Log, Source
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
    regression: tuple[OpenSet, ...] = ()

    @property
    def origins(self) -> tuple[str, ...]:
        """Places outside that they came from, each once."""
        every = (one.origin for one in (*self.training, *self.evaluation, *self.regression))
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
        regression = [_facts(one) for one in self.regression]
        if len(sets) == 1 and not held_out and not regression and set(sets[0]) == {"digest"}:
            return str(sets[0]["digest"])
        facts = {"sources": sets, "eval_sources": held_out}
        if regression:
            facts["regression_sources"] = regression
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
        cls,
        folder: Path,
        log: Log,
        registry_address: str,
        actor: str,
        run: Run,
        patiently: Callable[[Source], Source] = lambda source: source,
    ) -> SetOpener:
        """Opens every kind of place that there is.

        Args:
            log: takes a line for people.
            registry_address, actor, run: as of BlobSource.
            patiently: makes of a place elsewhere one that is waited for while it is away.
        """
        blobs = patiently(BlobSource(registry_address, actor, run))
        objects, hub = patiently(ObjectSource(log)), patiently(HubSource(log))
        return cls((blobs, objects, LocalSource(), hub), folder)

    def fetch(self, field: str, index: int, source: DatasetSource) -> Fetched:
        """Brings a set here, if it is not.

        Args:
            field: "sources", "eval_sources" or "regression_sources".
            index: its place there.

        Raises:
            GraftError: as Source.fetch().
        """
        kind = next((kind for kind in self._sources if kind.takes(source)), None)
        if kind is None:
            raise GraftError(
                Reason.BAD_DATA,
                f"There is no file or folder {local_path(source.path)}",
                next_step="Check the dataset's path: the worker must see it too.",
                path=source.path,
            )
        return kind.fetch(source, self._folder / f"{field}-{index}")


def open_sets(spec: DatasetSpec, opener: SetOpener, *, here: bool = False) -> OpenSets:
    """Opens all sets of a job.

    Args:
        here: only those that are on this machine, or should be: without fetching anything.

    Raises:
        GraftError: as SetOpener.fetch() and RowReader.
    """
    return OpenSets(
        _open_all("sources", spec, opener, here),
        _open_all("eval_sources", spec, opener, here),
        _open_all("regression_sources", spec, opener, here),
    )


def is_elsewhere(source: DatasetSource) -> bool:
    """Whether a set has to be fetched before it can be read."""
    return bool(source.blob_digest) or "://" in source.path or hub_place(source.path) is not None


def read_options(spec: DatasetSpec, field: str, index: int) -> ReadOptions:
    """How one of a job's sets is read; several are told apart in messages.

    Args:
        field: "sources", "eval_sources" or "regression_sources".
        index: its place there.
    """
    sources: tuple[DatasetSource, ...] = getattr(spec, field)
    alone = field == "sources" and len(sources) == 1
    return ReadOptions(
        format=sources[index].format,
        columns=sources[index].columns,
        placeholders=sources[index].placeholders,
        max_rows=sources[index].max_rows,
        drop_empty=spec.cleaning.drop_empty,
        where="dataset" if alone else f"dataset.{field}[{index}]",
        label="" if alone else f"{field}[{index}]",
    )


def _open_all(field: str, spec: DatasetSpec, opener: SetOpener, here: bool) -> tuple[OpenSet, ...]:
    opened = []
    for index, source in enumerate(getattr(spec, field)):
        if here and is_elsewhere(source):
            continue
        fetched = opener.fetch(field, index, source)
        reader = RowReader(fetched.path, read_options(spec, field, index))
        opened.append(OpenSet(reader, fetched.origin, source))
    return tuple(opened)
