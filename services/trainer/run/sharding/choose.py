"""The strategy that a spec asks for."""

from __future__ import annotations

import torch

from services.trainer.run.precision import precision_of
from services.trainer.run.sharding.base import Replicas
from services.trainer.run.team import Team
from services.trainer.spec import JobSpec
from services.trainer.spec.sharding import Fsdp, Zero


def choose_sharding(spec: JobSpec, team: Team) -> Replicas:
    """How the team's processes share the job's model.

    Raises:
        GraftError: INVALID_SPEC, when it needs what is not installed.
    """
    config, trains_all = spec.resources.sharding, spec.method.kind == "full"
    if team.alone or config.kind == "replicated":
        return Replicas(team)
    if isinstance(config, Fsdp):
        from services.trainer.run.sharding.fsdp import FullyShared

        bfloat16 = precision_of(spec.hyperparameters, torch.cuda.is_available()) == "bf16"
        return FullyShared(team, config, trains_all, bfloat16)
    if isinstance(config, Zero):
        from services.trainer.run.sharding.zero import SharedByZero

        return SharedByZero(team, config, spec)
    from services.trainer.run.sharding.ddp import OverlappedReplicas

    return OverlappedReplicas(team)
