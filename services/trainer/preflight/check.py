"""Checks a job before it may wait for a slot: its base, its target modules and its data. No torch."""

from __future__ import annotations

import re
from pathlib import Path

from graft.bases import read_modules
from graft.errors import GraftError, Reason

from services.trainer.methods.lora import TARGET_WORDS
from services.trainer.objectives import OBJECTIVES
from services.trainer.run.data import check_local_data
from services.trainer.spec import JobSpec, local_path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# A head that shares the embedding's weights is a module without a tensor of its own.
_WITHOUT_TENSOR = frozenset({"lm_head"})


def check_base(spec: JobSpec) -> None:
    """Looks at the base that a spec names, and at its modules.

    Raises:
        GraftError: NOT_A_MODEL or INVALID_SPEC.
    """
    folder = local_path(spec.base.source)
    # What is not on this machine (a hub id) is fetched, and then checked, by the worker.
    if folder.exists() or _HUB_ID.fullmatch(spec.base.source) is None:
        _check_targets(folder, getattr(spec.method, "target_modules", ()))


def check_spec(spec: JobSpec) -> None:
    """Looks at what a spec names: the base's folder, its modules, every row of the data.

    Raises:
        GraftError: NOT_A_MODEL, INVALID_SPEC or BAD_DATA.
    """
    check_base(spec)
    check_local_data(spec.dataset, OBJECTIVES[spec.objective.kind].info)


def _check_targets(folder: Path, targets: tuple[str, ...]) -> None:
    paths = {module.path for module in read_modules(folder)}
    for target in targets:
        if target in TARGET_WORDS:
            continue
        known = any(path == target or path.endswith(f".{target}") for path in paths)
        if not known and target not in _WITHOUT_TENSOR:
            names = sorted({path.rsplit(".", 1)[-1] for path in paths})
            raise GraftError(
                Reason.INVALID_SPEC,
                f"method.lora.target_modules names {target!r}, which {folder} does not have",
                next_step=f"Name some of {', '.join(names)}, or none for all linear layers.",
            )
