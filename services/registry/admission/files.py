"""Which files a version of an adapter may consist of. Looks at names and sizes, not yet at bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from graft.digests import is_digest

from services.registry.admission import paths
from services.registry.admission.limits import Limits
from services.registry.admission.paths import CHECK
from services.registry.domain import File
from services.registry.errors import refused

__all__ = ["CHECK", "CONFIG", "WEIGHTS", "check_adapter_files", "check_listing"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# What save_pretrained writes of a tokenizer, whose file may be large.
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
SMALL = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "NOTICE",
)
TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.(?:md|txt)")


def check_adapter_files(files: Sequence[File], limits: Limits) -> dict[str, File]:
    """The files by path.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    for file in files:
        paths.check_path(file.path)
        if not (file.path in (CONFIG, WEIGHTS, *TOKENIZER, *SMALL) or TEXT.fullmatch(file.path)):
            raise paths.does_not_belong(
                file.path, f"{CONFIG}, {WEIGHTS} and, if wanted, text such as README.md"
            )
    by_path = check_listing(files, limits, limits.max_version_bytes)
    for path in (CONFIG, WEIGHTS):
        if path not in by_path:
            raise refused(
                CHECK,
                f"{path} is missing",
                "Commit the folder that PEFT's save_pretrained writes, as safetensors.",
                path=path,
            )
    return by_path


def check_listing(
    files: Sequence[File], limits: Limits, max_total_bytes: int, index: str = ""
) -> dict[str, File]:
    """The files by path: each once, with a digest and a size within the limits.

    Args:
        files: as listed; their names are checked already.
        limits: the limits of one file.
        max_total_bytes: how large they may be together.
        index: name of the file that lists the tensors of all shards, if there may be one.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    if len(files) > limits.max_files:
        raise refused(
            CHECK,
            f"{len(files)} files are listed, and {limits.max_files} are allowed",
            "Leave out what is not needed to load it.",
        )
    paths.check_collisions(file.path for file in files)
    for file in files:
        _check_size(file, _most_bytes(file.path, limits, index))
    total_bytes = sum(file.size_bytes for file in files)
    if total_bytes > max_total_bytes:
        raise refused(
            CHECK,
            f"The files have {total_bytes} bytes together, and {max_total_bytes} are allowed",
            "Train with a smaller rank or fewer target modules, or raise max_version_bytes.",
        )
    return {file.path: file for file in files}


def _most_bytes(path: str, limits: Limits, index: str) -> int:
    if path.endswith(".safetensors"):
        return limits.max_file_bytes
    if path == index:
        return limits.max_index_bytes
    if path in TOKENIZER or path.endswith(".model"):
        return limits.max_tokenizer_bytes
    return limits.max_small_file_bytes


def _check_size(file: File, most_bytes: int) -> None:
    if not is_digest(file.digest):
        raise refused(
            CHECK,
            f"{file.path} has the digest {file.digest[:80]!a}",
            "Write 'sha256:' and 64 lower-case hexadecimal digits.",
            path=file.path,
        )
    if not 0 < file.size_bytes <= most_bytes:
        raise refused(
            CHECK,
            f"{file.path} has {file.size_bytes} bytes; 1 to {most_bytes} are allowed",
            "Check the file, or raise the registry's limit.",
            path=file.path,
        )
