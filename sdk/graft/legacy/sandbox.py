"""Takes from this process what a hostile file could use: the network, new programs, memory and time.

Linux only; standard library only. The loader is the first wall (it reads tensors and nothing else);
this is the second. Sources: unshare(2), seccomp(2), <linux/audit.h>, the syscall tables of x86_64 and
aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
from collections.abc import Sequence
from dataclasses import dataclass

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_RET_ALLOW, _RET_ERRNO, _RET_KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_X32 = 0x40000000
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Machine:
    """What a filter must know: audit architecture, number of seccomp(2), and the calls it denies."""

    audit: int
    seccomp: int
    # socket, connect, bind, listen, sendto, sendmsg, execve, execveat, ptrace, io_uring_setup
    denied: Sequence[int]


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 317, (41, 42, 49, 50, 44, 46, 59, 322, 101, 425)),
    "aarch64": _Machine(0xC00000B7, 277, (198, 203, 200, 201, 206, 211, 221, 281, 117, 425)),
}


def leave_network() -> bool:
    """Moves this process, of one thread still, to a network of its own without any way out."""
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def deny_calls() -> bool:
    """Denies all threads of this process sockets and new programs, for good."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    code = ctypes.create_string_buffer(_filter(machine))
    program = struct.pack("HxxxxxxP", (len(code) - 1) // 8, ctypes.addressof(code))
    result = libc.syscall(
        machine.seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, program
    )
    return bool(result == 0)


def limit(cpu_s: int, file_bytes: int, memory_bytes: int) -> None:
    """Limits this process.

    Args:
        cpu_s: seconds of computing, from its start.
        file_bytes: largest file that it may write.
        memory_bytes: what it may map besides what it has mapped already.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_CPU, cpu_s)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_AS, _mapped_bytes() + memory_bytes)
    # A file that is too large shall be an error that can be said, and not a death by SIGXFSZ.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def die_with_parent(parent: int) -> None:
    """Ends this process as soon as the one that started it does."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _lower(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _mapped_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * resource.getpagesize()


def _filter(machine: _Machine) -> bytes:
    """Classic BPF over struct seccomp_data {int nr; u32 arch; ...}."""
    denied = _RET_ERRNO | errno.EPERM
    lines = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _RET_KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _RET_KILL),
    ]
    for number in machine.denied:
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, denied)]
    lines.append((_RETURN, 0, 0, _RET_ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in lines)
