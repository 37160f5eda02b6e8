"""What an endpoint says of its rollouts, as protobuf."""

from __future__ import annotations

from collections.abc import Mapping

from graft.inference.v1 import rollout_pb2 as pb
from graft.names import version_name

from services.inference.rollout.judge import Figures
from services.inference.rollout.shadow import ShadowTally
from services.inference.rollout.state import CanaryState, Here, Part

PARTS: Mapping[Part, pb.RolloutPart.ValueType] = {
    Part.NONE: pb.ROLLOUT_PART_UNSPECIFIED,
    Part.STABLE: pb.ROLLOUT_PART_STABLE,
    Part.CANARY: pb.ROLLOUT_PART_CANARY,
}
_STATES: Mapping[CanaryState, pb.CanaryState.ValueType] = {
    CanaryState.LOADING: pb.CANARY_STATE_LOADING,
    CanaryState.SERVING: pb.CANARY_STATE_SERVING,
    CanaryState.FAILED: pb.CANARY_STATE_FAILED,
    CanaryState.TAKEN_OUT: pb.CANARY_STATE_TAKEN_OUT,
}


def rollout_status(here: Here, now_s: float) -> pb.RolloutStatus:
    """One alias as it is on this endpoint."""
    canaries = [
        pb.CanaryStatus(
            weight_percent=canary.percent,
            state=_STATES[canary.state],
            message=canary.why,
            figures=_part(here, canary.number, now_s),
        )
        for canary in here.canaries.values()
    ]
    return pb.RolloutStatus(
        alias=here.name,
        stable=_part(here, here.alias.number, now_s),
        canaries=canaries,
        shadow=None if here.shadow is None else _shadow(here.shadow),
    )


def _part(here: Here, number: int, now_s: float) -> pb.PartFigures:
    window = here.windows.get(number)
    limits = here.limits
    figures = (
        Figures() if window is None or limits is None else window.figures(now_s, limits.window_s)
    )
    return pb.PartFigures(
        version=version_name(here.alias.adapter, number),
        requests=figures.requests,
        error_rate=figures.errors.value or 0.0,
        refusal_rate=figures.refusals.value or 0.0,
        babble_rate=figures.babble.value or 0.0,
        first_token_s=figures.first_token_s.value,
        token_s=figures.token_s.value,
        mean_tokens=figures.mean_tokens.value,
    )


def _shadow(tally: ShadowTally) -> pb.ShadowFigures:
    count = max(1, tally.compared)
    return pb.ShadowFigures(
        version=tally.version.name,
        compared=tally.compared,
        equal=tally.equal,
        agreement=tally.agreement / count,
        length_ratio=tally.length_ratio / count,
        time_ratio=tally.time_ratio / count,
        failed=tally.failed,
        dropped=tally.dropped,
    )
