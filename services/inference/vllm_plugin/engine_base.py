"""Which base the vLLM server around the plugin serves: its fingerprint, computed once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from graft.bases import read_base
from graft.errors import GraftError, Reason

from services.inference.domain import Base
from services.inference.templates import FILE as TEMPLATE


class EngineBase:
    """The model of vLLM's --model.

    Args:
        folder: of the model; where None, vLLM's --model has to be one, or lie in the Hugging Face cache.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._reading: asyncio.Task[Base] | None = None
        self.revision: str | None = None

    async def get(self, model: str) -> Base:
        """The base; hashing a large one takes as long as reading its files, once per server.

        Args:
            model: vLLM's --model, a folder or a name at Hugging Face.

        Raises:
            GraftError: NOT_A_MODEL when its files are not found or are no model.
        """
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self._read, model))
        reading = self._reading
        try:
            # One request that is given up must not stop what all others wait for.
            return await asyncio.shield(reading)
        except GraftError:
            self._reading = None
            raise

    def chat_template(self, model: str) -> str:
        """The base's own chat template; empty where it lies in no file of its own."""
        folder = self._folder or _local_folder(model, self.revision)
        file = None if folder is None else folder / TEMPLATE
        return file.read_text("utf-8") if file is not None and file.is_file() else ""

    def _read(self, model: str) -> Base:
        folder = self._folder or _local_folder(model, self.revision)
        if folder is None:
            raise GraftError(
                Reason.NOT_A_MODEL,
                f"The files of the model {model!r} are not on this machine, so nothing can be said of "
                "which adapters are made for it",
                next_step="Set GRAFT_VLLM_BASE to the folder of its files.",
            )
        return Base(model, read_base(folder, model).fingerprint.digest)


def _local_folder(model: str, revision: str | None) -> Path | None:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None
