"""A spec and what lies on this machine that it names: small files go along into the pod, others must be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from graft.errors import GraftError, Reason
from graft.kubernetes.manual_jobs import beside_spec
from graft.kubernetes.pod_template import SPEC_KEY
from graft.spec_file import SPECS, read_any_spec
from graft.specs import is_elsewhere
from graft.trainer.v1.model_jobs_pb2 import MergeSpec


def kind_of(spec: Message) -> str:
    """What a spec is of."""
    return next(kind for kind, message in SPECS.items() if isinstance(spec, message))


def read_job(path: Path, kind: str) -> tuple[Message, dict[str, str], list[str]]:
    """Reads a spec for a pod; of the kind that its fields say where none is given.

    Returns:
        The spec with paths as the pod sees them, the files that go along by their names there, and what
        must be in the pod, in words.

    Raises:
        GraftError: INVALID_SPEC; BAD_DATA, for a file that is not there or no text.
    """
    message: Message = read_any_spec(path, kind)
    files: dict[str, str] = {}
    notes: list[str] = []
    if not isinstance(message, MergeSpec):
        dataset: Any = getattr(message, "dataset")  # noqa: B009 - of two of three kinds
        held_out = [*dataset.eval_sources, *dataset.regression_sources]
        for one in [*(dataset.sources or [dataset]), *held_out]:
            if one.path and not is_elsewhere(one.path):
                one.path = _taken_along(one.path, files, notes)
    base: Any = getattr(message, "base")  # noqa: B009
    if base.source and Path(base.source).expanduser().is_dir():
        notes.append(
            f"base.source is the folder {base.source}: it must be there in the pod, too "
            "(in its image, or on a volume)."
        )
    return message, files, notes


def _taken_along(path: str, files: dict[str, str], notes: list[str]) -> str:
    here = Path(path).expanduser()
    if here.is_dir() or (here.is_absolute() and not here.exists()):
        notes.append(f"{path} is read in the pod: it must be there, in its image or on a volume.")
        return path
    try:
        text = here.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise GraftError(
            Reason.BAD_DATA,
            f"{path} cannot go along with the spec ({why})",
            next_step="Name a .json, .jsonl or .csv file that is here, an absolute path that is in the pod, "
            "hf://owner/name or s3://bucket/key.",
            path=path,
        ) from None
    name = _free_name(here.name, files)
    files[name] = text
    return beside_spec(name)


def _free_name(name: str, files: dict[str, str]) -> str:
    # A ConfigMap's keys have these letters.
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    number, free = 1, plain
    while free in files or free == SPEC_KEY:
        number += 1
        free = f"{number}-{plain}"
    return free
