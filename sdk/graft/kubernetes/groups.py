"""Which kind of object runs a job of several nodes: an Indexed Job, a JobSet, or Kubeflow's TrainJob."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from graft.errors import GraftError, Reason
from graft.kubernetes.kinds import JOBS, JOBSETS, TRAIN_JOBS, Kind

AUTO = "auto"


class Group(StrEnum):
    """What the pods of several nodes are together."""

    JOB = "job"
    JOBSET = "jobset"
    TRAINJOB = "trainjob"

    @property
    def kind(self) -> Kind:
        """The kind of object that runs them."""
        return {Group.JOB: JOBS, Group.JOBSET: JOBSETS, Group.TRAINJOB: TRAIN_JOBS}[self]


GROUPS = tuple(Group)


def choose_group(
    operator: str, wanted: str, nodes: int, installed: Collection[Group] | None = None
) -> Group:
    """The group that a job gets.

    TrainJob is never taken unasked: it adds a controller between the job and its JobSet, and gives nothing
    that Graft does not do itself. It is for platforms that want to see every training as one.

    Args:
        operator: the policy's several_nodes: "auto" or a group.
        wanted: by the spec's resources.nodes_as; "" where it says nothing.
        nodes: of the job.
        installed: groups that the cluster has and that may be used; None where nobody asked it: what is named
            is then taken at its word.

    Raises:
        GraftError: INVALID_REQUEST, where spec and policy differ; NOT_SUPPORTED, where the cluster lacks it.
    """
    if nodes == 1:
        return Group.JOB
    if wanted and operator not in (AUTO, wanted):
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"resources.nodes_as is {wanted}, and the operator's pod policy makes every job of several "
            f"nodes a {Group(operator).kind.name}",
            next_step="Leave out resources.nodes_as.",
        )
    named = wanted or ("" if operator == AUTO else operator)
    if not named:
        return Group.JOBSET if Group.JOBSET in (installed or ()) else Group.JOB
    group = Group(named)
    if installed is not None and group not in installed:
        raise GraftError(
            Reason.NOT_SUPPORTED,
            f"The job is to be a {group.kind.name}, which the cluster does not have or does not let us use",
            next_step=f"Install it and give the Role of deploy/k8s/base, or choose another group: "
            f"{', '.join(one for one in GROUPS if one in installed)} (several_nodes in the pod policy, "
            "resources.nodes_as in the spec).",
        )
    return group
