"""What the transport, a proxy or another program answers: still a reason and a next step."""

from __future__ import annotations

import grpc
import pytest
from graft.errors import GraftError, Reason, from_rpc_error, to_status
from grpc_status import rpc_status

_CODE = grpc.StatusCode


def _answer(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details, "")


@pytest.mark.parametrize("code", [code for code in _CODE if code is not _CODE.OK])
def test_every_status_of_somebody_else_has_a_next_step(code: grpc.StatusCode) -> None:
    error = from_rpc_error(_answer(code, "oops"), "the trainer")
    assert "the trainer" in error.message
    assert "oops" in error.message
    assert error.next_step


@pytest.mark.parametrize(
    ("code", "reason", "step"),
    [
        (_CODE.DEADLINE_EXCEEDED, Reason.UNAVAILABLE, "timeout_s"),
        (_CODE.RESOURCE_EXHAUSTED, Reason.OVERLOADED, "Try again later"),
        (_CODE.UNAUTHENTICATED, Reason.PERMISSION_DENIED, "proxy"),
        (_CODE.UNIMPLEMENTED, Reason.INTERNAL, "graft version"),
        (_CODE.UNKNOWN, Reason.INTERNAL, "log"),
    ],
)
def test_a_status_of_somebody_else_becomes_the_reason_that_fits(
    code: grpc.StatusCode, reason: Reason, step: str
) -> None:
    error = from_rpc_error(_answer(code, "oops"))
    assert (error.reason, step in error.next_step) == (reason, True)


def test_an_answer_that_was_lost_is_worth_another_try() -> None:
    """As grpc.aio ends a call whose write fails because the server has refused it meanwhile."""
    error = from_rpc_error(_answer(_CODE.INTERNAL, "Internal error from Core"), "the registry")
    assert error.reason is Reason.UNAVAILABLE
    assert "its answer was lost" in error.message


def test_our_own_error_without_a_next_step_gets_one() -> None:
    status = rpc_status.to_status(to_status(GraftError(Reason.JOB_FAILED, "It failed")))
    metadata = grpc.aio.Metadata(*status.trailing_metadata)
    answer = grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), metadata, status.details, "")
    error = from_rpc_error(answer)
    assert (error.reason, error.message) == (Reason.JOB_FAILED, "It failed")
    assert "log" in error.next_step
