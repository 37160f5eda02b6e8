"""Job specs as people write them: keyword arguments, a mapping, or a YAML or JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from graft.errors import GraftError, Reason
from graft.spec_file import did_you_mean, read_spec_file, replace_field, spec_from_dict
from graft.trainer.v1.job_spec_pb2 import JobSpec


class TrainOptions(TypedDict, total=False):
    """What train() takes; each overrides the spec's field. The contract's job_spec.proto has the defaults."""

    data: str | Path
    """A file (.json, .jsonl, .csv, .parquet) or a folder of them."""
    base: str | Path
    """Folder of the base model, or a hub id."""
    base_name: str
    adapter: str
    """The adapter that gets a new version."""
    alias: str
    """Points at the new version when it is there."""
    format: str
    """alpaca, sharegpt, messages, prompt_completion or text; found out when left out."""
    eval_fraction: float
    max_rows: int
    qlora: bool
    """Hold the frozen base in 4-bit NormalFloat."""
    dtype: str
    rank: int
    alpha: float
    dropout: float
    target_modules: Sequence[str]
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
    checkpoint_every_steps: int
    slots: int
    cpu_threads: int
    seed: int


_LORA = ("rank", "alpha", "dropout", "target_modules")
_PLACES: dict[str, str] = {
    "data": "dataset.path",
    "base": "base.source",
    "base_name": "base.name",
    "dtype": "base.dtype",
    "qlora": "base.quantization",
    "adapter": "output.adapter",
    "alias": "output.alias",
    "format": "dataset.format",
    "eval_fraction": "dataset.eval_fraction",
    "max_rows": "dataset.max_rows",
    "checkpoint_every_steps": "checkpointing.every_steps",
    "slots": "resources.slots",
    "cpu_threads": "resources.cpu_threads",
    "seed": "seed",
    **{name: f"method.lora.{name}" for name in _LORA},
}
SpecSource = Mapping[str, Any] | str | Path


def build_spec(source: SpecSource | None, options: TrainOptions) -> JobSpec:
    """The spec of a source with options laid over it; local paths are made absolute.

    Args:
        source: a mapping, or a .yaml, .yml or .json file.
        options: each that is not None replaces the source's field, also by 0, False or "".

    Raises:
        GraftError: INVALID_SPEC, naming the field.
    """
    spec = _read(source)
    _replace(spec, options)
    if spec.dataset.path:
        spec.dataset.path = str(Path(spec.dataset.path).expanduser().absolute())
    if spec.base.source:
        spec.base.source = _absolute_base(spec.base.source)
    _check(spec)
    return spec


def _read(source: SpecSource | None) -> JobSpec:
    if source is None:
        return JobSpec()
    return spec_from_dict(source) if isinstance(source, Mapping) else read_spec_file(Path(source))


def _replace(spec: JobSpec, options: TrainOptions) -> None:
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name not in TrainOptions.__annotations__:
            raise _unknown_option(name)
        if name == "qlora":
            value = "nf4" if value else "none"
        replace_field(spec, _PLACES.get(name, f"hyperparameters.{name}"), value)
    if "data" in given:  # A trainer refuses a spec with two data sets.
        spec.dataset.ClearField("blob_digest")
        spec.dataset.ClearField("blob_name")


def _unknown_option(name: str) -> GraftError:
    known = list(TrainOptions.__annotations__)
    return GraftError(
        Reason.INVALID_SPEC,
        f"train() has no option {name}",
        next_step=did_you_mean(name, known) or f"Known: {', '.join(known)}.",
    )


def _absolute_base(source: str) -> str:
    """A folder as an absolute path; a hub id ("owner/name") stays as it is."""
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def _check(spec: JobSpec) -> None:
    needed = (
        ("base.source", "--base FOLDER", spec.base.source),
        ("dataset.path", "DATA", spec.dataset.path or spec.dataset.blob_digest),
        ("output.adapter", "--adapter NAME", spec.output.adapter),
    )
    missing = [(field, option) for field, option, value in needed if not value]
    if missing:
        fields, given = zip(*missing, strict=True)
        raise GraftError(
            Reason.INVALID_SPEC,
            f"The job spec lacks {' and '.join(fields)}",
            next_step=f"Give `graft train` {' and '.join(given)}, or write it into the spec "
            "(in Python: train(data=..., base=..., adapter=...)).",
        )
