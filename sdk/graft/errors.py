"""Every error that a Graft service can answer with, and the one translation to and from gRPC.

    GraftError            carries a Reason, a message, a next step and metadata
      NotFoundError       something named does not exist
      InvalidError        the caller must change the request
      ConflictError       the state is another than the caller assumed
      RefusedError        the registry refused a version
      UnavailableError    may work when tried again

To add an error: add a Reason and its status in STATUS. Which class it raises as follows from the status.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self, cast

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from graft.handshakes import Trouble, handshake_trouble

DOMAIN = "graft.dev"
_CLOSED = "closed"


class Reason(StrEnum):
    """Why a call failed; stable, for programs. AIP-193's ErrorInfo.reason."""

    INVALID_NAME = "INVALID_NAME"
    INVALID_REFERENCE = "INVALID_REFERENCE"
    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_SPEC = "INVALID_SPEC"
    INVALID_PAGE_TOKEN = "INVALID_PAGE_TOKEN"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    BAD_DATA = "BAD_DATA"
    NOT_A_MODEL = "NOT_A_MODEL"
    NOT_THE_SAME = "NOT_THE_SAME"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    ADAPTER_NOT_FOUND = "ADAPTER_NOT_FOUND"
    BASE_NOT_FOUND = "BASE_NOT_FOUND"
    VERSION_NOT_FOUND = "VERSION_NOT_FOUND"
    ALIAS_NOT_FOUND = "ALIAS_NOT_FOUND"
    BLOB_NOT_FOUND = "BLOB_NOT_FOUND"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    ALIAS_MOVED = "ALIAS_MOVED"
    DELETED = "DELETED"
    IN_USE = "IN_USE"
    NOT_DELETED = "NOT_DELETED"
    PROTECTED = "PROTECTED"
    APPROVAL_NOT_FOUND = "APPROVAL_NOT_FOUND"
    GATE_REFUSED = "GATE_REFUSED"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    LEASE_NOT_FOUND = "LEASE_NOT_FOUND"
    NAMESPACE_NOT_FOUND = "NAMESPACE_NOT_FOUND"
    INVALID_FILTER = "INVALID_FILTER"
    NO_PREVIOUS_VERSION = "NO_PREVIOUS_VERSION"
    NO_ROLLOUT = "NO_ROLLOUT"
    JOB_ENDED = "JOB_ENDED"
    JOB_FAILED = "JOB_FAILED"
    WRONG_BASE = "WRONG_BASE"
    RANK_TOO_LARGE = "RANK_TOO_LARGE"
    ADAPTER_UNUSABLE = "ADAPTER_UNUSABLE"
    VERSION_REFUSED = "VERSION_REFUSED"
    SIGNATURE_REQUIRED = "SIGNATURE_REQUIRED"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    ATTESTATION_INVALID = "ATTESTATION_INVALID"
    NOT_INSTALLED = "NOT_INSTALLED"
    ARCHIVE_REFUSED = "ARCHIVE_REFUSED"
    UPLOAD_OFFSET = "UPLOAD_OFFSET"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    TOO_LARGE = "TOO_LARGE"
    STORAGE_FULL = "STORAGE_FULL"
    REVISION_COMPACTED = "REVISION_COMPACTED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    CANCELLED = "CANCELLED"
    NOT_SUPPORTED = "NOT_SUPPORTED"
    OVERLOADED = "OVERLOADED"
    RATE_LIMITED = "RATE_LIMITED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    UNAVAILABLE = "UNAVAILABLE"
    ENGINE_DEAD = "ENGINE_DEAD"
    INTERNAL = "INTERNAL"


