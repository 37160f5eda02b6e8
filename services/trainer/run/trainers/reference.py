"""The reference that a policy is held against: its base."""

from __future__ import annotations

from peft import PeftModel

from services.trainer.objectives.base import Run


def base_is_below(run: Run) -> bool:
    """Whether the model with its adapter turned off is the base; otherwise a reference needs a copy of it.

    PiSSA moves the adapter's first value out of the base's weights; full fine-tuning and adapters that are
    not PEFT's cannot be turned off.
    """
    return isinstance(run.model, PeftModel) and run.method.info.kind != "pissa"
