"""PEFT folders on disk: what may be pushed from one, and how one appears whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from graft.errors import GraftError, Reason
from graft.files import fsync_folder

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# What belongs to an adapter; optimizer states and logs of a training run do not.
_REQUIRED = ("adapter_config.json", "adapter_model.safetensors")
_OPTIONAL = ("README.md", "chat_template.jinja", "added_tokens.json", "special_tokens_map.json")


def adapter_files(folder: Path) -> list[Path]:
    """The files of a PEFT folder that make a version.

    Raises:
        GraftError: ADAPTER_UNUSABLE when one is missing or the weights are a pickle.
    """
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    pickles = [path.name for path in _children(folder) if path.suffix in _PICKLES]
    if missing and pickles:
        raise GraftError(
            Reason.ADAPTER_UNUSABLE,
            f"{folder} holds its weights as a pickle ({', '.join(pickles)}), which can run code",
            next_step="Save it again with PEFT: "
            "`PeftModel.from_pretrained(base, folder).save_pretrained(new_folder)` "
            "writes adapter_model.safetensors.",
            path=folder,
        )
    if missing:
        raise GraftError(
            Reason.ADAPTER_UNUSABLE,
            f"{folder} is not a PEFT folder: it has no {' and no '.join(missing)}",
            next_step="Name the folder that save_pretrained() wrote.",
            path=folder,
        )
    return [folder / name for name in (*_REQUIRED, *_OPTIONAL) if (folder / name).is_file()]


def base_of(folder: Path) -> str:
    """The base that a PEFT folder says it was trained on; empty when it does not say."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    except ValueError as error:
        raise GraftError(
            Reason.ADAPTER_UNUSABLE,
            f"{folder / 'adapter_config.json'} is not JSON ({error})",
            next_step="Save the adapter again with PEFT's save_pretrained().",
        ) from None
    return str(config.get("base_model_name_or_path") or "") if isinstance(config, dict) else ""


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that is renamed to target when the block ends well, and removed when not.

    Raises:
        GraftError: ALREADY_EXISTS when target is there and not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise GraftError(
            Reason.ALREADY_EXISTS,
            f"{target} exists already",
            next_step="Name a new folder; nothing is overwritten.",
            path=target,
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield part
        part.chmod(0o755)
        part.rename(target)
        fsync_folder(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def inside(folder: Path, path: str) -> Path:
    """Where a version's file goes; a path that would leave the folder is refused.

    Raises:
        GraftError: ADAPTER_UNUSABLE, naming the path.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise GraftError(
            Reason.ADAPTER_UNUSABLE,
            f"The version names a file outside its folder: {path!r}",
            next_step="Do not use this version: push the adapter again from its PEFT folder.",
            path=path,
        )
    target = folder.joinpath(*pure.parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
