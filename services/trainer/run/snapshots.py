"""A checkpoint's files before they are files: what goes into each, copied to host memory so that training can go on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from services.trainer.run.peft_models import check_finite


@dataclass(frozen=True, slots=True)
class State:
    """Values of Python and tensors, at any depth, for torch.load(weights_only=True)."""

    value: Any


# Tensors by name become a safetensors file, State one of torch's, bytes are bytes.
Content = Mapping[str, torch.Tensor] | State | bytes


class Snapshot:
    """Files of a checkpoint: name -> what goes into it.

    Args:
        files: tensors may be the live ones of the model; see on_host().
        further: writes what is no file of these, for example an engine's parts; with it there is no copy.
    """

    def __init__(
        self, files: Mapping[str, Content], further: Callable[[Path], None] | None = None
    ) -> None:
        self._files = dict(files)
        self._further = further

    @property
    def can_be_copied(self) -> bool:
        """Whether on_host() has everything."""
        return self._further is None

    def beside(self, files: Mapping[str, Content]) -> Snapshot:
        """These files and further ones; names may have folders."""
        return Snapshot({**self._files, **files})

    @property
    def size_bytes(self) -> int:
        """About how large its files are."""
        return sum(_size(content) for content in self._files.values())

    def on_host(self) -> Snapshot:
        """A copy in host memory, which nothing that the training does changes."""
        return Snapshot({name: _copied(content) for name, content in self._files.items()})

    def write(self, folder: Path) -> None:
        """Writes the files.

        Raises:
            GraftError: INVALID_SPEC, when a number of a safetensors file is not finite.
            OSError, RuntimeError, SafetensorError: what writing raises.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif isinstance(content, State):
                torch.save(content.value, path)
            else:
                tensors = {key: one.detach().cpu().contiguous() for key, one in content.items()}
                check_finite(tensors)
                save_file(tensors, path, metadata={"format": "pt"})
        if self._further is not None:
            self._further(folder)


def _copied(content: Content) -> Content:
    if isinstance(content, bytes):
        return content
    if isinstance(content, State):
        return State(_copy(content.value))
    return {name: _copy(tensor) for name, tensor in content.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        there = value.detach()
        return there.clone() if there.device.type == "cpu" else there.cpu()
    if isinstance(value, dict):
        return {key: _copy(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_copy(one) for one in value]
    if type(value) is tuple:
        return tuple(_copy(one) for one in value)
    return copy.deepcopy(value)


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, State):
        return _size(value.value)
    if isinstance(value, Mapping):
        return sum(_size(one) for one in value.values())
    if isinstance(value, list | tuple):
        return sum(_size(one) for one in value)
    return len(value) if isinstance(value, bytes) else 8
