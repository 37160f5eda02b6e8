"""Checks a job before it may wait for a slot: its base, its target modules and its data. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from graft.bases import read_modules
from graft.errors import GraftError, Reason
from graft.registry.v1.registry_service_pb2 import BaseModule
from graft.trainer.v1.model_jobs_pb2 import EvaluationSpec

from services.trainer.methods import MethodConfig
from services.trainer.methods.lora import TARGET_WORDS
from services.trainer.objectives import OBJECTIVES
from services.trainer.run.data import check_local_data
from services.trainer.run.trackers.build import check_packages
from services.trainer.spec import JobSpec, local_path
from services.trainer.spec.model_jobs import evaluation_rows

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# A head that shares the embedding's weights is a module without a tensor of its own.
_WITHOUT_TENSOR = frozenset({"lm_head"})
# The ranks that modules have while they are trained.
_RANKS = ("initial_rank", "rank")


def check_base(spec: JobSpec) -> None:
    """Looks at the base that a spec names, at its modules, and at other models that its objective needs.

    Raises:
        GraftError: NOT_A_MODEL or INVALID_SPEC.
    """
    folder = local_path(spec.base.source)
    # What is not on this machine (a hub id) is fetched, and then checked, by the worker.
    if folder.exists() or _HUB_ID.fullmatch(spec.base.source) is None:
        modules = read_modules(folder)
        targets = getattr(spec.method, "target_modules", ())
        _check_targets(folder, modules, targets, spec.method.kind)
        _check_rank(modules, targets, spec.method)
    objective = OBJECTIVES[spec.objective.kind].make(spec.objective)
    for field, source in objective.other_bases().items():
        _check_other(field, source)


def check_spec(spec: JobSpec) -> None:
    """Looks at what a spec names: the base's folder, its modules, every row of the data.

    Raises:
        GraftError: NOT_A_MODEL, INVALID_SPEC or BAD_DATA.
    """
    check_base(spec)
    check_packages(spec.reporting)
    check_local_data(spec.dataset, OBJECTIVES[spec.objective.kind].info)


def check_evaluation(spec: EvaluationSpec) -> None:
    """Looks at the rows that an evaluation names, where they are on this machine.

    Raises:
        GraftError: INVALID_SPEC or BAD_DATA.
    """
    rows = evaluation_rows(spec)
    if rows is not None:
        check_local_data(rows, OBJECTIVES["sft"].info)


def _check_other(field: str, source: str) -> None:
    folder = local_path(source)
    if not folder.exists() and _HUB_ID.fullmatch(source):
        return
    try:
        read_modules(folder)
    except GraftError as error:
        raise GraftError(
            error.reason,
            f"{field} cannot be used: {error.message}",
            next_step=error.next_step,
            field=field,
        ) from None


def _check_targets(
    folder: Path, modules: Sequence[BaseModule], targets: Sequence[str], kind: str
) -> None:
    paths = {module.path for module in modules}
    for target in targets:
        if target in TARGET_WORDS:
            continue
        known = any(_named(path, target) for path in paths)
        if not known and target not in _WITHOUT_TENSOR:
            names = sorted({path.rsplit(".", 1)[-1] for path in paths})
            raise GraftError(
                Reason.INVALID_SPEC,
                f"method.{kind}.target_modules names {target!r}, which {folder} does not have",
                next_step=f"Name some of {', '.join(names)}, or none for all linear layers.",
            )


def _check_rank(
    modules: Sequence[BaseModule], targets: Sequence[str], method: MethodConfig
) -> None:
    """Holds a rank against the layers that are known to be adapted; the worker holds it against all."""
    field = next((name for name in _RANKS if hasattr(method, name)), "")
    for module in modules if field else ():
        named = any(_named(module.path, target) for target in targets)
        if not named and (set(targets) - set(TARGET_WORDS) or not _is_attention(module.path)):
            continue
        rank, most = getattr(method, field), min(module.in_features, module.out_features)
        if rank > most:
            raise GraftError(
                Reason.INVALID_SPEC,
                f"method.{method.kind}.{field} is {rank}, and {module.path} has {module.in_features} "
                f"inputs and {module.out_features} outputs: no update of it has a rank above {most}",
                next_step=f"Use a rank of at most {most}, or leave {module.path.rsplit('.', 1)[-1]} "
                "out of target_modules.",
                field=f"method.{method.kind}.{field}",
            )


def _named(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _is_attention(path: str) -> bool:
    """Whether a path is one of attention's projections, whatever the words for targets mean."""
    return any(word in parent for parent in path.split(".")[:-1] for word in ("attn", "attention"))
