"""The training data of a job: its sets, how they are mixed, cleaned and rendered, and what is learned of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast

from graft.digests import is_digest
from graft.errors import GraftError, Reason
from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.chat_templates import named_template
from services.trainer.fields import integer, invalid_field, number, one_of
from services.trainer.formats.files import ENDINGS

LossOn = Literal["assistant", "last_turn", "everything"]
SCHEMES = ("hf://", "s3://")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_CREDENTIALS = re.compile(r"//[^/?#]*@")
_MOST_LOADERS = 64
_ONE_SET = ("path", "blob_digest", "blob_name", "format", "max_rows", "columns", "placeholders")


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """One set: a path or URI, or a blob with its original name. format None: found out from the rows."""

    path: str
    blob_digest: str
    blob_name: str
    format: str | None
    columns: Mapping[str, str]
    placeholders: Mapping[str, str]
    max_rows: int
    weight: float


@dataclass(frozen=True, slots=True)
class Cleaning:
    """Declared steps that leave rows out. A length of 0: no bound."""

    dedupe: bool
    drop_empty: bool
    min_length_tokens: int
    max_length_tokens: int
    drop_eval_overlap: bool


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """The training data. sources has at least one set; chat_template "" is the base's own; loader_processes 0: none."""

    sources: tuple[DatasetSource, ...]
    eval_sources: tuple[DatasetSource, ...]
    eval_fraction: float
    cleaning: Cleaning
    chat_template: str
    loss_on: LossOn
    streaming: bool
    loader_processes: int = 0


def parse_dataset(dataset: pb.DatasetSpec) -> DatasetSpec:
    """Checks the data's part of a spec; reads no data.

    Raises:
        GraftError: INVALID_SPEC.
    """
    eval_sources = tuple(
        _source(f"dataset.eval_sources[{index}]", one)
        for index, one in enumerate(dataset.eval_sources)
    )
    eval_fraction = number("dataset.eval_fraction", dataset.eval_fraction, 0.0, 0.0, 0.5)
    if eval_sources and eval_fraction:
        raise invalid_field(
            "dataset.eval_fraction", eval_fraction, "left out, because eval_sources are given"
        )
    for index, one in enumerate(eval_sources):
        if one.weight:
            raise invalid_field(
                f"dataset.eval_sources[{index}].weight",
                one.weight,
                "left out, because every row is evaluated with once",
            )
    _check_streaming(dataset)
    return DatasetSpec(
        sources=_sources(dataset),
        eval_sources=eval_sources,
        eval_fraction=eval_fraction,
        cleaning=_cleaning(dataset.cleaning, bool(eval_sources) or eval_fraction > 0),
        chat_template=_chat_template(dataset.chat_template),
        loss_on=_loss_on(dataset.loss_on),
        streaming=dataset.streaming,
        loader_processes=integer(
            "dataset.loader_processes", dataset.loader_processes, 0, 0, _MOST_LOADERS
        ),
    )


def _check_streaming(dataset: pb.DatasetSpec) -> None:
    if dataset.streaming and dataset.eval_fraction:
        raise invalid_field(
            "dataset.eval_fraction",
            dataset.eval_fraction,
            "left out with dataset.streaming, where how many rows there are is not known",
            "Name what to evaluate with in dataset.eval_sources.",
        )
    if dataset.streaming and dataset.loader_processes:
        raise invalid_field(
            "dataset.loader_processes",
            dataset.loader_processes,
            "left out with dataset.streaming, where each process would read and tokenize the whole stream",
        )


def _sources(dataset: pb.DatasetSpec) -> tuple[DatasetSource, ...]:
    if not dataset.sources:
        one = pb.DatasetSource(
            path=dataset.path,
            blob_digest=dataset.blob_digest,
            blob_name=dataset.blob_name,
            format=dataset.format,
            columns=dataset.columns,
            placeholders=dataset.placeholders,
            max_rows=dataset.max_rows,
        )
        return (_source("dataset", one),)
    for field in _ONE_SET:
        if given := getattr(dataset, field):
            raise invalid_field(
                f"dataset.{field}", given, "left out, because dataset.sources are given"
            )
    sources = tuple(
        _source(f"dataset.sources[{index}]", one) for index, one in enumerate(dataset.sources)
    )
    weighted = [source.weight > 0 for source in sources]
    if any(weighted) and not all(weighted):
        index = weighted.index(False)
        raise invalid_field(
            f"dataset.sources[{index}].weight", 0, "above 0, because other sets have weights"
        )
    return sources


