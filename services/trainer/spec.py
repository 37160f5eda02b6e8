"""The job spec as the trainer and the worker use it: every default filled in, every range checked.

Nothing here imports torch or looks at the base or the data; a spec that passes can still name things
that do not exist.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from graft.digests import is_digest
from graft.errors import GraftError, Reason
from graft.names import check_id, default_base_id
from graft.trainer.v1 import job_spec_pb2 as pb

MAX_RANK = 512
Quantization = Literal["none", "nf4"]
_QUANTIZATIONS: dict[int, Quantization] = {
    pb.QUANTIZATION_UNSPECIFIED: "none",
    pb.QUANTIZATION_NONE: "none",
    pb.QUANTIZATION_NF4: "nf4",
}
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_SCHEDULES = ("linear", "cosine", "constant")
_OPTIMIZERS = ("adamw", "paged_adamw_8bit")
_FILE_ENDINGS = (".json", ".jsonl", ".csv", ".parquet")
_MODULE_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """The base model: a folder or a hub id, its name in the registry, and how it is held in memory."""

    source: str
    name: str
    quantization: Quantization
    dtype: str


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """The training data: a path, or a blob with its original name. format None: found out from the rows."""

    path: str
    blob_digest: str
    blob_name: str
    format: str | None
    eval_fraction: float
    max_rows: int


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """LoRA's settings. No target modules: all linear layers."""

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Numbers of the optimization. max_steps 0: epochs decide."""

    epochs: float
    max_steps: int
    learning_rate: float
    micro_batch_size: int
    gradient_accumulation_steps: int
    max_length_tokens: int
    packing: bool
    schedule: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    gradient_checkpointing: bool
    optimizer: str
    report_every_steps: int


@dataclass(frozen=True, slots=True)
class Resources:
    """What the job may use. cpu_threads 0: whoever starts the worker decides."""

    slots: int
    cpu_threads: int
    max_restarts: int


@dataclass(frozen=True, slots=True)
class Checkpointing:
    """Steps between two checkpoints, and how many of the newest are kept."""

    every_steps: int
    keep: int


@dataclass(frozen=True, slots=True)
class Output:
    """The adapter that gets the version, and the alias to move to it ("" for none)."""

    adapter: str
    alias: str


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One training job, complete and within every range."""

    base: BaseSpec
    dataset: DatasetSpec
    method: LoraSpec
    hyperparameters: Hyperparameters
    resources: Resources
    checkpointing: Checkpointing
    output: Output
    seed: int


def parse_spec(spec: pb.JobSpec) -> JobSpec:
    """Fills in the contract's defaults and checks every field.

    Raises:
        GraftError: INVALID_SPEC, naming the field's path, what it holds and what it may hold.
    """
    return JobSpec(
        base=_base(spec.base),
        dataset=_dataset(spec.dataset),
        method=_lora(spec.method.lora),
        hyperparameters=_hyperparameters(spec.hyperparameters),
        resources=_resources(spec.resources),
        checkpointing=Checkpointing(
            every_steps=_integer(
                "checkpointing.every_steps", spec.checkpointing.every_steps, 50, 1, 1000 * _MILLION
            ),
            keep=_integer("checkpointing.keep", spec.checkpointing.keep, 2, 1, 1000),
        ),
        output=_output(spec.output),
        seed=_integer("seed", spec.seed, 0, 0, 2**32 - 1),
    )


def _base(base: pb.BaseSpec) -> BaseSpec:
    if not base.source.strip():
        raise invalid_field("base.source", base.source, "a model's folder or a hub id")
    if base.quantization not in _QUANTIZATIONS:
        raise invalid_field("base.quantization", base.quantization, "none or nf4")
    return BaseSpec(
        source=base.source,
        name=_base_name(base),
        quantization=_QUANTIZATIONS[base.quantization],
        dtype=_choice("base.dtype", base.dtype, _DTYPES),
    )


def _base_name(base: pb.BaseSpec) -> str:
    if base.name:
        return _id("base.name", base.name)
    try:
        return default_base_id(base.source)
    except GraftError:
        allowed = f"a name, because none can be made from {base.source!r}"
        raise invalid_field("base.name", "", allowed) from None


def _dataset(dataset: pb.DatasetSpec) -> DatasetSpec:
    if bool(dataset.path) == bool(dataset.blob_digest):
        given = "both" if dataset.path else "neither"
        raise invalid_field("dataset.path", given, "exactly one of path and blob_digest")
    if dataset.blob_digest and not is_digest(dataset.blob_digest):
        raise invalid_field("dataset.blob_digest", dataset.blob_digest, "sha256: and 64 hex digits")
    if dataset.blob_digest and not dataset.blob_name.lower().endswith(_FILE_ENDINGS):
        raise invalid_field(
            "dataset.blob_name", dataset.blob_name, f"a file name ending in {_or(_FILE_ENDINGS)}"
        )
    return DatasetSpec(
        path=dataset.path,
        blob_digest=dataset.blob_digest,
        blob_name=dataset.blob_name.replace("\\", "/").rsplit("/", 1)[-1],
        format=_format(dataset.format),
        eval_fraction=_number("dataset.eval_fraction", dataset.eval_fraction, 0.0, 0.0, 0.5),
        max_rows=_integer("dataset.max_rows", dataset.max_rows, 0, 0, 2**62),
    )


