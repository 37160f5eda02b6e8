"""Job specs as people write them: keyword arguments, a mapping, or a YAML or JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import yaml
from google.protobuf.json_format import ParseDict, ParseError

from graft.errors import GraftError, Reason
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
_PLACES: dict[str, tuple[str, ...]] = {
    "data": ("dataset", "path"),
    "base": ("base", "source"),
    "base_name": ("base", "name"),
    "dtype": ("base", "dtype"),
    "adapter": ("output", "adapter"),
    "alias": ("output", "alias"),
    "eval_fraction": ("dataset", "eval_fraction"),
    "max_rows": ("dataset", "max_rows"),
    "checkpoint_every_steps": ("checkpointing", "every_steps"),
    "slots": ("resources", "slots"),
    "cpu_threads": ("resources", "cpu_threads"),
    "seed": ("seed",),
    **{name: ("method", "lora", name) for name in _LORA},
}
SpecSource = Mapping[str, Any] | str | Path


def read_spec(source: SpecSource) -> dict[str, Any]:
    """A spec as a mapping; source is one already, or a .yaml, .yml or .json file.

    Raises:
        GraftError: INVALID_SPEC, with the line where a file stops being YAML or JSON.
    """
    if isinstance(source, Mapping):
        return _copy(source)
    path = Path(source)
    try:
        text = path.read_text("utf-8")
        spec = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise _invalid(f"{path} cannot be read ({error.strerror})", path) from None
    except (ValueError, yaml.YAMLError) as error:
        raise _invalid(f"{path} is neither YAML nor JSON: {error}", path) from None
    if not isinstance(spec, dict):
        raise _invalid(f"{path} holds no job spec", path)
    return spec


def build_spec(source: SpecSource | None, options: TrainOptions) -> JobSpec:
    """The spec of a source with options laid over it; local paths are made absolute.

    Raises:
        GraftError: INVALID_SPEC, naming the field.
    """
    spec = read_spec(source) if source is not None else {}
    message = _parse(spec)
    message.MergeFrom(_parse(_from_options(options)))
    if "target_modules" in options:
        del message.method.lora.target_modules[:]
        message.method.lora.target_modules.extend(options["target_modules"])
    if message.dataset.path:
        message.dataset.path = str(Path(message.dataset.path).expanduser().absolute())
    message.base.source = _absolute_base(message.base.source)
    _check(message)
    return message


def _from_options(options: TrainOptions) -> dict[str, Any]:
    laid: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        if name == "qlora":
            if value:
                _put(laid, ("base", "quantization"), "QUANTIZATION_NF4")
        elif name == "format":
            _put(laid, ("dataset", "format"), f"DATA_FORMAT_{str(value).upper().replace('-', '_')}")
        else:
            plain = str(value) if isinstance(value, Path) else value
            plain = list(plain) if name == "target_modules" else plain  # type: ignore[call-overload]
            _put(laid, _PLACES.get(name, ("hyperparameters", name)), plain)
    return laid


def _put(target: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    for part in place[:-1]:
        target = target.setdefault(part, {})
    target[place[-1]] = value


def _parse(spec: dict[str, Any]) -> JobSpec:
    try:
        return ParseDict(spec, JobSpec())
    except ParseError as error:
        raise _invalid(f"The job spec cannot be used: {error}") from None


def _absolute_base(source: str) -> str:
    """A folder as an absolute path; a hub id ("owner/name") stays as it is."""
    path = Path(source).expanduser()
    return str(path.absolute()) if source and path.exists() else source


def _check(spec: JobSpec) -> None:
    missing = [
        f"{field} ({option})"
        for field, option, value in (
            ("base.source", "base", spec.base.source),
            ("dataset.path", "data", spec.dataset.path or spec.dataset.blob_digest),
            ("output.adapter", "adapter", spec.output.adapter),
        )
        if not value
    ]
    if missing:
        raise _invalid(f"The job spec lacks {' and '.join(missing)}")


def _copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in mapping.items()}


def _invalid(message: str, path: Path | None = None) -> GraftError:
    return GraftError(
        Reason.INVALID_SPEC,
        message,
        next_step="proto/graft/trainer/v1/job_spec.proto lists every field with its default.",
        **({"path": path} if path else {}),
    )
