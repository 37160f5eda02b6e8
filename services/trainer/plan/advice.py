"""The cheapest change of a spec that makes it fit, found by asking the memory model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from services.trainer.methods import METHODS
from services.trainer.methods.qlora import QLoraConfig
from services.trainer.plan.domain import Change, Memory
from services.trainer.spec import JobSpec

_SHORTEST_TOKENS = 128
# A job at the very edge of memory does not run: other processes and fragmentation need some.
USABLE = 0.95
Estimate = Callable[[JobSpec], Memory]


@dataclass(frozen=True, slots=True)
class _Step:
    spec: JobSpec
    fields: tuple[str, ...]
    cost: str


def fits(memory: Memory, available_bytes: int) -> bool:
    """Whether memory is enough, with some to spare."""
    return memory.total_bytes <= USABLE * available_bytes


def cheapest_changes(spec: JobSpec, available_bytes: int, estimate: Estimate) -> tuple[Change, ...]:
    """The cheapest single change that makes a spec fit, else the cheapest few; () when nothing does.

    Args:
        spec: that does not fit.
        available_bytes: the machine's memory.
        estimate: the memory model.
    """
    for measure in _MEASURES:
        for step in measure(spec):
            memory = estimate(step.spec)
            if fits(memory, available_bytes):
                return (Change(step.fields, step.cost, memory, True),)
    return _together(spec, available_bytes, estimate)


def _together(spec: JobSpec, available_bytes: int, estimate: Estimate) -> tuple[Change, ...]:
    changes: list[Change] = []
    before = estimate(spec).total_bytes
    for measure in _MEASURES:
        best: tuple[_Step, Memory] | None = None
        for step in measure(spec):
            memory = estimate(step.spec)
            # What saves nothing is not worth its cost.
            if memory.total_bytes < 0.995 * before:
                best, before = (step, memory), memory.total_bytes
            if fits(memory, available_bytes):
                break
        if best is None:
            continue
        spec, memory = best[0].spec, best[1]
        changes.append(Change(best[0].fields, best[0].cost, memory, fits(memory, available_bytes)))
        if changes[-1].fits:
            return tuple(changes)
    return ()


def _checkpointing(spec: JobSpec) -> Iterator[_Step]:
    hyper = spec.hyperparameters
    if METHODS[spec.method.kind].info.gradient_checkpointing and not hyper.gradient_checkpointing:
        changed = replace(spec, hyperparameters=replace(hyper, gradient_checkpointing=True))
        yield _Step(
            changed,
            ("hyperparameters.gradient_checkpointing = true",),
            "about a third more time",
        )


def _micro_batch(spec: JobSpec) -> Iterator[_Step]:
    hyper = spec.hyperparameters
    size, accumulation = hyper.micro_batch_size, hyper.gradient_accumulation_steps
    while size > 1 and size % 2 == 0:
        size, accumulation = size // 2, accumulation * 2
        changed = replace(hyper, micro_batch_size=size, gradient_accumulation_steps=accumulation)
        yield _Step(
            replace(spec, hyperparameters=changed),
            (
                f"hyperparameters.micro_batch_size = {size}",
                f"hyperparameters.gradient_accumulation_steps = {accumulation}",
            ),
            "the same updates, in smaller and less efficient pieces",
        )


def _eight_bit(spec: JobSpec) -> Iterator[_Step]:
    if spec.hyperparameters.optimizer == "adamw":
        changed = replace(spec.hyperparameters, optimizer="adamw_8bit")
        yield _Step(
            replace(spec, hyperparameters=changed),
            ("hyperparameters.optimizer = adamw_8bit",),
            "nearly the same updates (Dettmers et al. 2021)",
        )


def _nf4(spec: JobSpec) -> Iterator[_Step]:
    info = METHODS[spec.method.kind].info
    if spec.base.quantization != "none" or "nf4" not in info.quantizations:
        return
    method, wanted = spec.method, ("base.quantization = nf4",)
    if method.kind == "lora":
        values = {one.name: getattr(method, one.name) for one in fields(method)}
        method, wanted = QLoraConfig(**values), ("method = qlora",)
    yield _Step(
        replace(spec, method=method, base=replace(spec.base, quantization="nf4")),
        wanted,
        "a slower step, and a base of 4 bits (Dettmers et al. 2023)",
    )


def _shorter(spec: JobSpec) -> Iterator[_Step]:
    length = spec.hyperparameters.max_length_tokens // 2
    while length >= _SHORTEST_TOKENS:
        changed = replace(spec.hyperparameters, max_length_tokens=length)
        yield _Step(
            replace(spec, hyperparameters=changed),
            (f"hyperparameters.max_length_tokens = {length}",),
            "longer rows are cut",
        )
        length //= 2


_MEASURES = (_checkpointing, _micro_batch, _eight_bit, _nf4, _shorter)
