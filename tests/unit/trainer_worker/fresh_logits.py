"""python fresh_logits.py CASES_FILE: loads results with plain transformers and PEFT, and prints how far logits are.

It imports nothing of this repository: what it can load, everybody can.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def load(case: dict[str, Any]) -> Any:
    """The base with its adapter, or the whole model; in evaluation mode but for bitsandbytes' layers.

    Those would repack their weights for inference, which changes the last bits.
    """
    options = {}
    if case["quantization"]:
        options["quantization_config"] = BitsAndBytesConfig(**case["quantization"])
    result = Path(case["result"])
    is_adapter = (result / "adapter_config.json").exists()
    folder = case["base"] if is_adapter else result
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    if is_adapter:
        model = PeftModel.from_pretrained(model, str(result))
    for module in model.modules():
        module.training = type(module).__module__.startswith("bitsandbytes")
    return model


def main() -> None:
    """Prints {name: largest difference} as JSON."""
    torch.set_num_threads(1)
    differences = {}
    for name, case in json.loads(Path(sys.argv[1]).read_text("utf-8")).items():
        trained = np.load(case["logits"])
        ids = torch.tensor(case["ids"])
        with torch.no_grad():
            fresh = load(case)(input_ids=ids).logits.float().numpy()
        differences[name] = float(np.abs(fresh - trained).max())
    print(json.dumps(differences))


if __name__ == "__main__":
    main()
