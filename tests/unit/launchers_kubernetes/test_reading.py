"""What is read from Jobs and pods as Kubernetes leaves them."""

from __future__ import annotations

from typing import Any

import pytest

from services.trainer.launchers.kubernetes.reading import end_of
from services.trainer.states import FailureCause

JOB_METADATA = {"name": "graft-bot-1-0123456789-1", "labels": {}}


def job(kind: str = "", reason: str = "", message: str = "") -> dict[str, Any]:
    found = {"type": kind, "status": "True", "reason": reason, "message": message}
    return {"metadata": JOB_METADATA, "status": {"conditions": [found] if kind else []}}


def pod(code: int, message: str = "", index: int = 0, **status: Any) -> dict[str, Any]:
    ended = {"exitCode": code, "message": message, "reason": "Error"} | status.pop("ended", {})
    container = {"name": "worker", "state": {"terminated": ended}}
    return {
        "metadata": {
            "name": f"p-{index}",
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "status": {"containerStatuses": [container], **status},
    }


DISRUPTED: dict[str, Any] = {
    "conditions": [
        {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": "preempted",
        }
    ]
}


@pytest.mark.parametrize(("told", "code"), [(0, 0), (65, 65), (137, -9), (143, -15)])
def test_a_pods_exit_code_is_the_attempts(told: int, code: int) -> None:
    assert end_of(job("Failed"), [pod(told)])[0] == code


def test_without_a_pod_the_jobs_condition_says_the_exit_code() -> None:
    said = (
        "Container worker for pod graft/p failed with exit code 65 matching FailJob rule at index 0"
    )
    assert end_of(job("Failed", "PodFailurePolicy", said), [])[0] == 65


def test_without_a_pod_the_jobs_condition_says_that_it_was_disrupted() -> None:
    said = "Pod graft/p has condition DisruptionTarget matching FailJob rule at index 1"
    code, remains = end_of(job("Failed", "PodFailurePolicy", said), [])
    assert code is None
    assert remains.disrupted


def test_a_complete_job_without_a_pod_has_succeeded() -> None:
    code, remains = end_of(job("Complete"), [])
    assert code == 0
    assert remains.finished is not None
    assert remains.finished.succeeded


def test_the_last_report_in_the_pod_is_read() -> None:
    _, remains = end_of(job("Failed"), [pod(65, '{"failureCause": 2, "message": "row 3"}')])
    assert remains.finished is not None
    assert (remains.finished.cause, remains.finished.message) == (FailureCause.BAD_DATA, "row 3")


def test_what_is_no_report_is_the_end_of_the_log() -> None:
    _, remains = end_of(job("Failed"), [pod(1, "first\n{broken\nlast line\n\n")])
    assert remains.finished is None
    assert remains.log_tail == "last line"


def test_a_preempted_pod_is_disrupted_and_says_by_what() -> None:
    _, remains = end_of(job("Failed"), [pod(137, **DISRUPTED)])
    assert remains.disrupted
    assert remains.because == "preempted"


def test_a_pod_that_finished_in_a_disruption_has_finished() -> None:
    code, remains = end_of(job("Complete"), [pod(0, **DISRUPTED)])
    assert code == 0
    assert not remains.disrupted


def test_memory_that_ran_out_is_a_cause() -> None:
    _, remains = end_of(job("Failed"), [pod(137, ended={"reason": "OOMKilled"})])
    assert remains.finished is not None
    assert remains.finished.cause is FailureCause.OUT_OF_MEMORY


def test_an_eviction_for_the_pods_own_use_of_disk_is_no_disruption() -> None:
    evicted = pod(137)
    evicted["status"] |= {
        "reason": "Evicted",
        "message": "Usage of EmptyDir volume exceeds the limit",
    }
    _, remains = end_of(job("Failed"), [evicted])
    assert not remains.disrupted
    assert remains.because == "Evicted: Usage of EmptyDir volume exceeds the limit"


def test_a_deadline_fails_the_job_though_its_worker_says_preempted() -> None:
    late = job("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
    _, remains = end_of(late, [pod(75, '{"preempted": true}')])
    assert remains.finished is not None
    assert remains.finished.cause is FailureCause.INTERNAL
    assert "deadline_s" in remains.finished.message


def test_of_several_nodes_the_one_that_failed_tells() -> None:
    # The first was made to stop by the other's end, and says no more than that.
    code, remains = end_of(job("Failed"), [pod(75, index=0), pod(65, index=1)])
    assert code == 65
    assert remains.finished is not None
    assert remains.finished.cause is FailureCause.BAD_DATA
    assert remains.finished.message.startswith("Node 1 ended with code 65")
    code, remains = end_of(job("Failed"), [pod(75, index=0), pod(137, index=1)])
    assert (code, remains.finished and remains.finished.cause) == (-9, FailureCause.NODE_LOST)
    code, remains = end_of(job("Failed"), [pod(75, index=0), pod(75, index=1)])
    assert (code, remains.finished) == (75, None)
    assert end_of(job("Failed"), [pod(0, index=0), pod(66, index=1)])[0] == 66


def test_nodes_that_end_after_the_first_succeeded_do_not_spoil_it() -> None:
    done = pod(0, '{"version": "v"}', index=0)
    code, remains = end_of(job("Complete", "SuccessPolicy"), [done, pod(143, index=1)])
    assert code == 0
    assert remains.finished is not None
    assert remains.finished.version == "v"
