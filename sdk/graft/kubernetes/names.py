"""Names and labels of an attempt's objects: the same attempt always gets the same, no two share one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from graft.names import parse_name

PART_OF = "graft"
# Room for "-node-0-{index}-{five letters}" of a JobSet's pod of many, within the 63 letters of a host name.
_LONGEST = 45
_DIGEST_LETTERS = 10

JOB_LABEL = "graft.dev/job"
NAMESPACE_LABEL = "graft.dev/namespace"
ATTEMPT_LABEL = "graft.dev/attempt"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
JOB_ANNOTATION = "graft.dev/job-name"
TOKEN_ANNOTATION = "graft.dev/token-sha256"


def attempt_object_name(job: str, attempt: int) -> str:
    """Name of the objects of an attempt: a DNS label, "graft-{job}-{digest}-{attempt}".

    The digest keeps apart what only looks alike once letters that a label must not have are replaced and
    long ids are cut.

    Args:
        job: "namespaces/{ns}/jobs/{job}".
        attempt: from 1.

    Raises:
        GraftError: INVALID_NAME.
    """
    return _object_name(job, f"-{attempt}")


def job_object_name(job: str) -> str:
    """Name of what all attempts of a job share: a DNS label, "graft-{job}-{digest}".

    Raises:
        GraftError: INVALID_NAME.
    """
    return _object_name(job, "")


def _object_name(job: str, end: str) -> str:
    job_id = parse_name(job, "namespaces/{namespace}/jobs/{job}")["job"]
    digest = hashlib.sha256(job.encode()).hexdigest()[:_DIGEST_LETTERS]
    end = f"-{digest}{end}"
    readable = re.sub(r"[^a-z0-9-]+", "-", job_id)[: _LONGEST - len("graft-") - len(end)].strip("-")
    return f"graft-{readable}{end}"


def attempt_labels(
    job: str, attempt: int, instance: str, managed_by: str, extra: Mapping[str, str]
) -> dict[str, str]:
    """Labels of every object of an attempt; ours win over extra ones."""
    ids = parse_name(job, "namespaces/{namespace}/jobs/{job}")
    return {
        **extra,
        "app.kubernetes.io/name": "graft-worker",
        "app.kubernetes.io/component": "worker",
        "app.kubernetes.io/part-of": PART_OF,
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/managed-by": managed_by,
        NAMESPACE_LABEL: ids["namespace"],
        JOB_LABEL: ids["job"],
        ATTEMPT_LABEL: str(attempt),
    }


def token_digest(token: str) -> str:
    """What is kept beside a worker to know it again by its token, without telling the token."""
    return hashlib.sha256(token.encode()).hexdigest()
