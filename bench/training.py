"""Training speed: our worker's loop beside TRL alone and the usual tutorial recipe, in real tokens per second.

Real tokens are those of the data, not padding. All train the same LoRA on the same rows of a small Llama
with random weights and a tokenizer learned from the data. GRAFT_BENCH_DATA names an Alpaca file; without
it a set that lies beside the project is taken, and where there is none, rows of like lengths are made up.
"""

from __future__ import annotations

import gc
import os
import random
import tempfile
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
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from bench.alpaca import alpaca_file, real_file
from bench.harness import Measurement, Report, compare
from services.trainer.formats import Example, load_examples
from services.trainer.methods import Lora, Setting
from services.trainer.objectives import Prepared, Run
from services.trainer.run.batches import PackedRows, PaddedRows
from services.trainer.run.checkpoints import CheckpointStore
from services.trainer.run.progress import Progress
from services.trainer.run.reporters import JsonLinesReporter
from services.trainer.run.stop import StopSignal
from services.trainer.run.trainers.common import steps_per_epoch, total_steps
from services.trainer.run.trainers.sft import SupervisedTrainer
from services.trainer.run.training import load_other_base
from services.trainer.spec import JobSpec, parse_spec
from services.trainer.tokens import ExampleTokenizer, TokenRow

_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_VOCABULARY = 8192
_MAX_TOKENS = 512
_BATCH = 8
_RANK = 16
_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def run(short: bool = False) -> Report:
    """Measures all contenders in turns; short only shows that they run."""
    bench = _Bench(rows=32 if short else 256)
    report = compare(
        "training",
        {
            "graft": bench.graft,
            "graft, packed": bench.graft_packed,
            "graft, random order": bench.graft_random,
            "trl alone": bench.trl,
            "tutorial (Trainer, max_length)": bench.tutorial,
        },
        rounds=1 if short else 3,
        warm_up_rounds=0 if short else 1,
        settings=bench.settings,
    )
    figure = "real_tokens_per_second"
    # What padding costs depends on the rows' lengths, so these figures are promised for real ones.
    tutorial, packing = (3.0, 1.5) if bench.real_rows else (None, None)
    for ours, peer, wanted in (
        ("graft", "trl alone", 0.98),
        ("graft", "tutorial (Trainer, max_length)", tutorial),
        ("graft, packed", "graft, random order", packing),
        ("graft, packed", "graft", None),
    ):
        ratio = report.ratio(ours, peer, figure).median
        if wanted is not None:
            report.goal(f"{figure}, {ours} / {peer}", f"at least {wanted}", ratio, ratio >= wanted)
    return report


