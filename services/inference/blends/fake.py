"""A blender for engines without a model: the files are a digest of what they are made of. Failures can be scripted."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from graft.blends import Combining
from graft.digests import digest_bytes, digest_file

from services.combining.plain import TEMPLATE, Source, template_of
from services.inference.blends.base import Blender


class FakeBlender(Blender):
    """Counts what it blends; nothing is blended while the gate is closed."""

    def __init__(self) -> None:
        self.blended: list[str] = []
        self.failures: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def code(self) -> str:
        return "fake"

    async def blend(
        self, name: str, sources: Sequence[Source], how: Combining, rank: int, folder: Path
    ) -> None:
        self.blended.append(name)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        weights = [(digest_file(s.folder / "adapter_model.safetensors"), s.weight) for s in sources]
        content = digest_bytes(repr((weights, how)).encode())
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
        (folder / "adapter_model.safetensors").write_text(content)
        template = template_of(sources)
        if template is not None:
            shutil.copyfile(template, folder / TEMPLATE)
