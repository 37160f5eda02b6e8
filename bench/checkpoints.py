"""What a checkpoint of an adapter costs the training, in units of a step: ours beside the save of transformers' Trainer.

Within one run, so many steps from a checkpoint on are held against as many after them without one; all
batches are alike. What the loop itself waits in a save is counted apart: the rest is what a thread takes away. Ours is written beside the training, with checksums, flushed to the disk and renamed; the
Trainer's is written while training waits, and neither summed nor flushed. "Graft, waiting" is ours without
memory for a copy.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from graft.trainer.v1 import job_spec_pb2 as pb

from bench.contenders import Contenders
from bench.harness import Measurement, Report, compare

# The environment that contenders sets must be there before torch is loaded.
import torch  # isort: skip
from datasets import Dataset  # isort: skip
from peft import LoraConfig, get_peft_model  # isort: skip
from transformers import (  # isort: skip
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from services.trainer.formats import Place
from services.trainer.methods import METHODS, Setting
from services.trainer.objectives import Prepared, Run
from services.trainer.run.batches import PaddedRows
from services.trainer.run.checkpoint_writer import CheckpointWriter
from services.trainer.run.checkpoints import CheckpointStore, Keep
from services.trainer.run.progress import Progress
from services.trainer.run.reporters import SilentReporter
from services.trainer.run.stop import StopSignal
from services.trainer.run.trainers.sft import SupervisedTrainer
from services.trainer.run.training import load_other_base
from services.trainer.spec import JobSpec, parse_spec
from services.trainer.tokens import TokenRow

_RANK, _TOKENS, _ROWS = 64, 32, 4
_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_VOCABULARY = 4096
_DELAY = "delay_in_steps"


def run(short: bool = False) -> Report:
    """Measures all in turns; short only shows that they run."""
    window, checkpoints = (2, 1) if short else (3, 6)
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
        jobs = Jobs(Path(folder), window, checkpoints)
        report = compare(
            "checkpoints",
            {
                "graft": jobs.graft,
                "graft, waiting": jobs.graft_waiting,
                "transformers' Trainer": jobs.plain,
            },
            rounds=1 if short else 4,
            warm_up_rounds=0 if short else 1,
            settings=jobs.settings,
        )
    delay = report.figures["graft"][_DELAY].median
    report.goal(f"{_DELAY}, graft", "at most 1", delay, delay <= 1)
    return report


class Clock(TrainerCallback):  # type: ignore[misc]
    """Notes when each step has ended, before anything is saved."""

    def __init__(self) -> None:
        self.ended_s: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Notes it."""
        self.ended_s[state.global_step] = time.perf_counter()


