"""What computes a blend's files; which versions there are, and where files are kept, is none of its business."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from graft.blends import Combining

from services.combining.plain import Source


class Blender(ABC):
    """Makes one adapter of several. The same of the same: how it is called is in every blend's digest."""

    @property
    @abstractmethod
    def code(self) -> str:
        """What computes, with its version; blends of another are other versions."""

    @abstractmethod
    async def blend(
        self, name: str, sources: Sequence[Source], how: Combining, rank: int, folder: Path
    ) -> None:
        """Writes an adapter to a folder that is there, with the chat template of its heaviest part if that brings one.

        Args:
            name: of the blend, for errors.
            rank: that the result is to have.

        Raises:
            GraftError: ADAPTER_UNUSABLE; OVERLOADED when too many wait to be computed.
        """
