"""What no file of a version may be called, whatever it is a version of. Looks at names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from graft.errors import GraftError

from services.registry.errors import refused

CHECK = "files"
# No dot or blank at the end, no second dot in a row, nothing hidden: the same on every file system.
_PLAIN = re.compile(r"[A-Za-z0-9](?:[._-]?[A-Za-z0-9_-]){0,126}")
_DEVICES = re.compile(r"(?i)(?:con|prn|aux|nul|com[0-9]|lpt[0-9]|conin\$|conout\$)(?:\..*)?")
_PICKLES = (
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".mar",
)  # fmt: skip
_CODE = (
    ".py", ".pyc", ".pyd", ".pyw", ".pyz", ".pth", ".ipynb", ".so", ".dll", ".dylib", ".exe", ".sh",
    ".bash", ".bat", ".cmd", ".ps1", ".js", ".php", ".pl", ".rb", ".jar", ".whl", ".egg", ".wasm",
)  # fmt: skip
_ARCHIVES = (
    ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar", ".cab", ".iso",
)  # fmt: skip


def check_path(path: str) -> None:
    """Refuses what is not a plain file name, and names of pickles, code and archives.

    Raises:
        GraftError: VERSION_REFUSED, naming the path.
    """
    lower = path.lower()
    if lower.endswith(_PICKLES):
        raise _refused(
            path,
            "is a pickle by its name, and pickles can run code when they are loaded",
            "Save with safe_serialization=True, which writes safetensors.",
        )
    if lower.endswith(_CODE):
        raise _refused(path, "is code", "A version holds no code: leave it out.")
    if lower.endswith(_ARCHIVES):
        raise _refused(path, "is an archive by its name", "Commit its files, unpacked.")
    if _DEVICES.fullmatch(path):
        raise _refused(path, "is the name of a device on Windows", "Give the file another name.")
    if _PLAIN.fullmatch(path) is None:
        raise _refused(
            path,
            "is not a plain file name",
            "Files lie at the top of a version; letters, digits, '.', '_' and '-' make their names.",
        )


def check_collisions(paths: Iterable[str]) -> None:
    """Refuses two files that would be one on some file system.

    Raises:
        GraftError: VERSION_REFUSED, naming the second.
    """
    seen: dict[str, str] = {}
    for path in paths:
        first = seen.get(path.lower())
        if first == path:
            raise _refused(path, "is listed twice", "List every file once.")
        if first is not None:
            raise _refused(
                path,
                f"and {first!a} are one file where upper and lower case are the same",
                "Rename one of them.",
            )
        seen[path.lower()] = path


def does_not_belong(path: str, what_does: str) -> GraftError:
    """VERSION_REFUSED for a file that is harmless and of no use."""
    return _refused(path, "does not belong to such a version", f"Commit {what_does}.")


def _refused(path: str, why: str, next_step: str) -> GraftError:
    shown = ascii(path[:120])
    return refused(CHECK, f"{shown} {why}", next_step, path=shown[1:-1])