@dataclass
class Jobs:
    """The same training by everybody.

    Args:
        folder: for checkpoints; it is on the disk that is measured.
        window: steps from a checkpoint on, and after them without one.
        checkpoints: of each run.
    """

    folder: Path
    window: int
    checkpoints: int
    settings: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.every = 2 * self.window
        # The last window is one without a checkpoint.
        self.steps = self.every * (self.checkpoints + 1)
        self.tokenizer = Contenders(self.folder, _model, rows=8).tokenizer
        draw = np.random.default_rng(0)
        count = self.steps * _ROWS
        ids = draw.integers(4, _VOCABULARY, (count, _TOKENS), dtype=np.int32)
        learned = np.ones(_TOKENS, bool)
        self.rows = [TokenRow(Place("made up", n), ids[n], learned) for n in range(count)]
        adapted = get_peft_model(_model(), _lora())
        self.settings |= {
            "parameters": sum(p.numel() for p in adapted.parameters()),
            "trained": sum(p.numel() for p in adapted.parameters() if p.requires_grad),
            "tokens_per_step": _ROWS * _TOKENS,
            "window_steps": self.window,
            "checkpoints_per_run": self.checkpoints,
            "threads": torch.get_num_threads(),
        }

    def graft(self) -> Measurement:
        """Ours, written beside the training."""
        return self._graft(None)

    def graft_waiting(self) -> Measurement:
        """Ours, with no memory for a copy."""
        return self._graft(lambda: 0)

    def plain(self) -> Measurement:
        """Trainer's own save."""
        rows = [{"input_ids": row.ids.tolist(), "labels": row.ids.tolist()} for row in self.rows]
        trainer = Trainer(
            model=get_peft_model(_model(), _lora()),
            args=TrainingArguments(
                output_dir=str(self.folder / "plain"),
                per_device_train_batch_size=_ROWS,
                max_steps=self.steps,
                save_strategy="steps",
                save_steps=self.every,
                save_total_limit=2,
                logging_steps=1,
                optim="adamw_torch_fused",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=Dataset.from_list(rows),
        )
        return self._measure(trainer)

    def _graft(self, spare_bytes: Callable[[], int] | None) -> Measurement:
        spec = self._spec()
        method = METHODS["lora"].make(
            spec.method, Setting("bench", "CAUSAL_LM", self.steps, False, self.tokenizer, 0)
        )
        progress = Progress(SilentReporter(), StopSignal())
        store = CheckpointStore(self.folder / "checkpoints", Keep(2), "bench", print)
        safe_s: dict[int, float] = {}

        def written(step: int) -> None:
            safe_s[step] = time.perf_counter()

        writer = CheckpointWriter(store, written, spare_bytes)
        trainer = SupervisedTrainer(
            Run(
                spec=spec,
                model=method.apply(_model()),
                tokenizer=self.tokenizer,
                prepared=Prepared(PaddedRows(self.rows, 0), None, len(self.rows), len(self.rows)),
                total_steps=self.steps,
                steps_per_epoch=self.steps,
                max_tokens=_TOKENS,
                method=method,
                store=store,
                writer=writer,
                progress=progress,
                load_base=load_other_base,
            )
        )
        clock = Clock()
        with writer:
            figures = dict(self._measure(trainer, clock))
        waits = [safe_s[step] - clock.ended_s[step] for step in self._saved()]
        return figures | {"seconds_until_safe": statistics.median(waits)}

    def _spec(self) -> JobSpec:
        return parse_spec(
            pb.JobSpec(
                base=pb.BaseSpec(source="bench"),
                dataset=pb.DatasetSpec(path="bench"),
                method=pb.MethodSpec(lora=pb.Lora(rank=_RANK)),
                hyperparameters=pb.Hyperparameters(
                    max_steps=self.steps, micro_batch_size=_ROWS, max_length_tokens=_TOKENS
                ),
                checkpointing=pb.Checkpointing(every_steps=self.every),
                output=pb.Output(adapter="bench"),
            )
        )

    def _saved(self) -> range:
        return range(self.every, self.steps, self.every)

    def _measure(self, trainer: Any, clock: Clock | None = None) -> Measurement:
        clock = clock or Clock()
        trainer.add_callback(clock)
        waited = _timed(trainer)
        trainer.train()
        ended, width = clock.ended_s, self.window
        with_one = [ended[step + width] - ended[step] for step in self._saved()]
        without = [ended[step + 2 * width] - ended[step + width] for step in self._saved()]
        step_s = statistics.median(without) / width
        delays = [(one - other) / step_s for one, other in zip(with_one, without, strict=True)]
        return {
            _DELAY: statistics.median(delays),
            "waited_in_steps": statistics.median(waited) / step_s,
            "step_seconds": step_s,
        }


def _timed(trainer: Any) -> list[float]:
    """Has the trainer's saves measured; their seconds."""
    save, seconds = trainer._save_checkpoint, list[float]()

    def timed(*arguments: Any) -> None:
        begin = time.perf_counter()
        save(*arguments)
        seconds.append(time.perf_counter() - begin)

    trainer._save_checkpoint = timed
    return seconds


def _lora() -> LoraConfig:
    return LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules=_MODULES, task_type="CAUSAL_LM")


def _model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    return model.to("cuda") if torch.cuda.is_available() else model
