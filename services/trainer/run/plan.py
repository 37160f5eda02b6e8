"""Plans a job: exact counts of the real method on an empty model, memory by tracing a step, speed by a probe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from graft.registry.v1.registry_service_pb2 import Base
from graft.trainer.v1.worker_service_pb2 import Finished, SessionRequest

from services.trainer.methods import METHODS, Setting
from services.trainer.objectives import OBJECTIVES, Prepared, Reading
from services.trainer.objectives.distillation import DistillationConfig, teacher_folder
from services.trainer.plan.accelerators import find_accelerator
from services.trainer.plan.advice import cheapest_changes, fits
from services.trainer.plan.domain import DataFigures, Hardware, Memory, Plan
from services.trainer.plan.machine import this_cpu
from services.trainer.run.bases import BaseFolder, find_folder
from services.trainer.run.data import Data
from services.trainer.run.heap import Asked, kept_bytes
from services.trainer.run.models import compute_dtype, longest_input_tokens
from services.trainer.run.reporters import Reporter
from services.trainer.run.settings import WorkerSettings
from services.trainer.run.stop import StopSignal
from services.trainer.run.tracing import empty_model, on_meta, step_bytes
from services.trainer.run.trainers.common import steps_per_epoch, total_steps
from services.trainer.run.training import Training
from services.trainer.spec import JobSpec
from services.trainer.tokens import end_token_ids, load_tokenizer

# Assumed for a CUDA context with cuBLAS' workspace; not measured yet, no card was at hand.
_CUDA_CONTEXT_BYTES = 600 * 1024**2
# Share of the published speed that training reaches on one card: assumed, not measured; the plan says it is rough.
_REACHED_SHARE = 0.35
_PROBE_STEPS = 6
_BLOCK = 64  # bitsandbytes' 4-bit blocks; double quantization keeps 1 byte and 4/256 per block.
# Objectives whose rows are answers to compare, of which these learn from two at once; those that need the logits
# of every position; those that are held against the base.
_COMPARING = ("dpo", "orpo", "kto", "reward")
_PAIRED = ("dpo", "orpo", "reward")
_ALL_LOGITS = ("dpo", "orpo", "kto")
_REFERENCED = ("dpo", "kto", "grpo")
# Methods that leave no base to turn back to; see run/trainers/reference.py.
_WITHOUT_BASE = ("full", "pissa", "bottleneck")
Say = Callable[[str], None]
# Tokens per second, and the peak of memory in bytes.
TrySteps = Callable[[], tuple[float, int]]


class Planner:
    """Plans of one base and data for changing specs.

    Args:
        spec: the job.
        hardware: what it would run on.
        data: figures of the data.
        overhead_bytes: of the process before there is a model.
    """

    def __init__(
        self, spec: JobSpec, hardware: Hardware, data: DataFigures, overhead_bytes: int
    ) -> None:
        self._folder = find_folder(spec.base.source)
        self.hardware, self.data = hardware, data
        self._overhead_bytes = overhead_bytes
        self._tokenizer: Any = None
        self._known: dict[object, Memory] = {}

    def adapted(self, spec: JobSpec) -> tuple[_BaseBytes, Any, Any]:
        """Bytes of the base, the empty base with the method applied, and the method."""
        device = torch.device("cuda" if self.hardware.cuda else "cpu")
        model = empty_model(self._folder, compute_dtype(self._folder, spec.base, device))
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._folder, "")
        setting = Setting(
            base_name=spec.base.name,
            task_type="CAUSAL_LM",
            total_steps=100,
            gradient_checkpointing=spec.hyperparameters.gradient_checkpointing,
            tokenizer=self._tokenizer,
            seed=spec.seed,
            base_folder=self._folder,
        )
        weights = _base_bytes(model, spec, self.hardware.cuda)
        method = METHODS[spec.method.kind].make(spec.method, setting)
        with on_meta():
            adapted = method.apply(model)
        return weights, adapted, method

    def parameters(self, spec: JobSpec) -> tuple[int, int]:
        """Numbers trained, and all, as the worker reports them."""
        _, adapted, method = self.adapted(spec)
        found: tuple[int, int] = method.parameters(adapted)
        return found

    def memory(self, spec: JobSpec) -> Memory:
        """Memory at the peak."""
        key = (spec.base, spec.method, spec.hyperparameters)
        if key not in self._known:
            self._known[key] = self._memory(spec)
        return self._known[key]

    def _memory(self, spec: JobSpec) -> Memory:
        hyper = spec.hyperparameters
        base, adapted, method = self.adapted(spec)
        trained = [p for p in adapted.parameters() if p.requires_grad]
        for parameter in trained:  # As the trainer's settle() does.
            parameter.data = parameter.data.float()
        count = sum(parameter.numel() for parameter in trained)
        full = method.info.makes_base
        gradients = 4 * count
        sequences = hyper.micro_batch_size * (2 if spec.objective.kind in _PAIRED else 1)
        tokens = min(self.data.longest_tokens, hyper.max_length_tokens)
        step = step_bytes(
            adapted,
            sequences,
            tokens,
            max(1, round(sequences * tokens * self.data.learned_share)),
            checkpointing=hyper.gradient_checkpointing,
            passes=hyper.gradient_accumulation_steps,
            own_forward=method.uses_own_forward() or spec.objective.kind in _ALL_LOGITS,
            autocast=hyper.precision in ("bf16", "fp16")
            or (hyper.precision == "auto" and self.hardware.cuda),
        )
        quantized = spec.base.quantization != "none"
        kept = 0
        if not self.hardware.cuda:
            kept = kept_bytes(
                Asked(
                    step.heaped,
                    base.linear_bytes if quantized else 0,
                    0 if hyper.optimizer == "adamw" else count,
                    hyper.gradient_checkpointing,
                )
            )
        return Memory(
            weights_bytes=(4 * count if full else base.held_bytes)
            + self._beside_bytes(spec, base.held_bytes),
            adapter_bytes=0 if full else 4 * count,
            gradients_bytes=gradients,
            optimizer_bytes=count * (8 if hyper.optimizer == "adamw" else 2),
            activations_bytes=max(0, step.peak - gradients)
            + (2 * base.widest_bytes if quantized else 0),
            overhead_bytes=self._overhead_bytes + kept,
        )

    def _beside_bytes(self, spec: JobSpec, base_bytes: int) -> int:
        """Bytes of further models: a teacher, or a copy of the base where its adapter cannot be turned off."""
        objective, method = spec.objective, spec.method.kind
        if isinstance(objective, DistillationConfig):
            folder = teacher_folder(objective.teacher)
            device = torch.device("cuda" if self.hardware.cuda else "cpu")
            model = empty_model(folder, compute_dtype(folder, spec.base, device))
            return sum(one.numel() * one.element_size() for one in model.parameters())
        held = objective.kind in _REFERENCED and getattr(objective, "beta", 1.0) > 0
        return base_bytes if held and method in _WITHOUT_BASE else 0


@dataclass(frozen=True, slots=True)
class _BaseBytes:
    """A base's bytes: as it is held, and its linear layers and the widest of them as they are computed with."""

    held_bytes: int
    linear_bytes: int
    widest_bytes: int


