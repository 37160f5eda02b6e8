"""What must be decided in a worker's process before it imports its libraries, by what its job needs.

For processes of their own only: nothing that comes later in the process can have it otherwise.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

from services.trainer.sources import is_elsewhere
from services.trainer.spec import JobSpec, local_path

_PACKAGE = "bitsandbytes"
_OF_EVERY_TRAINING = (
    "services.trainer.run.training",
    # Imported by it as it goes.
    "trl",
    "peft",
    "datasets",
    "accelerate",
)


def leave_out_unused(spec: JobSpec) -> None:
    """Hides bitsandbytes from peft and transformers, where nothing of the job is held in few bits.

    peft imports it wherever it is installed, and it brings torch's compiler with it: a third of the time from a
    worker's start to its first step.
    """
    if not needs_few_bits(spec):
        hide_unused()


def hide_unused() -> None:
    """Hides it, where it was not imported yet."""
    if _PACKAGE not in sys.modules:
        # What find_spec() and import take for a package that is not there.
        sys.modules[_PACKAGE] = None  # type: ignore[assignment]


def needs_few_bits(spec: JobSpec) -> bool:
    """Whether the base is quantized, or the optimizer keeps its state in eight bits, as far as is known here."""
    asked = spec.base.quantization != "none" or "8bit" in spec.hyperparameters.optimizer
    return asked or not _is_plain(local_path(spec.base.source))


def needs_hub(spec: JobSpec) -> bool:
    """Whether anything that the job names is not on this machine, and may be on the Hub."""
    models = (spec.base.source, getattr(spec.objective, "teacher", ""))
    dataset = spec.dataset
    sets = (*dataset.sources, *dataset.eval_sources, *dataset.regression_sources)
    return any(model and not local_path(model).is_dir() for model in models) or any(
        one.path and is_elsewhere(one) for one in sets
    )


def may_start_warm(spec: JobSpec) -> bool:
    """Whether a process that read its libraries before it knew the job can do it: see warm.py."""
    return not needs_few_bits(spec) and not needs_hub(spec)


def read_libraries() -> None:
    """Imports what every training needs, once what the functions above decide is decided.

    They make objects by the hundred thousand that live as long as the process: Python's garbage collector is not
    asked to look for garbage among them meanwhile (a tenth of the time), nor ever after, as a training has it
    look through everything, often. And several ask which distributions there are, for which all are read.
    """
    if sys.modules.keys() >= set(_OF_EVERY_TRAINING):
        return
    collects, listing = gc.isenabled(), metadata.packages_distributions
    gc.disable()
    metadata.packages_distributions = cache(listing)
    try:
        for module in _OF_EVERY_TRAINING:
            import_module(module)
        gc.freeze()
    finally:
        metadata.packages_distributions = listing
        if collects:
            gc.enable()


def quiet_libraries(hub: bool = True, cpu_threads: int = 0) -> None:
    """Sets what libraries read as they are imported: nothing phones home, nothing draws bars."""
    settings = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "BITSANDBYTES_NOWELCOME": "1",
        "TQDM_DISABLE": "1",
    }
    if not hub:
        settings |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if cpu_threads:
        settings["OMP_NUM_THREADS"] = str(cpu_threads)
    os.environ.update(settings)


def _is_plain(base: Path) -> bool:
    """Whether a base is here and says that it is not stored in few bits."""
    try:
        config = json.loads((base / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "quantization_config" not in config
