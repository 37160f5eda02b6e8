"""Finds the base model of a job on this machine's disk, or on the hub, and takes its identity. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graft.bases import read_base
from graft.errors import GraftError, Reason
from graft.names import base_name
from graft.registry.v1.registry_service_pb2 import Base

from services.trainer.spec import BaseSpec, local_path

_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")


@dataclass(frozen=True, slots=True)
class BaseFolder:
    """A base on this machine's disk, and what the registry is told of it."""

    folder: Path
    record: Base


def open_base(spec: BaseSpec, namespace: str) -> BaseFolder:
    """Finds the base, fetching it where the source is a hub id, and takes its fingerprint.

    Raises:
        GraftError: NOT_A_MODEL.
    """
    folder = find_folder(spec.source)
    record = read_base(folder, base_name(namespace, spec.name))
    record.source = spec.source
    return BaseFolder(folder, record)


def find_folder(source: str) -> Path:
    """The folder of a source; a hub id is downloaded, without anything that can run code.

    Raises:
        GraftError: NOT_A_MODEL.
    """
    folder = local_path(source)
    if folder.is_dir():
        return folder.absolute()
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or folder.exists():
        raise not_a_model(source, "there is no such folder", "Check base.source.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # The hub's client raises many kinds, all of them "not there".
        reason = str(error).splitlines()[0]
        raise not_a_model(
            source,
            f"there is no such folder, and the hub did not give it ({reason})",
            "Name a folder, or a hub id that this machine can reach.",
        ) from None


def not_a_model(source: str, why: str, next_step: str) -> GraftError:
    """The error of a base that cannot be used."""
    return GraftError(
        Reason.NOT_A_MODEL,
        f"{source} is not a model that can be used: {why}",
        next_step=next_step,
        path=source,
    )