def _base_bytes(model: Any, spec: JobSpec, cuda: bool) -> _BaseBytes:
    head = model.get_output_embeddings()
    linear = {
        id(module.weight): module.weight
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    kept = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in linear)
    numbers = sum(weight.numel() for weight in linear.values())
    size = next(model.parameters()).element_size()
    widest = max((weight.numel() for weight in linear.values()), default=0) * size
    # On a CPU the file that they were quantized from stays mapped.
    mapped = 0 if cuda else numbers * size
    match spec.base.quantization:
        case "none":
            held = numbers * size
        case "int8":
            held = numbers + mapped
        case _:
            scales = numbers / _BLOCK * (1 + 4 / 256 if spec.base.double_quantization else 4)
            held = int(numbers / 2 + scales) + mapped
    return _BaseBytes(kept + held, numbers * size, widest)


def find_hardware(accelerator: str, memory_bytes: int) -> Hardware:
    """A card of the table, or this machine; with another memory where it is given."""
    if accelerator == "cpu":
        found = this_cpu()
    elif accelerator:
        found = find_accelerator(accelerator)
    elif torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found = Hardware(card.name, card.total_memory, cuda=True, tflops=0.0, here=True)
    else:
        found = this_cpu()
    return replace(found, memory_bytes=memory_bytes) if memory_bytes else found