def _source(path: str, source: pb.DatasetSource) -> DatasetSource:
    if bool(source.path) == bool(source.blob_digest):
        given = "both" if source.path else "neither"
        raise invalid_field(f"{path}.path", given, "exactly one of path and blob_digest")
    _check_place(f"{path}.path", source.path)
    if source.blob_digest and not is_digest(source.blob_digest):
        raise invalid_field(f"{path}.blob_digest", source.blob_digest, "sha256: and 64 hex digits")
    if source.blob_digest and not source.blob_name.lower().endswith(ENDINGS):
        raise invalid_field(
            f"{path}.blob_name", source.blob_name, f"a file name ending in {one_of(ENDINGS)}"
        )
    if not (math.isfinite(source.weight) and source.weight >= 0):
        raise invalid_field(f"{path}.weight", source.weight, "0 or above")
    return DatasetSource(
        path=source.path,
        blob_digest=source.blob_digest,
        blob_name=source.blob_name.replace("\\", "/").rsplit("/", 1)[-1],
        format=_format(f"{path}.format", source.format),
        columns=MappingProxyType(dict(source.columns)),
        placeholders=MappingProxyType(dict(source.placeholders)),
        max_rows=integer(f"{path}.max_rows", source.max_rows, 0, 0, 2**62),
        weight=source.weight,
    )


def _check_place(path: str, place: str) -> None:
    if _SCHEME.match(place) is None:
        return
    if not place.startswith("hf://") and _CREDENTIALS.search(place):
        # Without the value: messages are logged.
        raise GraftError(
            Reason.INVALID_SPEC,
            f"{path} holds a user name or password, which a spec must not",
            next_step="Leave it out, and set the credentials in the trainer's environment.",
            field=path,
        )
    if not place.startswith(SCHEMES):
        scheme = place.partition("://")[0]
        raise invalid_field(
            path,
            f"{scheme}://...",
            f"a path, a hub id, or begin with {one_of(SCHEMES)}",
            "Download the data and name its path, or train with upload.",
        )


def _format(path: str, value: int) -> str | None:
    if value == pb.DATA_FORMAT_UNSPECIFIED:
        return None
    if value not in pb.DataFormat.values():
        raise invalid_field(path, value, "one of the contract's DataFormat values")
    return pb.DataFormat.Name(pb.DataFormat.ValueType(value)).removeprefix("DATA_FORMAT_").lower()


def _cleaning(given: pb.Cleaning, evaluates: bool) -> Cleaning:
    path = "dataset.cleaning"
    if given.drop_eval_overlap and not evaluates:
        raise invalid_field(
            f"{path}.drop_eval_overlap",
            True,
            "left out, because there are no rows to evaluate with",
            "Set dataset.eval_fraction or dataset.eval_sources, or leave it out.",
        )
    low = integer(f"{path}.min_length_tokens", given.min_length_tokens, 0, 0, 2**31)
    high = integer(f"{path}.max_length_tokens", given.max_length_tokens, 0, 0, 2**31)
    if high and high < low:
        raise invalid_field(f"{path}.max_length_tokens", high, f"at least {low}, the shortest")
    return Cleaning(given.dedupe, given.drop_empty, low, high, given.drop_eval_overlap)


def _chat_template(name: str) -> str:
    if name:
        named_template(name)
    return name


def _loss_on(value: int) -> LossOn:
    if value not in pb.LossOn.values():
        raise invalid_field("dataset.loss_on", value, "assistant, last_turn or everything")
    name = pb.LossOn.Name(pb.LossOn.ValueType(value)).removeprefix("LOSS_ON_").lower()
    return "assistant" if name == "unspecified" else cast(LossOn, name)
