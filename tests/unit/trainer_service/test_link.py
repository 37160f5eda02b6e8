"""One stream of a worker, from the trainer's side."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from graft.errors import GraftError, Reason
from structlog.testing import capture_logs

from services.trainer.jobs import LogLine
from services.trainer.session import Acknowledged, Link, NumberedReport


@pytest.mark.parametrize(
    ("reason", "logged"), [(Reason.STORAGE_FULL, ["the disk is full"]), (Reason.JOB_ENDED, [])]
)
async def test_last_reports_that_cannot_be_stored_are_logged_unless_nobody_wants_them(
    reason: Reason, logged: list[str]
) -> None:
    stored: list[NumberedReport] = []

    async def record(batch: Sequence[NumberedReport]) -> None:
        if stored:
            raise GraftError(reason, "the disk is full")
        stored.extend(batch)

    link = Link()
    answers = link.answers(record)
    link.receive(1, LogLine("stored"))
    assert await anext(answers) == Acknowledged(1)
    link.receive(2, LogLine("not stored"))
    with capture_logs() as logs:
        await answers.aclose()
        await link.until_closed(timeout_s=0)
    assert [line["error"] for line in logs] == logged
    assert stored == [(1, LogLine("stored"))]