def prepare(spec: JobSpec, data: Data, say: Say) -> Prepared:
    """The data as the worker would prepare it."""
    folder = find_folder(spec.base.source)
    tokenizer = load_tokenizer(folder, spec.dataset.chat_template)
    wanted = spec.hyperparameters.max_length_tokens
    from transformers import AutoConfig

    class _Configured:
        config = AutoConfig.from_pretrained(folder)

    reading = Reading(
        spec=spec,
        tokenizer=tokenizer,
        end_ids=end_token_ids(tokenizer, folder),
        max_tokens=longest_input_tokens(_Configured, wanted, spec.method.input_tokens),
        log=say,
        stream=data.stream,
    )
    objective = OBJECTIVES[spec.objective.kind].make(spec.objective)
    return objective.prepare(data.training, data.held_out, reading)


def data_figures(spec: JobSpec, prepared: Prepared) -> DataFigures:
    """Figures of prepared rows; where an objective's rows are not token rows, the longest that the spec allows."""
    batches, most = prepared.train, spec.hyperparameters.max_length_tokens
    sequences = prepared.sequences or 0
    if spec.objective.kind in _COMPARING:
        return _paired_figures(prepared.train, sequences)
    rows = getattr(batches, "rows", None)
    if prepared.sequences is None or rows is None or not all(hasattr(r, "learned") for r in rows):
        return DataFigures(prepared.rows, prepared.rows * most, most, 1.0, sequences, most, most)
    lengths = np.array([len(row) for row in rows])
    learned = np.array([int(np.count_nonzero(row.learned)) for row in rows])
    longest = np.argsort(-lengths)[: spec.hyperparameters.micro_batch_size]
    packed = batches.packs
    share = (
        learned.sum() / lengths.sum()
        if packed
        else learned[longest].sum() / (len(longest) * lengths.max())
    )
    return DataFigures(
        rows=prepared.rows,
        tokens=int(lengths.sum()),
        longest_tokens=int(max(batches.lengths)),
        learned_share=float(share),
        sequences=sequences,
        p95_tokens=int(np.percentile(lengths, 95, method="inverted_cdf")),
        mean_tokens=float(lengths.mean()),
    )


def _paired_figures(rows: Sequence[Mapping[str, Any]], sequences: int) -> DataFigures:
    """Of rows with two answers to a prompt, or with one that has a label."""
    lengths = np.array(
        [
            len(row.get("prompt_ids", ())) + len(ids)
            for row in rows
            for name, ids in row.items()
            if name.endswith("_ids") and name != "prompt_ids"
        ]
    )
    return DataFigures(
        rows=len(rows),
        tokens=int(lengths.sum()),
        longest_tokens=int(lengths.max()),
        learned_share=1.0,
        sequences=sequences,
        p95_tokens=int(np.percentile(lengths, 95, method="inverted_cdf")),
        mean_tokens=float(lengths.mean()),
    )


class _Probing(Reporter):
    """Keeps the speeds of the steps."""

    def __init__(self) -> None:
        self.speeds: list[float] = []

    def send(self, report: SessionRequest) -> None:
        if report.HasField("metrics") and report.metrics.tokens_per_second > 0:
            self.speeds.append(report.metrics.tokens_per_second)

    def finish(self, report: Finished) -> None:
        """Nobody waits for it."""


