"""Which method and which hyperparameters for a base, a machine and data: rules with their sources."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

from graft.errors import GraftError
from graft.trainer.v1 import job_spec_pb2, plan_pb2

from services.trainer.objectives import OBJECTIVES
from services.trainer.plan.advice import fits
from services.trainer.plan.domain import DataFigures, Hardware, Memory
from services.trainer.spec import JobSpec, parse_spec

_FEW_ROWS, _MANY_ROWS = 1000, 20_000
_SMALL_RANK, _USUAL_RANK, _LARGE_RANK = 8, 16, 64
_SEQUENCES_PER_STEP = 16
_LENGTH_STEP = 64
_MOST_TOKENS = 8192
_REASONS = {
    "lora": (
        "for fine-tuning it learns about as well as all parameters",
        "Hu et al. 2021, arXiv:2106.09685",
    ),
    "qlora": ("LoRA on the whole base does not fit", "Dettmers et al. 2023, arXiv:2305.14314"),
    "full": (
        "a base is asked for, and only all parameters make one; from much raw text they also learn more",
        "Biderman et al. 2024, arXiv:2405.09673",
    ),
}
# Gradient checkpointing and micro-batch, from what is best to what needs least.
_SETTINGS = tuple(product((False, True), (8, 4, 2, 1)))
Estimate = Callable[[JobSpec, DataFigures], Memory]


def recommend(
    given: job_spec_pb2.JobSpec, data: DataFigures, hardware: Hardware, estimate: Estimate
) -> plan_pb2.Recommendation:
    """A spec with the reason of each choice; its plan is still to be filled in.

    Args:
        given: base, data, objective and output; method full with an output.base, which only that makes.
        data: figures of its rows, before any was cut.
        hardware: what it would run on.
        estimate: memory of a spec with data of such figures.

    Raises:
        GraftError: INVALID_SPEC, from a spec that cannot be chosen for.
    """
    found = plan_pb2.Recommendation()

    def choose(field: str, value: object, why: str, source: str) -> None:
        found.choices.add(field=field, value=str(value), why=why, source=source)

    spec = job_spec_pb2.JobSpec()
    spec.CopyFrom(given)
    spec.ClearField("hyperparameters")
    hyper = spec.hyperparameters
    length = min(_MOST_TOKENS, max(_LENGTH_STEP, math.ceil(data.p95_tokens / 64) * 64))
    hyper.max_length_tokens = length
    choose(
        "hyperparameters.max_length_tokens", length,
        f"95 of 100 rows have at most {data.p95_tokens} tokens", "the data's 95th percentile",
    )  # fmt: skip
    known = replace(data, longest_tokens=min(data.longest_tokens, length))
    info = OBJECTIVES[parse_spec(given).objective.kind].info
    if info.packing:
        hyper.packing = data.mean_tokens < length / 2
        known = replace(known, longest_tokens=length) if hyper.packing else known
        choose(
            "hyperparameters.packing", str(hyper.packing).lower(),
            f"a row has {data.mean_tokens:.0f} tokens on average, the longest {length}",
            "Krell et al. 2021, arXiv:2107.02027",
        )  # fmt: skip
    hyper.epochs = 3.0 if data.rows < _MANY_ROWS else 1.0
    choose(
        "hyperparameters.epochs", hyper.epochs, f"{data.rows:,} rows",
        "Taori et al. 2023 (3 for 52,000 rows); more rows need fewer passes",
    )  # fmt: skip
    rank = _rank(data.rows)
    _method(spec, known, hardware, estimate, rank, choose)
    return _finish(found, spec, choose, rank)


def _rank(rows: int) -> int:
    if rows < _FEW_ROWS:
        return _SMALL_RANK
    return _USUAL_RANK if rows < _MANY_ROWS else _LARGE_RANK


def _method(
    spec: job_spec_pb2.JobSpec,
    data: DataFigures,
    hardware: Hardware,
    estimate: Estimate,
    rank: int,
    choose: Callable[[str, object, str, str], None],
) -> None:
    """The first method that fits; within it the largest micro-batch, then checkpointing."""
    kinds = ("full",) if spec.output.base else ("lora", "qlora")
    for kind in kinds:
        if kind == "full":
            spec.method.full.SetInParent()
        else:
            getattr(spec.method, kind).rank = rank
        settings = [one for one in _SETTINGS if _is_allowed(spec, one)]
        # The one that needs least says whether there is any that fits.
        memory = _with(spec, data, estimate, settings[-1])
        if fits(memory, hardware.memory_bytes):
            for setting in settings:
                memory = _with(spec, data, estimate, setting)
                if fits(memory, hardware.memory_bytes):
                    break
            break
    _explain(spec, kind, memory, hardware, choose)


def _set(spec: job_spec_pb2.JobSpec, setting: tuple[bool, int]) -> JobSpec:
    hyper = spec.hyperparameters
    hyper.gradient_checkpointing, hyper.micro_batch_size = setting
    hyper.gradient_accumulation_steps = _SEQUENCES_PER_STEP // hyper.micro_batch_size
    return parse_spec(spec)


def _is_allowed(spec: job_spec_pb2.JobSpec, setting: tuple[bool, int]) -> bool:
    """Whether the objective takes such batches: KTO compares within one, and GRPO samples several answers."""
    try:
        _set(spec, setting)
    except GraftError:
        return setting == _SETTINGS[0]  # What is wrong with everything is told by the first.
    return True


def _with(
    spec: job_spec_pb2.JobSpec, data: DataFigures, estimate: Estimate, setting: tuple[bool, int]
) -> Memory:
    return estimate(_set(spec, setting), data)


def _explain(
    spec: job_spec_pb2.JobSpec,
    kind: str,
    memory: Memory,
    hardware: Hardware,
    choose: Callable[[str, object, str, str], None],
) -> None:
    gib = 1024**3
    enough = fits(memory, hardware.memory_bytes)
    need = f"needs {memory.total_bytes / gib:.1f} GiB of {hardware.memory_bytes / gib:.0f}"
    reason, source = _REASONS[kind]
    why = f"{reason}; it {need}"
    choose("method", kind, why if enough else f"the smallest there is, though it {need}", source)
    hyper = spec.hyperparameters
    choose(
        "hyperparameters.micro_batch_size", hyper.micro_batch_size,
        f"the largest that fits; with {hyper.gradient_accumulation_steps} accumulation steps an update has "
        f"{_SEQUENCES_PER_STEP} sequences",
        "Dettmers et al. 2023, table 9: 16",
    )  # fmt: skip
    if hyper.gradient_checkpointing:
        choose(
            "hyperparameters.gradient_checkpointing", "true", "it does not fit without",
            "Chen et al. 2016, arXiv:1604.06174",
        )  # fmt: skip


def _finish(
    found: plan_pb2.Recommendation,
    spec: job_spec_pb2.JobSpec,
    choose: Callable[[str, object, str, str], None],
    rank: int,
) -> plan_pb2.Recommendation:
    chosen = parse_spec(spec)
    kind = chosen.method.kind
    if kind != "full":
        choose(
            f"method.{kind}.rank", rank, "more rows have more to learn",
            "Biderman et al. 2024, arXiv:2405.09673",
        )  # fmt: skip
    info = OBJECTIVES[chosen.objective.kind].info
    spec.hyperparameters.learning_rate = chosen.hyperparameters.learning_rate
    choose(
        "hyperparameters.learning_rate", chosen.hyperparameters.learning_rate,
        "the default of method and objective", info.learning_rate_source or "see `graft methods`",
    )  # fmt: skip
    found.spec.CopyFrom(spec)
    return found
