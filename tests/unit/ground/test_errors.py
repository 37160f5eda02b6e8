"""Errors keep their reason, next step and metadata from the service to the caller."""

from __future__ import annotations

import pickle

import grpc
import pytest
from graft.errors import STATUS, GraftError, NotFoundError, Reason, RefusedError, to_status


def test_every_reason_has_a_status() -> None:
    assert set(STATUS) == set(Reason)
    assert all(isinstance(code, grpc.StatusCode) for code in STATUS.values())


@pytest.mark.parametrize("reason", list(Reason))
def test_an_error_survives_pickling_whole(reason: Reason) -> None:
    error = GraftError(reason, "row 3 has no field 'output'", next_step="Add it.", row=3)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.reason, str(again), again.metadata) == (reason, str(error), {"row": "3"})


def test_the_class_follows_from_the_reason() -> None:
    assert isinstance(GraftError(Reason.JOB_NOT_FOUND, "x"), NotFoundError)
    assert isinstance(GraftError(Reason.VERSION_REFUSED, "x"), RefusedError)


def test_a_status_carries_reason_and_next_step() -> None:
    status = to_status(GraftError(Reason.ALIAS_MOVED, "moved", next_step="Read it again."))
    assert status.code == grpc.StatusCode.ABORTED.value[0]
    assert [detail.TypeName() for detail in status.details] == [
        "google.rpc.ErrorInfo",
        "google.rpc.LocalizedMessage",
    ]
