"""python -m services.trainer.run.model_jobs.check FOLDER PROBE: loads a model as everybody does, and compares its logits.

Prints the root mean square of the differences over the spread of the logits, and the type of the stored weights, as
JSON. It computes in float32, so that what is seen is the weights and not the arithmetic of a shorter type.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM


def main(folder: str, probe: str) -> None:
    """Compares with what the unmerged model said."""
    with np.load(probe) as known:
        ids, logits = known["ids"], known["logits"]
    model = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        fresh = model(input_ids=torch.from_numpy(ids)).logits.float().numpy()
    distance = float(np.sqrt(np.mean((fresh - logits) ** 2)))
    difference = distance / max(float(logits.std()), 1e-9)
    stored = getattr(AutoConfig.from_pretrained(folder), "dtype", None) or torch.float32
    dtype = str(stored).removeprefix("torch.")
    print(json.dumps({"difference": difference, "dtype": dtype}))


if __name__ == "__main__":
    main(*sys.argv[1:])
