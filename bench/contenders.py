"""One training of the same rows by ours, by TRL alone and as tutorials do it; on the CPU or on a CUDA device.

All adapt the same base in the same way and learn the same tokens; figures are of real tokens, which are
those of the data and not padding. A tokenizer is learned from the data, so that its rows have about as many
tokens as a large model's tokenizer makes of them.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As our launcher sets it; the same for all contenders, who run in this process.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from datasets import Dataset
from graft.trainer.v1 import job_spec_pb2 as pb
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from bench.alpaca import alpaca_file, real_file
from bench.harness import Measurement
from services.trainer.formats import Example, load_examples
from services.trainer.methods import METHODS, Setting
from services.trainer.objectives import Prepared, Run
from services.trainer.run.batches import PackedRows, PaddedRows
from services.trainer.run.checkpoint_writer import CheckpointWriter
from services.trainer.run.checkpoints import CheckpointStore, Keep
from services.trainer.run.progress import Progress
from services.trainer.run.reporters import JsonLinesReporter
from services.trainer.run.stop import StopSignal
from services.trainer.run.trainers.common import steps_per_epoch, total_steps
from services.trainer.run.trainers.sft import SupervisedTrainer
from services.trainer.run.training import load_other_base
from services.trainer.spec import JobSpec, parse_spec
from services.trainer.tokens import ExampleTokenizer, TokenRow

VOCABULARY = 8192
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_RANK = 16
_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_METHODS = {
    "lora": pb.MethodSpec(lora=pb.Lora(rank=_RANK)),
    "qlora": pb.MethodSpec(qlora=pb.Lora(rank=_RANK)),
    "full": pb.MethodSpec(full=pb.Full()),
}


@dataclass
class Contenders:
    """Everybody who trains.

    Args:
        folder: for what they write.
        make_model: a base anew, frozen or not, with at least VOCABULARY tokens.
        rows: how many are picked of the data.
        method: "lora", "qlora" (then make_model gives a quantized base) or "full".
        micro_batch_size: rows, or packs of them, per step.
        max_tokens: longer rows are cut, packs are filled up to it, tutorials pad to it.
    """

    folder: Path
    make_model: Callable[[], Any]
    rows: int
    method: str = "lora"
    micro_batch_size: int = 8
    max_tokens: int = 512

    def __post_init__(self) -> None:
        self.real_rows = real_file() is not None
        data = alpaca_file(self.folder)
        examples = load_examples(data, "alpaca").rows
        self.tokenizer = _tokenizer(examples)
        picked = random.Random(0).sample(examples, min(self.rows, len(examples)))
        reader = ExampleTokenizer(self.tokenizer, self.max_tokens, {self.tokenizer.eos_token_id})
        self.token_rows: list[TokenRow] = reader.tokenize(picked)[0]
        self.real_tokens = sum(len(row) for row in self.token_rows)
        self.settings: dict[str, object] = {
            "data": data.name if self.real_rows else "made up",
            "rows": len(self.token_rows),
            "tokens_per_row": round(self.real_tokens / len(self.token_rows), 1),
            "max_length_tokens": self.max_tokens,
            "micro_batch_size": self.micro_batch_size,
            "method": self.method,
            "parameters": sum(p.numel() for p in self.make_model().parameters()),
            "threads": torch.get_num_threads(),
        }

    def graft(self) -> Measurement:
        """Our loop, padded to the longest row of batches of like length."""
        return self._ours(PaddedRows(self.token_rows, self.tokenizer.pad_token_id))

    def graft_packed(self) -> Measurement:
        """Our loop with packed rows."""
        packs = PackedRows(self.token_rows, self.tokenizer.pad_token_id, self.max_tokens)
        return self._ours(packs)

    def graft_random(self) -> Measurement:
        """Our loop without packing as it is usual: rows in random order, padded to the longest of their batch."""
        rows = PaddedRows(self.token_rows, self.tokenizer.pad_token_id)
        return self._ours(rows, group_by_length=False)

    def trl(self) -> Measurement:
        """TRL's SFTTrainer with the same tokens, labels, batches of like length and optimizer."""
        rows = [
            {"input_ids": row.ids.tolist(), "labels": row.labels.tolist()}
            for row in self.token_rows
        ]
        trainer = SFTTrainer(
            model=self._peers_model(),
            args=SFTConfig(
                **self._arguments(),
                max_length=self.max_tokens,
                gradient_checkpointing=False,
                train_sampling_strategy="group_by_length",
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer,
        )
        return self._measure(trainer.train)

    def tutorial(self) -> Measurement:
        """What tutorials do: every row padded to max_length, the loss on everything."""

        def pad(row: TokenRow) -> dict[str, list[int]]:
            missing = self.max_tokens - len(row)
            return {
                "input_ids": row.ids.tolist() + [self.tokenizer.pad_token_id] * missing,
                "attention_mask": [1] * len(row) + [0] * missing,
            }

        trainer = Trainer(
            model=self._peers_model(),
            args=TrainingArguments(**self._arguments()),
            train_dataset=Dataset.from_list([pad(row) for row in self.token_rows]),
            data_collator=DataCollatorForLanguageModeling(self.tokenizer, mlm=False),
        )
        return self._measure(trainer.train)

    def _ours(
        self, batches: PaddedRows | PackedRows, *, group_by_length: bool = True
    ) -> Measurement:
        spec = self._spec(group_by_length)
        sequences = len(batches.lengths)
        epoch_steps = steps_per_epoch(spec, sequences)
        steps = total_steps(spec, epoch_steps)
        setting = Setting("bench", "CAUSAL_LM", steps, False, self.tokenizer, 0)
        method = METHODS[spec.method.kind].make(spec.method, setting)
        store = CheckpointStore(self.folder / "checkpoints", Keep(1), "", print)
        with (self.folder / "events.jsonl").open("w") as out:
            progress = Progress(JsonLinesReporter(out), StopSignal())
            trainer = SupervisedTrainer(
                Run(
                    spec=spec,
                    model=method.apply(self.make_model()),
                    tokenizer=self.tokenizer,
                    prepared=Prepared(batches, None, len(self.token_rows), sequences),
                    total_steps=steps,
                    steps_per_epoch=epoch_steps,
                    max_tokens=self.max_tokens,
                    method=method,
                    store=store,
                    writer=CheckpointWriter(store, progress.checkpoint),
                    progress=progress,
                    load_base=load_other_base,
                )
            )
            return self._measure(trainer.train)

    def _spec(self, group_by_length: bool) -> JobSpec:
        return parse_spec(
            pb.JobSpec(
                base=pb.BaseSpec(source="bench"),
                dataset=pb.DatasetSpec(path="bench"),
                method=_METHODS[self.method],
                hyperparameters=pb.Hyperparameters(
                    epochs=1,
                    micro_batch_size=self.micro_batch_size,
                    max_length_tokens=self.max_tokens,
                    group_by_length=group_by_length,
                ),
                checkpointing=pb.Checkpointing(every_steps=100_000),
                output=pb.Output(base="bench")
                if self.method == "full"
                else pb.Output(adapter="bench"),
            )
        )

    def _peers_model(self) -> Any:
        model = self.make_model()
        if self.method == "full":
            return model.float().requires_grad_()
        if self.method == "qlora":
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        config = LoraConfig(
            r=_RANK, lora_alpha=2 * _RANK, target_modules=_MODULES, task_type="CAUSAL_LM"
        )
        return get_peft_model(model, config)

    def _arguments(self) -> dict[str, Any]:
        cuda = torch.cuda.is_available()
        return {
            "output_dir": str(self.folder / "peer"),
            "per_device_train_batch_size": self.micro_batch_size,
            "num_train_epochs": 1,
            "learning_rate": 2e-4,
            "optim": "adamw_torch_fused",
            "bf16": cuda and torch.cuda.is_bf16_supported(),
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": not cuda,
            "dataloader_pin_memory": cuda,
        }

    def _measure(self, train: Callable[[], Any]) -> Measurement:
        cuda = torch.cuda.is_available()
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        begin = time.perf_counter()
        train()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        figures = {"real_tokens_per_second": self.real_tokens / seconds, "seconds": seconds}
        if cuda:
            figures["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return figures


def _tokenizer(examples: list[Example]) -> Any:
    """A byte-level BPE of the data."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|im_end|>", "<|im_start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    texts = (turn["content"] for example in examples for turn in example.content.messages)  # type: ignore[union-attr]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        chat_template=_TEMPLATE,
    )
