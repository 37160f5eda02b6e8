"""What transformers and PEFT themselves answer: the reference for every engine."""

from __future__ import annotations

from pathlib import Path


def peft_greedy(base: Path, adapter: Path | None, ids: list[int], count: int) -> list[int]:
    """What they generate greedily in float32, without stopping at the end token."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        for _ in range(count):
            drawn = model(input_ids=tokens).logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, drawn], dim=1)
    found: list[int] = tokens[0, len(ids) :].tolist()
    return found
