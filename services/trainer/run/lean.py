"""Leaves out of a worker's process what its job does not need, before it is imported.

For processes of their own only: nothing that comes later in the process can have it back.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from services.trainer.spec import JobSpec, local_path

_PACKAGE = "bitsandbytes"


def leave_out_unused(spec: JobSpec) -> None:
    """Hides bitsandbytes from peft and transformers, where nothing of the job is held in few bits.

    peft imports it wherever it is installed, and it brings torch's compiler with it: a third of the time from a
    worker's start to its first step.
    """
    if not needs_few_bits(spec) and _PACKAGE not in sys.modules:
        # What find_spec() and import take for a package that is not there.
        sys.modules[_PACKAGE] = None  # type: ignore[assignment]


def needs_few_bits(spec: JobSpec) -> bool:
    """Whether the base is quantized, or the optimizer keeps its state in eight bits, as far as is known here."""
    asked = spec.base.quantization != "none" or "8bit" in spec.hyperparameters.optimizer
    return asked or not _is_plain(local_path(spec.base.source))


def _is_plain(base: Path) -> bool:
    """Whether a base is here and says that it is not stored in few bits."""
    try:
        config = json.loads((base / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "quantization_config" not in config
