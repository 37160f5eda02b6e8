"""Which files a version may consist of. Looks at names and sizes, not yet at bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from graft.digests import is_digest

from services.registry.admission.limits import Limits
from services.registry.domain import File
from services.registry.errors import refused

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CHECK = "files"
_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.(?:md|txt)|LICENSE|NOTICE")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_CODE = (".py", ".so", ".sh", ".pyc", ".dll")


def check_files(files: Sequence[File], limits: Limits) -> dict[str, File]:
    """The files by path.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    by_path: dict[str, File] = {}
    for file in files:
        _check_name(file.path)
        if file.path in by_path:
            raise refused(CHECK, f"{file.path} is listed twice", "List every file once.")
        _check_size(file, limits)
        by_path[file.path] = file
    for path in (CONFIG, WEIGHTS):
        if path not in by_path:
            raise refused(
                CHECK,
                f"{path} is missing",
                "Commit the folder that PEFT's save_pretrained writes, as safetensors.",
            )
    total_bytes = sum(file.size_bytes for file in files)
    if total_bytes > limits.max_version_bytes:
        raise refused(
            CHECK,
            f"The files have {total_bytes} bytes together, and {limits.max_version_bytes} are allowed",
            "Train with a smaller rank or fewer target modules, or raise max_version_bytes.",
        )
    return by_path


def _check_name(path: str) -> None:
    if path in (CONFIG, WEIGHTS) or _TEXT.fullmatch(path):
        return
    shown = repr(path[:120])
    if path.lower().endswith(_PICKLES):
        raise refused(
            CHECK,
            f"{shown} is a pickle by its name, and pickles can run code when they are loaded",
            "Save with safe_serialization=True, which writes adapter_model.safetensors.",
        )
    if path.lower().endswith(_CODE):
        raise refused(CHECK, f"{shown} is code", "A version holds no code: leave it out.")
    if "/" in path or "\\" in path or path.startswith(".") or "\0" in path:
        raise refused(
            CHECK, f"{shown} is not a plain file name", "Files lie at the top of a version."
        )
    raise refused(
        CHECK,
        f"{shown} does not belong to a version",
        f"Commit {CONFIG}, {WEIGHTS} and, if wanted, text such as README.md.",
    )


def _check_size(file: File, limits: Limits) -> None:
    if not is_digest(file.digest):
        raise refused(
            CHECK,
            f"{file.path} has the digest {file.digest[:80]!r}",
            "Write 'sha256:' and 64 lower-case hexadecimal digits.",
        )
    most = limits.max_file_bytes if file.path == WEIGHTS else limits.max_small_file_bytes
    if not 0 < file.size_bytes <= most:
        raise refused(
            CHECK,
            f"{file.path} has {file.size_bytes} bytes; 1 to {most} are allowed",
            "Check the file, or raise the registry's limit.",
        )
