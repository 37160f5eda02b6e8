"""PEFT folders on disk: what may be pushed from one, and how one appears whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from graft.errors import GraftError, Reason
from graft.files import fsync_folder

CONFIG, WEIGHTS, OLD_WEIGHTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# What the registry takes besides: text about the adapter.
_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.(?:md|txt)|LICENSE|NOTICE")
_MAX_TEXT_BYTES = 1024 * 1024
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_TOKENIZER = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_OF_THE_RUN = re.compile(
    r"optimizer.*|scheduler.*|rng_state.*|scaler\..*|trainer_state\.json|training_args\..*"
    r"|(?:train|eval|all)_results\.json|events\.out\..*|global_step.*|latest"
)
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Contents:
    """What a PEFT folder holds.

    Attributes:
        files: what makes a version: its path there, and the file here.
        old_weights: an adapter_model.bin to be converted, where there are no safetensors.
        left_out: names of what does not belong to a version, by why.
    """

    files: Mapping[str, Path]
    old_weights: Path | None
    left_out: Mapping[str, Sequence[str]]

    @property
    def notes(self) -> list[str]:
        """What was left out, a sentence for each reason."""
        return [f"Left out, {why}: {_some(names)}." for why, names in self.left_out.items()]


def read_folder(folder: Path) -> Contents:
    """Sorts what lies in a PEFT folder, as people have them; opens nothing but small texts.

    Raises:
        GraftError: ADAPTER_UNUSABLE when there is no adapter in it, or when a file that is needed
            is a link to somewhere else.
    """
    files: dict[str, Path] = {}
    left_out: dict[str, list[str]] = {}
    old_weights: Path | None = None
    for path in _children(folder):
        why = _why_left_out(path)
        if why is None:
            _check_link(folder, path)
            if path.name == OLD_WEIGHTS:
                old_weights = path
            else:
                files[path.name] = path
        else:
            left_out.setdefault(why, []).append(path.name)
    if WEIGHTS in files and old_weights is not None:
        left_out.setdefault("for the same weights are there as safetensors", []).append(OLD_WEIGHTS)
        old_weights = None
    missing = [CONFIG] if CONFIG not in files else []
    if WEIGHTS not in files and old_weights is None:
        missing.append(WEIGHTS)
    if missing:
        raise _no_adapter(folder, missing)
    return Contents(files, old_weights, left_out)


def may_belong(name: str) -> bool:
    """Whether a file of that name at the top of a folder may be part of a version."""
    return name in (CONFIG, WEIGHTS, OLD_WEIGHTS, *_TOKENIZER) or _TEXT.fullmatch(name) is not None


def _why_left_out(path: Path) -> str | None:
    """None for what belongs to a version, or may."""
    name = path.name
    if name.startswith("."):
        return "being hidden"
    if path.is_dir():
        return "being a folder"
    if not path.is_file():
        return "being no plain file"
    if name in (CONFIG, WEIGHTS, OLD_WEIGHTS, *_TOKENIZER):
        return None
    if _OF_THE_RUN.fullmatch(name):
        return "being of the training run"
    if name.endswith(_PICKLES):
        return "being a pickle"
    if _TEXT.fullmatch(name):
        return None if _is_text(path) else "for it is empty, longer than 1 MiB or not UTF-8"
    return "for a version has no such file"


def _check_link(folder: Path, path: Path) -> None:
    root, target = folder.resolve(), path.resolve()
    # In the Hub's cache a snapshot is a folder of links to the blobs beside it.
    cached = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    if target.is_relative_to(root) or cached:
        return
    raise GraftError(
        Reason.ADAPTER_UNUSABLE,
        f"{path} is a link to {target}, outside of its folder",
        next_step="Copy the file into the folder, if it is what you want to push.",
        path=path,
    )


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        data = file.read(_MAX_TEXT_BYTES + 1)
    try:
        return 0 < len(data) <= _MAX_TEXT_BYTES and "\0" not in data.decode("utf-8")
    except UnicodeDecodeError:
        return False


def _no_adapter(folder: Path, missing: Sequence[str]) -> GraftError:
    children = _children(folder)
    checkpoints = [
        (int(match[1]), path)
        for path in children
        if (match := _CHECKPOINT.fullmatch(path.name)) and (path / CONFIG).is_file()
    ]
    pickles = [path.name for path in children if path.suffix in _PICKLES]
    why, next_step = "", "Name the folder that save_pretrained() wrote."
    if checkpoints:
        why = f", but checkpoints of a training: {_some([path.name for _, path in checkpoints])}"
        next_step = f"Name one of them, for example {max(checkpoints)[1]}."
    elif (folder / "config.json").is_file():
        why = "; it looks like a whole model"
        next_step = (
            "Record a model with `graft bases add`; push the adapter that was merged into it."
        )
    elif missing == [WEIGHTS] and pickles:
        why = f"; {_some(pickles)} may be a pickle of something else"
        next_step = f"Only {OLD_WEIGHTS} is converted. {next_step}"
    return GraftError(
        Reason.ADAPTER_UNUSABLE,
        f"{folder} is not a PEFT folder: it has no {' and no '.join(missing)}{why}",
        next_step=next_step,
        path=folder,
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def base_of(folder: Path) -> str:
    """The base that a PEFT folder says it was trained on; empty when it does not say."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise GraftError(
            Reason.ADAPTER_UNUSABLE,
            f"{folder / CONFIG} is not JSON ({error})",
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