_CODE = grpc.StatusCode
STATUS: dict[Reason, grpc.StatusCode] = {
    Reason.INVALID_NAME: _CODE.INVALID_ARGUMENT,
    Reason.INVALID_REFERENCE: _CODE.INVALID_ARGUMENT,
    Reason.INVALID_REQUEST: _CODE.INVALID_ARGUMENT,
    Reason.INVALID_SPEC: _CODE.INVALID_ARGUMENT,
    Reason.INVALID_PAGE_TOKEN: _CODE.INVALID_ARGUMENT,
    Reason.REQUEST_ID_REUSED: _CODE.INVALID_ARGUMENT,
    Reason.BAD_DATA: _CODE.INVALID_ARGUMENT,
    Reason.NOT_A_MODEL: _CODE.INVALID_ARGUMENT,
    Reason.NOT_THE_SAME: _CODE.FAILED_PRECONDITION,
    Reason.PROMPT_TOO_LONG: _CODE.INVALID_ARGUMENT,
    Reason.ADAPTER_NOT_FOUND: _CODE.NOT_FOUND,
    Reason.BASE_NOT_FOUND: _CODE.NOT_FOUND,
    Reason.VERSION_NOT_FOUND: _CODE.NOT_FOUND,
    Reason.ALIAS_NOT_FOUND: _CODE.NOT_FOUND,
    Reason.BLOB_NOT_FOUND: _CODE.NOT_FOUND,
    Reason.JOB_NOT_FOUND: _CODE.NOT_FOUND,
    Reason.MODEL_NOT_FOUND: _CODE.NOT_FOUND,
    Reason.ALREADY_EXISTS: _CODE.ALREADY_EXISTS,
    Reason.ALIAS_MOVED: _CODE.ABORTED,
    Reason.DELETED: _CODE.FAILED_PRECONDITION,
    Reason.IN_USE: _CODE.FAILED_PRECONDITION,
    Reason.NOT_DELETED: _CODE.FAILED_PRECONDITION,
    Reason.PROTECTED: _CODE.PERMISSION_DENIED,
    Reason.APPROVAL_NOT_FOUND: _CODE.NOT_FOUND,
    Reason.GATE_REFUSED: _CODE.FAILED_PRECONDITION,
    Reason.ETAG_MISMATCH: _CODE.ABORTED,
    Reason.QUOTA_EXCEEDED: _CODE.RESOURCE_EXHAUSTED,
    Reason.LEASE_NOT_FOUND: _CODE.NOT_FOUND,
    Reason.NAMESPACE_NOT_FOUND: _CODE.NOT_FOUND,
    Reason.INVALID_FILTER: _CODE.INVALID_ARGUMENT,
    Reason.NO_PREVIOUS_VERSION: _CODE.FAILED_PRECONDITION,
    Reason.NO_ROLLOUT: _CODE.FAILED_PRECONDITION,
    Reason.JOB_ENDED: _CODE.FAILED_PRECONDITION,
    Reason.JOB_FAILED: _CODE.FAILED_PRECONDITION,
    Reason.WRONG_BASE: _CODE.FAILED_PRECONDITION,
    Reason.RANK_TOO_LARGE: _CODE.FAILED_PRECONDITION,
    Reason.ADAPTER_UNUSABLE: _CODE.FAILED_PRECONDITION,
    Reason.VERSION_REFUSED: _CODE.FAILED_PRECONDITION,
    Reason.SIGNATURE_REQUIRED: _CODE.FAILED_PRECONDITION,
    Reason.SIGNATURE_INVALID: _CODE.FAILED_PRECONDITION,
    Reason.ATTESTATION_INVALID: _CODE.INVALID_ARGUMENT,
    Reason.NOT_INSTALLED: _CODE.FAILED_PRECONDITION,
    Reason.ARCHIVE_REFUSED: _CODE.INVALID_ARGUMENT,
    Reason.UPLOAD_OFFSET: _CODE.OUT_OF_RANGE,
    Reason.DIGEST_MISMATCH: _CODE.DATA_LOSS,
    Reason.TOO_LARGE: _CODE.INVALID_ARGUMENT,
    Reason.STORAGE_FULL: _CODE.RESOURCE_EXHAUSTED,
    Reason.REVISION_COMPACTED: _CODE.OUT_OF_RANGE,
    Reason.PERMISSION_DENIED: _CODE.PERMISSION_DENIED,
    Reason.UNAUTHENTICATED: _CODE.UNAUTHENTICATED,
    Reason.CANCELLED: _CODE.CANCELLED,
    Reason.NOT_SUPPORTED: _CODE.UNIMPLEMENTED,
    Reason.OVERLOADED: _CODE.RESOURCE_EXHAUSTED,
    Reason.RATE_LIMITED: _CODE.RESOURCE_EXHAUSTED,
    Reason.DEADLINE_EXCEEDED: _CODE.DEADLINE_EXCEEDED,
    Reason.UNAVAILABLE: _CODE.UNAVAILABLE,
    Reason.ENGINE_DEAD: _CODE.UNAVAILABLE,
    Reason.INTERNAL: _CODE.INTERNAL,
}


