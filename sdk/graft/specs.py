"""Job specs as people write them: keyword arguments, a mapping, or a YAML or JSON file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from graft.errors import GraftError, Reason
from graft.spec_file import did_you_mean, read_spec_file, replace_field, spec_from_dict
from graft.trainer.v1.job_spec_pb2 import JobSpec


class TrainOptions(TypedDict, total=False):
    """What train() takes; each overrides the spec's field. The contract's job_spec.proto has the defaults."""

    data: str | Path
    """A file (.json, .jsonl, .csv, .parquet, .arrow), a folder of them, "hf://owner/name" or "s3://bucket/key"."""
    base: str | Path
    """Folder of the base model, or a hub id."""
    base_name: str
    method: str
    """lora, qlora, dora, full and so on; `graft methods` lists them."""
    objective: str
    """sft, cpt, dpo, kto, orpo, grpo, reward or distillation."""
    adapter: str
    """The adapter that gets a new version."""
    output_base: str
    """With method full: the base that gets a new version."""
    alias: str
    """Points at the new version when it is there."""
    format: str
    """alpaca, sharegpt, messages, prompt_completion, text, preference, kto or prompt; found out when left out."""
    columns: Mapping[str, str]
    """What the format's fields are called in the file: {"instruction": "question"}."""
    placeholders: Mapping[str, str]
    """What "{{name}}" is replaced with: {"name": "Ada"}."""
    chat_template: str
    """A named template instead of the base's own."""
    loss_on: str
    """assistant, last_turn or everything."""
    dedupe: bool
    """Leave out rows that say the same as an earlier one."""
    streaming: bool
    """Read the data while training; needs max_steps."""
    eval_fraction: float
    max_rows: int
    qlora: bool
    """Hold the frozen base in 4-bit NormalFloat."""
    quantization: str
    """none, nf4, fp4 or int8."""
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
    warmup_steps: int
    min_learning_rate: float
    """Where schedule cosine ends."""
    precision: str
    """auto, fp32, bf16 or fp16."""
    neftune_alpha: float
    """Noise on the embeddings while training."""
    torch_compile: bool
    kernels: str
    """none or liger."""
    weight_decay: float
    max_grad_norm: float
    gradient_checkpointing: bool
    optimizer: str
    report_every_steps: int
    checkpoint_every_steps: int
    slots: int
    cpu_threads: int
    seed: int


# They are set on whichever method is chosen.
_OF_METHOD = ("rank", "alpha", "dropout", "target_modules")
_PLACES: dict[str, str] = {
    "data": "dataset.path",
    "base": "base.source",
    "base_name": "base.name",
    "dtype": "base.dtype",
    "qlora": "base.quantization",
    "quantization": "base.quantization",
    "adapter": "output.adapter",
    "output_base": "output.base",
    "alias": "output.alias",
    "format": "dataset.format",
    "eval_fraction": "dataset.eval_fraction",
    "max_rows": "dataset.max_rows",
    "checkpoint_every_steps": "checkpointing.every_steps",
    "slots": "resources.slots",
    "cpu_threads": "resources.cpu_threads",
    "seed": "seed",
    "columns": "dataset.columns",
    "placeholders": "dataset.placeholders",
    "chat_template": "dataset.chat_template",
    "loss_on": "dataset.loss_on",
    "dedupe": "dataset.cleaning.dedupe",
    "streaming": "dataset.streaming",
}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILE_ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".gz")
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
        spec.dataset.path = _absolute_data(spec.dataset.path)
    for source_set in (*spec.dataset.sources, *spec.dataset.eval_sources):
        if source_set.path:
            source_set.path = _absolute_data(source_set.path)
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
    for name in ("method", "objective"):
        if (kind := given.pop(name, None)) is not None:
            _choose(spec, name, kind)
    for name, value in given.items():
        if name not in TrainOptions.__annotations__:
            raise _unknown_option(name)
        if name == "qlora":
            value = "nf4" if value else "none"
        replace_field(spec, _place(spec, name), value)
    if "data" in given:  # A trainer refuses a spec with two data sets.
        spec.dataset.ClearField("blob_digest")
        spec.dataset.ClearField("blob_name")
        spec.dataset.ClearField("sources")


def _choose(spec: JobSpec, part: str, kind: str) -> None:
    """Makes a method or an objective the chosen one; keeps its settings where it already is."""
    message = getattr(spec, part)
    known = list(message.DESCRIPTOR.oneofs_by_name["kind"].fields)
    names = [field.name for field in known]
    kind = kind.replace("-", "_")
    if kind not in names:
        raise GraftError(
            Reason.INVALID_SPEC,
            f"{part} is {kind!r}; it must be one of {', '.join(names)}",
            next_step=did_you_mean(kind, names) or "See `graft methods`.",
            field=part,
        )
    getattr(message, kind).SetInParent()


def _place(spec: JobSpec, name: str) -> str:
    if name not in _OF_METHOD:
        return _PLACES.get(name, f"hyperparameters.{name}")
    kind = spec.method.WhichOneof("kind") or "lora"
    fields = getattr(spec.method, kind).DESCRIPTOR.fields_by_name
    if name not in fields:
        raise GraftError(
            Reason.INVALID_SPEC,
            f"Method {kind} has no {name}",
            next_step=f"It has {', '.join(fields) or 'no settings'}; leave {name} out.",
            field=f"method.{kind}.{name}",
        )
    return f"method.{kind}.{name}"


def _unknown_option(name: str) -> GraftError:
    known = list(TrainOptions.__annotations__)
    return GraftError(
        Reason.INVALID_SPEC,
        f"train() has no option {name}",
        next_step=did_you_mean(name, known) or f"Known: {', '.join(known)}.",
    )


def _absolute_data(source: str) -> str:
    """A file or folder as an absolute path; an URI and a hub id ("owner/name") stay as they are."""
    return source if is_elsewhere(source) else str(Path(source).expanduser().absolute())


def is_elsewhere(source: str) -> bool:
    """Whether a data set is named by an URI, or a hub id, and not by a path."""
    if _SCHEME.match(source):
        return True
    is_id = _HUB_ID.fullmatch(source) and not source.lower().endswith(_FILE_ENDINGS)
    return bool(is_id) and not Path(source).expanduser().exists()


def _absolute_base(source: str) -> str:
    """A folder as an absolute path; a hub id ("owner/name") stays as it is."""
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def _check(spec: JobSpec) -> None:
    needed = (
        ("base.source", "--base FOLDER", spec.base.source),
        (
            "dataset.path",
            "DATA",
            spec.dataset.path or spec.dataset.blob_digest or spec.dataset.sources,
        ),
        ("output.base", "--output-base NAME", spec.output.base)
        if spec.method.WhichOneof("kind") == "full"
        else ("output.adapter", "--adapter NAME", spec.output.adapter),
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
