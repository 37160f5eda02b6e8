"""python fresh_results.py CASES_FILE: loads results of every kind as their users would, and prints how far outputs are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from services.trainer.run.bottleneck import load_bottleneck


def load(base: str, result: Path) -> Any:
    """The base with its adapter."""
    config = json.loads((result / "adapter_config.json").read_text("utf-8"))
    if config["task_type"] == "SEQ_CLS":
        scorer = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        return PeftModel.from_pretrained(scorer, str(result)).eval()
    model = AutoModelForCausalLM.from_pretrained(base)
    if config["peft_type"] == "BOTTLENECK":
        return load_bottleneck(model, result)
    return PeftModel.from_pretrained(model, str(result)).eval()


def main() -> None:
    """Prints {name: largest difference} as JSON."""
    torch.set_num_threads(1)
    differences = {}
    for name, case in json.loads(Path(sys.argv[1]).read_text("utf-8")).items():
        model = load(case["base"], Path(case["result"]))
        with torch.no_grad():
            fresh = model(input_ids=torch.tensor(case["ids"])).logits.float().numpy()
        differences[name] = float(np.abs(fresh - np.load(case["outputs"])).max())
    print(json.dumps(differences))


if __name__ == "__main__":
    main()