# Of the metadata.
_RETRY_AFTER = "retry_after_s"


class GraftError(Exception):
    """An error with a reason that programs can act on and a next step that people can.

    GraftError(reason, ...) makes an instance of the subclass that fits the reason's status.

    Args:
        reason: why, for programs.
        message: what is wrong; names the row, field, tensor or resource.
        next_step: what to do about it, as a sentence.
        metadata: further names and values, for programs.
    """

    def __new__(cls, reason: Reason, *args: Any, **metadata: Any) -> Self:
        if cls is GraftError:
            fitting = _BY_REASON.get(reason) or _CLASS.get(STATUS[reason])
            if fitting is not None:
                return super().__new__(fitting)  # type: ignore[return-value]
        return super().__new__(cls)

    def __init__(
        self, reason: Reason, message: str, *, next_step: str = "", **metadata: object
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.next_step = next_step
        self.metadata = {key: str(value) for key, value in metadata.items()}

    @property
    def retry_after_s(self) -> float | None:
        """When to try again, where the service knows; google.rpc.RetryInfo on the wire."""
        given = self.metadata.get(_RETRY_AFTER)
        return None if given is None else float(given)

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status of its reason."""
        return STATUS[self.reason]

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.reason, self.message, self.next_step, self.metadata))

    def __str__(self) -> str:
        return f"{self.message}. {self.next_step}" if self.next_step else self.message


class NotFoundError(GraftError):
    """Something that was named does not exist."""


class InvalidError(GraftError):
    """The request itself is wrong and will never work as it is."""


class ConflictError(GraftError):
    """The state is another than the caller assumed: read it again and decide anew."""


class RefusedError(GraftError):
    """The registry refused a version; the message names the tensor and the check."""


class UnavailableError(GraftError):
    """The service cannot do it right now; trying again may help."""


class QuotaError(GraftError):
    """More is needed than a namespace may use; trying again does not help."""


_BY_REASON: dict[Reason, type[GraftError]] = {
    Reason.VERSION_REFUSED: RefusedError,
    Reason.QUOTA_EXCEEDED: QuotaError,
}
_CLASS: dict[grpc.StatusCode, type[GraftError]] = {
    _CODE.NOT_FOUND: NotFoundError,
    _CODE.INVALID_ARGUMENT: InvalidError,
    _CODE.OUT_OF_RANGE: InvalidError,
    _CODE.ABORTED: ConflictError,
    _CODE.ALREADY_EXISTS: ConflictError,
    _CODE.FAILED_PRECONDITION: ConflictError,
    _CODE.UNAVAILABLE: UnavailableError,
    _CODE.RESOURCE_EXHAUSTED: UnavailableError,
    _CODE.DEADLINE_EXCEEDED: UnavailableError,
}


def _rebuild(reason: Reason, message: str, next_step: str, metadata: dict[str, str]) -> GraftError:
    return GraftError(reason, message, next_step=next_step, **metadata)


_START_STEP = {
    "": "Start it with `graft up`, or check its address with `graft doctor`.",
    "inference": "Start it with `graft up --base FOLDER`, or check its address with `graft doctor`.",
}


_READ_ITS_LOG = "Read that service's log; `graft doctor` says what runs where."
_ASK_THE_PROXY = "Ask whoever runs the proxy before the service for access."
_OTHER_VERSION = (
    "Check with `graft doctor` that the address is that service's, and with `graft version` that "
    "client and service are of one version."
)
# What the transport, a proxy or another version of a service says by itself.
_FOREIGN = {
    _CODE.CANCELLED: (Reason.CANCELLED, "Send it again if the answer is still wanted."),
    _CODE.DEADLINE_EXCEEDED: (
        Reason.UNAVAILABLE,
        "Try again with more time (timeout_s, for text generate_timeout_s); `graft doctor` says "
        "whether the service is well.",
    ),
    _CODE.RESOURCE_EXHAUSTED: (
        Reason.OVERLOADED,
        "Try again later; if it says that the message is too large, send a smaller one.",
    ),
    _CODE.PERMISSION_DENIED: (Reason.PERMISSION_DENIED, _ASK_THE_PROXY),
    _CODE.UNAUTHENTICATED: (Reason.PERMISSION_DENIED, _ASK_THE_PROXY),
    _CODE.INVALID_ARGUMENT: (Reason.INVALID_REQUEST, _OTHER_VERSION),
    _CODE.UNIMPLEMENTED: (Reason.INTERNAL, _OTHER_VERSION),
}


_MAX_MESSAGE_BYTES = 2500


def to_status(error: GraftError) -> status_pb2.Status:
    """The google.rpc.Status of an error, with ErrorInfo and, for a next step, a LocalizedMessage.

    A quota's has a QuotaFailure too, and one with retry_after_s a RetryInfo.
    """
    info = error_details_pb2.ErrorInfo(
        reason=error.reason.value, domain=DOMAIN, metadata=error.metadata
    )
    details = [_pack(info)]
    if error.next_step:
        details.append(
            _pack(error_details_pb2.LocalizedMessage(locale="en", message=error.next_step))
        )
    if error.reason is Reason.QUOTA_EXCEEDED:
        details.append(_pack(_quota_failure(error)))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(1000 * error.retry_after_s))
        details.append(_pack(retry))
    code: int = error.code.value[0]
    return status_pb2.Status(code=code, message=_fitting(error.message), details=details)


def _fitting(message: str) -> str:
    """As much of a message as can be sent.

    It goes twice into gRPC's trailers, which may have 8 KiB together, once with all but printable ASCII
    as %XX. What is longer would arrive as another error altogether.
    """
    size_bytes = 0
    for place, letter in enumerate(message):
        plain = " " <= letter <= "~" and letter != "%"
        size_bytes += 1 if plain else 3 * len(letter.encode("utf-8", "replace"))
        if size_bytes > _MAX_MESSAGE_BYTES:
            return f"{message[:place]}... ({len(message)} characters)"
    return message


def _quota_failure(error: GraftError) -> error_details_pb2.QuotaFailure:
    violation = error_details_pb2.QuotaFailure.Violation(
        subject=error.metadata.get("resource", ""), description=error.message
    )
    return error_details_pb2.QuotaFailure(violations=[violation])


# What grpc.aio says instead of the server's status when a write fails as the call ends (grpc/grpc#36066).
_LOST_ANSWER = "Internal error from Core"


def from_rpc_error(
    error: grpc.aio.AioRpcError | grpc.Call, peer: str = "the service"
) -> GraftError:
    """The error that a service raised, or, where none of ours did, what the transport says."""
    status = rpc_status.from_call(cast(grpc.Call, error))
    if status is not None:
        found = _from_status(status)
        if found is not None:
            return found
    code, details = error.code(), error.details() or ""
    if code is _CODE.UNAVAILABLE:
        if (trouble := handshake_trouble(details)) is not None:
            return unreachable(peer, trouble)
        return GraftError(
            Reason.UNAVAILABLE,
            f"{peer} cannot be reached: {details}",
            next_step=_START_STEP.get(peer, _START_STEP[""]),
        )
    if code is _CODE.INTERNAL and details == _LOST_ANSWER:
        return GraftError(
            Reason.UNAVAILABLE,
            f"{peer} ended the call while a message was on its way, and its answer was lost",
            next_step="Try again; its log has the answer.",
        )
    reason, next_step = _FOREIGN.get(code, (Reason.INTERNAL, _READ_ITS_LOG))
    return GraftError(reason, f"{peer} answered {code.name}: {details}", next_step=next_step)


def unreachable(peer: str, trouble: Trouble) -> GraftError:
    """UNAVAILABLE, for a connection that a certificate kept from being made."""
    return GraftError(
        Reason.UNAVAILABLE,
        f"{peer} cannot be reached: {trouble.what}",
        next_step=trouble.next_step,
        **({"connection": _CLOSED} if trouble.closed else {}),
    )


def is_closed(error: GraftError) -> bool:
    """Whether a service closed the connection without a word: handshakes.ask_again() may say more."""
    return error.metadata.get("connection") == _CLOSED


def _from_status(status: status_pb2.Status) -> GraftError | None:
    info, help_text = error_details_pb2.ErrorInfo(), error_details_pb2.LocalizedMessage()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(help_text.DESCRIPTOR):
            detail.Unpack(help_text)
    if info.domain != DOMAIN or info.reason not in Reason.__members__:
        return None
    return GraftError(
        Reason(info.reason),
        status.message,
        next_step=help_text.message or _READ_ITS_LOG,
        **dict(info.metadata),
    )


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
