"""How an attempt ends: the exit codes of the contract, and which one an error leads to."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

from graft.common.v1 import common_pb2 as common
from graft.errors import GraftError, Reason
from graft.trainer.v1.worker_service_pb2 import Finished

from services.trainer.run.disk import is_disk_full, storage_full


class ExitCode(IntEnum):
    """Exit codes of a worker; 64 to 70 as in sysexits.h where there is one."""

    DONE = 0
    BAD_CONFIG = 64
    BAD_DATA = 65
    OUT_OF_MEMORY = 66
    REFUSED = 67
    INTERNAL = 70
    PAUSED = 74
    PREEMPTED = 75
    STALLED = 76
    CANCELLED = 79


class PreemptedError(Exception):
    """The attempt stops so that another can go on from its checkpoint."""


class PeerLostError(PreemptedError):
    """Another process of the job has ended: all go on from the last checkpoint together, or not at all."""


class PeerFailedError(Exception):
    """Another process of the job has ended by a fault of its own, which is the job's.

    Args:
        code: its exit code.
        message: why, in words.
    """

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class OutOfMemoryError(Exception):
    """Memory ran out and nothing smaller is left to try; says what to do."""


class RegistryRefusedError(Exception):
    """The registry does not take the result, or will not.

    Args:
        cause: the registry's error.
    """

    def __init__(self, cause: GraftError) -> None:
        super().__init__(str(cause))


_BAD_CONFIG = {
    Reason.INVALID_SPEC,
    Reason.INVALID_NAME,
    Reason.INVALID_REQUEST,
    Reason.NOT_A_MODEL,
    Reason.NOT_THE_SAME,
    Reason.RANK_TOO_LARGE,
    Reason.WRONG_BASE,
}
_CAUSES = {
    ExitCode.BAD_CONFIG: common.FAILURE_CAUSE_BAD_CONFIG,
    ExitCode.BAD_DATA: common.FAILURE_CAUSE_BAD_DATA,
    ExitCode.OUT_OF_MEMORY: common.FAILURE_CAUSE_OUT_OF_MEMORY,
    ExitCode.REFUSED: common.FAILURE_CAUSE_REFUSED,
    ExitCode.INTERNAL: common.FAILURE_CAUSE_INTERNAL,
}


# What torch's CPU allocator, CUDA, cuBLAS, HIP and C++ say.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)


def exit_of(error: BaseException, work_dir: Path) -> tuple[ExitCode, Finished]:
    """The exit code of an error, and the last report of an attempt that it ends."""
    if isinstance(error, PeerLostError):
        # Nobody asked for it: an end that comes again and again is not gone on from for ever.
        lost = common.FAILURE_CAUSE_NODE_LOST
        return ExitCode.PREEMPTED, Finished(failure_cause=lost, message=str(error))
    if isinstance(error, PreemptedError):
        return ExitCode.PREEMPTED, Finished(preempted=True, message=str(error))
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.CANCELLED, Finished(cancelled=True, message="Interrupted")
    if (full := _storage_full(error, work_dir)) is not None:
        return ExitCode.PAUSED, Finished(paused=True, message=str(full))
    if isinstance(error, PeerFailedError) and error.code is ExitCode.PAUSED:
        return ExitCode.PAUSED, Finished(paused=True, message=str(error))
    code, message = _classify(error, work_dir)
    return code, Finished(failure_cause=_CAUSES[code], message=message)


def _classify(error: BaseException, work_dir: Path) -> tuple[ExitCode, str]:
    if isinstance(error, PeerFailedError):
        return error.code, str(error)
    if isinstance(error, RegistryRefusedError):
        return ExitCode.REFUSED, str(error)
    if isinstance(error, GraftError):
        if error.reason is Reason.BAD_DATA:
            return ExitCode.BAD_DATA, str(error)
        code = ExitCode.BAD_CONFIG if error.reason in _BAD_CONFIG else ExitCode.INTERNAL
        return code, str(error)
    if isinstance(error, OutOfMemoryError):
        return ExitCode.OUT_OF_MEMORY, str(error)
    if is_out_of_memory(error):
        return ExitCode.OUT_OF_MEMORY, (
            f"Memory ran out ({_first_line(error)}). Lower micro_batch_size or max_length_tokens, "
            "turn on gradient_checkpointing, or quantize the base with nf4."
        )
    return ExitCode.INTERNAL, (
        f"{type(error).__name__}: {_first_line(error)}. The traceback is in the attempt's log."
    )


def _storage_full(error: BaseException, work_dir: Path) -> GraftError | None:
    """The error of a disk that is full, which only people can see to."""
    if isinstance(error, GraftError):
        return error if error.reason is Reason.STORAGE_FULL else None
    if isinstance(error, RegistryRefusedError) or not is_disk_full(error, work_dir):
        return None
    return storage_full(error, work_dir, "job's next file", 0, "the last good checkpoint is kept")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on the device or on the CPU."""
    words = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(one in words for one in _OUT_OF_MEMORY)
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]