def _format(value: int) -> str | None:
    if value == pb.DATA_FORMAT_UNSPECIFIED:
        return None
    if value not in pb.DataFormat.values():
        raise invalid_field("dataset.format", value, "one of the contract's DataFormat values")
    return pb.DataFormat.Name(pb.DataFormat.ValueType(value)).removeprefix("DATA_FORMAT_").lower()


def _lora(lora: pb.Lora) -> LoraSpec:
    rank = _integer("method.lora.rank", lora.rank, 16, 1, MAX_RANK)
    targets = tuple(lora.target_modules)
    for index, target in enumerate(targets):
        path = f"method.lora.target_modules[{index}]"
        if target != "all-linear" and _MODULE_NAME.fullmatch(target) is None:
            raise invalid_field(path, target, 'a module\'s name, for example "q_proj"')
        if target == "all-linear" and len(targets) > 1:
            raise invalid_field(path, target, "nothing beside it")
        if target in targets[:index]:
            raise invalid_field(path, target, "each name only once")
    return LoraSpec(
        rank=rank,
        alpha=_positive("method.lora.alpha", lora.alpha, 2.0 * rank, 65536.0),
        dropout=_number("method.lora.dropout", lora.dropout, 0.0, 0.0, 0.99),
        target_modules=() if targets == ("all-linear",) else targets,
    )


def _hyperparameters(given: pb.Hyperparameters) -> Hyperparameters:
    path = "hyperparameters"
    return Hyperparameters(
        epochs=_positive(f"{path}.epochs", given.epochs, 3.0, 100_000.0),
        max_steps=_integer(f"{path}.max_steps", given.max_steps, 0, 0, 1000 * _MILLION),
        learning_rate=_positive(f"{path}.learning_rate", given.learning_rate, 2e-4, 10.0),
        micro_batch_size=_integer(f"{path}.micro_batch_size", given.micro_batch_size, 8, 1, 65536),
        gradient_accumulation_steps=_integer(
            f"{path}.gradient_accumulation_steps", given.gradient_accumulation_steps, 1, 1, 65536
        ),
        max_length_tokens=_integer(
            f"{path}.max_length_tokens", given.max_length_tokens, 1024, 2, 16 * _MILLION
        ),
        packing=given.packing,
        schedule=_choice(f"{path}.schedule", given.schedule, _SCHEDULES),
        warmup_ratio=_number(f"{path}.warmup_ratio", given.warmup_ratio, 0.0, 0.0, 1.0),
        weight_decay=_number(f"{path}.weight_decay", given.weight_decay, 0.0, 0.0, 10.0),
        max_grad_norm=_positive(f"{path}.max_grad_norm", given.max_grad_norm, 1.0, 1e9),
        gradient_checkpointing=given.gradient_checkpointing,
        optimizer=_choice(f"{path}.optimizer", given.optimizer, _OPTIMIZERS),
        report_every_steps=_integer(
            f"{path}.report_every_steps", given.report_every_steps, 1, 1, _MILLION
        ),
    )


def _resources(given: pb.Resources) -> Resources:
    restarts = given.max_restarts if given.HasField("max_restarts") else 3
    return Resources(
        slots=_integer("resources.slots", given.slots, 1, 1, 1024),
        cpu_threads=_integer("resources.cpu_threads", given.cpu_threads, 0, 0, 4096),
        max_restarts=_integer("resources.max_restarts", restarts, 0, 0, 1000),
    )


def _output(output: pb.Output) -> Output:
    if not output.adapter:
        raise invalid_field("output.adapter", output.adapter, "the adapter's name")
    return Output(
        adapter=_id("output.adapter", output.adapter),
        alias=_id("output.alias", output.alias) if output.alias else "",
    )


def _id(path: str, text: str) -> str:
    try:
        return check_id(path, text)
    except GraftError as error:
        raise invalid_field(path, text, "a name", error.next_step) from None


def _choice(path: str, value: str, allowed: tuple[str, ...]) -> str:
    if not value:
        return allowed[0]
    if value not in allowed:
        raise invalid_field(path, value, _or(allowed))
    return value


def _integer(path: str, value: int, default: int, low: int, high: int) -> int:
    """The value, or the default for 0, within low to high."""
    chosen = value or default
    if not low <= chosen <= high:
        raise invalid_field(path, value, f"{low} to {high}")
    return chosen


def _number(path: str, value: float, default: float, low: float, high: float) -> float:
    chosen = value or default
    if not low <= chosen <= high:  # NaN is not within anything.
        raise invalid_field(path, value, f"{low:g} to {high:g}")
    return chosen


def _positive(path: str, value: float, default: float, high: float) -> float:
    chosen = value or default
    if not (math.isfinite(chosen) and 0 < chosen <= high):
        raise invalid_field(path, value, f"above 0 and at most {high:g}")
    return chosen


def local_path(text: str) -> Path:
    """A base's or a data set's path on this machine; "~" is the home of whoever runs the service."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~nobody": then it is a name like any other.
        return Path(text)


def _or(names: tuple[str, ...]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]])


def invalid_field(path: str, given: object, allowed: str, next_step: str = "") -> GraftError:
    """The error of a spec's field."""
    return GraftError(
        Reason.INVALID_SPEC,
        f"{path} is {given!r}; it must be {allowed}",
        next_step=next_step or f"Change {path} in the job's spec.",
        field=path,
    )