def probe(spec: JobSpec, data: Data) -> tuple[float, int]:
    """Trains a few steps of the spec in this process: tokens per second, and the peak of memory in bytes."""
    hyper = replace(spec.hyperparameters, max_steps=_PROBE_STEPS, report_every_steps=1)
    small = replace(
        spec,
        hyperparameters=hyper,
        checkpointing=replace(
            spec.checkpointing, every_steps=1_000_000_000, every_s=0.0, use_best=False
        ),
    )
    reporter = _Probing()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(prefix="graft-probe-") as folder:
        settings = WorkerSettings(
            "namespaces/default/jobs/probe", 1, "", "", "", Path(folder), 1.0, 1.0
        )
        base = BaseFolder(find_folder(spec.base.source), Base(name="bases/probe"))
        training = Training(small, "probe", settings, reporter, StopSignal())
        # An evaluation at the end would take time and tell nothing.
        training.run(base, replace(data, held_out=[]), "probe")
    settled = reporter.speeds[1:] or reporter.speeds
    return float(np.median(settled)) if settled else 0.0, peak_bytes()


def peak_bytes() -> int:
    """The most memory that this process had: on a card with the context, else the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() + _CUDA_CONTEXT_BYTES
    # Not getrusage(): that begins with the resident set of whoever started this process.
    status = Path("/proc/self/status").read_text()
    line = next(one for one in status.splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def own_bytes(hardware: Hardware) -> int:
    """What there is before a model: this process, which imports what a worker does, or a card's context."""
    return _CUDA_CONTEXT_BYTES if hardware.cuda else psutil.Process().memory_info().rss


def make_plan(
    spec: JobSpec, hardware: Hardware, data: Data, say: Say, try_steps: TrySteps | None
) -> Plan:
    """The whole plan.

    Args:
        spec: the job.
        hardware: what it would run on.
        data: what is trained on.
        say: takes what is being done.
        try_steps: probes in a process of its own; None for no probe.

    Raises:
        GraftError: what is wrong with spec, base or data.
    """
    say("tokenizing")
    prepared = prepare(spec, data, say)
    return plan_prepared(spec, hardware, data, data_figures(spec, prepared), say, try_steps)


def plan_prepared(
    spec: JobSpec,
    hardware: Hardware,
    data: Data,
    figures: DataFigures,
    say: Say,
    try_steps: TrySteps | None,
) -> Plan:
    """The plan of data whose figures are known."""
    say("counting")
    planner = Planner(spec, hardware, figures, own_bytes(hardware))
    trained, total = planner.parameters(spec)
    memory = planner.memory(spec)
    enough = fits(memory, hardware.memory_bytes)
    changes = () if enough else cheapest_changes(spec, hardware.memory_bytes, planner.memory)
    steps = total_steps(spec, steps_per_epoch(spec, figures.sequences))
    speed, peak, source, notes = 0.0, 0, "", []
    if hardware.here and try_steps is not None and enough:
        say("trying a few steps")
        speed, peak = try_steps()
        source = "probe"
    elif hardware.tflops:
        speed, source = _table_speed(spec, hardware, total, trained), "table"
        notes.append(
            f"The time is a rough figure: {_REACHED_SHARE:.0%} of {hardware.name}'s published speed."
        )
    if spec.objective.kind == "grpo":
        notes.append("Memory is that of learning: what sampling the answers holds is not in it.")
    hyper = spec.hyperparameters
    if hyper.torch_compile or hyper.kernels != "none":
        notes.append("Memory and time by the table are those without compiled layers and kernels.")
    per_step = figures.tokens / max(1, steps_per_epoch(spec, figures.sequences))
    seconds = steps * per_step / speed if speed else 0.0
    if hyper.packing and spec.objective.kind == "sft":
        notes.append("Packed: the longest sequence is a pack.")
    return Plan(
        enough, trained, total, memory, hardware, figures, steps, speed, seconds, source, peak,
        changes, tuple(notes),
    )  # fmt: skip


def _table_speed(spec: JobSpec, hardware: Hardware, total: int, trained: int) -> float:
    """Tokens per second: 2 operations per number forward, 2 backward, 2 more for trained ones (Kaplan et al. 2020)."""
    operations = 4 * total + 2 * trained
    if spec.hyperparameters.gradient_checkpointing:
        operations += 2 * total
    return hardware.tflops * 1e12 * _REACHED_SHARE / operations
