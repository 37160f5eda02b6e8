"""python -m services.trainer.run.model_jobs.check FOLDER PROBE: loads a model as everybody does, and compares its logits.

Prints the largest difference over the spread of the logits, and the type of the weights, as JSON.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main(folder: str, probe: str) -> None:
    """Compares with what the unmerged model said."""
    with np.load(probe) as known:
        ids, logits = known["ids"], known["logits"]
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype="auto").eval()
    with torch.no_grad():
        fresh = model(input_ids=torch.from_numpy(ids)).logits.float().numpy()
    difference = float(np.abs(fresh - logits).max() / max(float(logits.std()), 1e-9))
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    print(json.dumps({"difference": difference, "dtype": dtype}))


if __name__ == "__main__":
    main(*sys.argv[1:])
