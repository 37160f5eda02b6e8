"""Which of a folder's files are read: no hidden ones, no descriptions of a set, and of splits the train split."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

# What the datasets library writes beside the rows.
_DESCRIPTIONS = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
)
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "held out",
    "testing": "held out",
    "valid": "held out",
    "validation": "held out",
    "val": "held out",
    "dev": "held out",
    "eval": "held out",
    "evaluation": "held out",
}
_WORD = re.compile(r"[a-z]+")


def select(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The files to read, sorted, and those of held-out splits that are left out.

    A folder with "train.jsonl" and "test.jsonl" stands for its train split: nobody wants to train on what
    is to be tested with. Without a train split, or without others, all its files are read.

    Args:
        names: paths below the folder, with "/".
    """
    kept = sorted(name for name in names if not _is_hidden(name))
    rows = [name for name in kept if PurePosixPath(name).name not in _DESCRIPTIONS] or kept
    splits = {name: _split(name) for name in rows}
    if set(splits.values()) >= {"train", "held out"}:
        left_out = [name for name in rows if splits[name] == "held out"]
        return [name for name in rows if splits[name] != "held out"], left_out
    return rows, []


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _split(name: str) -> str:
    """The split that a file's name, or else its folder's, tells of; "" for none."""
    for part in reversed(PurePosixPath(name.lower()).parts):
        for word in _WORD.findall(part):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""
