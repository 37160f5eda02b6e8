"""python -m services.trainer.run.model_jobs.check REQUEST: loads a result as everybody does, and compares its logits.

The request is a JSON file: "probe" (of logits.py), and what to load: "folder", a model's; with "gguf", the name of a
file in it, and "config", the folder that it was made of; with "adapter", a PEFT folder on the base in "folder", which "base" says how to hold. Prints the distance
and the type of the stored weights as JSON. It computes in float32, so that what is seen is the weights and not the
arithmetic of a shorter type.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from services.trainer.run.model_jobs.logits import distance, logits_of, read_probe


def main(path: str) -> None:
    """Compares with what the trained model said."""
    request = json.loads(Path(path).read_text("utf-8"))
    rows, known = read_probe(Path(request["probe"]))
    found = distance(logits_of(_model(request), rows), known)
    print(json.dumps({**found.as_dict(), "dtype": _stored_type(request)}))


def _model(request: dict[str, Any]) -> Any:
    folder = request["folder"]
    if request.get("adapter"):
        from services.trainer.run.model_jobs.assembling import assembled
        from services.trainer.spec import BaseSpec

        return assembled(Path(folder), BaseSpec(**request["base"]), Path(request["adapter"]))
    if request.get("gguf"):
        return _of_gguf(request)
    return AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32
    ).eval()


def _of_gguf(request: dict[str, Any]) -> Any:
    """What transformers reads of the file, by its own reader; of positions that it does not read it is told."""
    config = AutoConfig.from_pretrained(request["folder"], gguf_file=request["gguf"])
    merged = AutoConfig.from_pretrained(request["config"])
    if merged.rope_parameters["rope_type"] == "llama3":
        config.rope_parameters = merged.rope_parameters
    return AutoModelForCausalLM.from_pretrained(
        request["folder"], gguf_file=request["gguf"], config=config, dtype=torch.float32
    ).eval()


def _stored_type(request: dict[str, Any]) -> str:
    if request.get("adapter") or request.get("gguf"):
        return "float32"
    config = AutoConfig.from_pretrained(request["folder"])
    if getattr(config, "quantization_config", None) is not None:
        return "quantized"
    return str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch.")


if __name__ == "__main__":
    main(sys.argv[1])
