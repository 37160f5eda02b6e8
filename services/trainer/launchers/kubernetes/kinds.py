"""The kinds of objects that the launcher has to do with. The Role of deploy/k8s/base has these and no others."""

from __future__ import annotations

from graft.kubernetes.groups import GROUPS
from graft.kubernetes.kinds import (
    CLAIMS,
    CONFIG_MAPS,
    EVENTS,
    JOBS,
    JOBSETS,
    PODS,
    RUNTIMES,
    SECRETS,
    SERVICES,
    TRAIN_JOBS,
    WORKLOADS,
    Kind,
)

ALL = (
    *(JOBS, JOBSETS, TRAIN_JOBS, RUNTIMES, WORKLOADS, PODS, EVENTS),
    *(CONFIG_MAPS, SECRETS, SERVICES, CLAIMS),
)
# What may run an attempt.
OWNERS: tuple[Kind, ...] = tuple(group.kind for group in GROUPS)
# Kinds that can be given a time to go after their end; others are deleted once it is stored.
EXPIRING = (JOBS, JOBSETS)
