"""What somebody would write without Graft: `python -m bench.plain_sft BASE ROWS OUT STEPS`, TRL and PEFT alone.

It says at which moments a step was done, as lines of JSON, and touches nothing of ours.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):  # type: ignore[misc]
    """Says when a step was done."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step was done."""
        print(json.dumps({"step": state.global_step, "time_s": time.time()}), flush=True)


def main(base: str, rows: str, out: str, steps: int) -> None:
    """Trains and saves."""
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        processing_class=AutoTokenizer.from_pretrained(base),
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        args=SFTConfig(
            output_dir=out,
            max_steps=steps,
            per_device_train_batch_size=8,
            max_length=256,
            learning_rate=2e-4,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
        ),
        callbacks=[Clock()],
    )
    trainer.train()
    trainer.save_model(out)


if __name__ == "__main__":
    BASE, ROWS, OUT, STEPS = sys.argv[1:]
    main(BASE, ROWS, OUT, int(STEPS))