@dataclass
class _Bench:
    rows: int

    def __post_init__(self) -> None:
        self.real_rows = real_file() is not None
        # Removed with the bench, so it must be kept.
        self._temporary = tempfile.TemporaryDirectory(prefix="graft-bench-")
        self._folder = Path(self._temporary.name)
        data = alpaca_file(self._folder)
        examples = load_examples(data, "alpaca").rows
        self.tokenizer = _tokenizer(examples)
        picked = random.Random(0).sample(examples, min(self.rows, len(examples)))
        reader = ExampleTokenizer(self.tokenizer, _MAX_TOKENS, {self.tokenizer.eos_token_id})
        self.token_rows: list[TokenRow] = reader.tokenize(picked)[0]
        self.real_tokens = sum(len(row) for row in self.token_rows)
        self.settings: dict[str, object] = {
            "data": data.name if self.real_rows else "made up",
            "rows": len(self.token_rows),
            "tokens_per_row": round(self.real_tokens / len(self.token_rows), 1),
            "max_length_tokens": _MAX_TOKENS,
            "micro_batch_size": _BATCH,
            "lora_rank": _RANK,
            "parameters": sum(p.numel() for p in _model().parameters()),
            "threads": torch.get_num_threads(),
        }

    def graft(self) -> Measurement:
        """Our loop, padded to the longest row of batches of like length."""
        return self._ours(PaddedRows(self.token_rows, self.tokenizer.pad_token_id))

    def graft_packed(self) -> Measurement:
        """Our loop with packed rows."""
        packs = PackedRows(self.token_rows, self.tokenizer.pad_token_id, _MAX_TOKENS)
        return self._ours(packs)

    def graft_random(self) -> Measurement:
        """Our loop without packing as it is usual: rows in random order, padded to the longest of their batch."""
        rows = PaddedRows(self.token_rows, self.tokenizer.pad_token_id)
        return self._ours(rows, group_by_length=False)

    def _ours(
        self, batches: PaddedRows | PackedRows, *, group_by_length: bool = True
    ) -> Measurement:
        spec = _spec(group_by_length)
        sequences = len(batches.lengths)
        epoch_steps = steps_per_epoch(spec, sequences)
        steps = total_steps(spec, epoch_steps)
        method = Lora.make(
            spec.method, Setting("bench", "CAUSAL_LM", steps, False, self.tokenizer, 0)
        )
        with (self._folder / "events.jsonl").open("w") as out:
            trainer = SupervisedTrainer(
                Run(
                    spec=spec,
                    model=method.apply(_model()),
                    tokenizer=self.tokenizer,
                    prepared=Prepared(batches, None, len(self.token_rows), sequences),
                    total_steps=steps,
                    steps_per_epoch=epoch_steps,
                    max_tokens=_MAX_TOKENS,
                    method=method,
                    store=CheckpointStore(self._folder / "checkpoints", 1, "", print),
                    progress=Progress(JsonLinesReporter(out), StopSignal()),
                    load_base=load_other_base,
                )
            )
            return self._measure(trainer.train)

    def trl(self) -> Measurement:
        """TRL's SFTTrainer with the same tokens, labels, batches of like length and optimizer."""
        rows = [
            {"input_ids": row.ids.tolist(), "labels": row.labels.tolist()}
            for row in self.token_rows
        ]
        trainer = SFTTrainer(
            model=_adapted(_model()),
            args=SFTConfig(
                **self._arguments(),
                max_length=_MAX_TOKENS,
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
            missing = _MAX_TOKENS - len(row)
            return {
                "input_ids": row.ids.tolist() + [self.tokenizer.pad_token_id] * missing,
                "attention_mask": [1] * len(row) + [0] * missing,
            }

        trainer = Trainer(
            model=_adapted(_model()),
            args=TrainingArguments(**self._arguments()),
            train_dataset=Dataset.from_list([pad(row) for row in self.token_rows]),
            data_collator=DataCollatorForLanguageModeling(self.tokenizer, mlm=False),
        )
        return self._measure(trainer.train)

    def _arguments(self) -> dict[str, Any]:
        return {
            "output_dir": str(self._folder / "peer"),
            "per_device_train_batch_size": _BATCH,
            "num_train_epochs": 1,
            "learning_rate": 2e-4,
            "optim": "adamw_torch_fused",
            "bf16": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": not torch.cuda.is_available(),
            "dataloader_pin_memory": False,
        }

    def _measure(self, train: Callable[[], Any]) -> Measurement:
        gc.collect()
        begin = time.perf_counter()
        train()
        seconds = time.perf_counter() - begin
        return {"real_tokens_per_second": self.real_tokens / seconds, "seconds": seconds}


def _spec(group_by_length: bool) -> JobSpec:
    return parse_spec(
        pb.JobSpec(
            base=pb.BaseSpec(source="bench"),
            dataset=pb.DatasetSpec(path="bench"),
            method=pb.MethodSpec(lora=pb.Lora(rank=_RANK)),
            hyperparameters=pb.Hyperparameters(
                epochs=1,
                micro_batch_size=_BATCH,
                max_length_tokens=_MAX_TOKENS,
                group_by_length=group_by_length,
            ),
            checkpointing=pb.Checkpointing(every_steps=100_000),
            output=pb.Output(adapter="bench"),
        )
    )


def _model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
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


def _adapted(model: Any) -> Any:
    return get_peft_model(
        model,
        LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules=_MODULES, task_type="CAUSAL_LM"),
    )


def _tokenizer(examples: list[Example]) -> Any:
    """A byte-level BPE of the data: its rows have about as many tokens as with a large model's tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|im_end|>", "<|im_start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=special, show_progress=False
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
