"""What a method is: it adds trainable parameters to a model, saves them, and puts saved ones back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar


class Method(ABC):
    """One way to adapt a base."""

    name: ClassVar[str]

    @abstractmethod
    def apply(self, model: Any) -> Any:
        """The model with trainable parameters, all others frozen.

        Raises:
            GraftError: INVALID_SPEC, when the model does not have what the method's settings name.
        """

    @abstractmethod
    def save(self, model: Any, folder: Path) -> None:
        """Writes what was trained to a folder, in PEFT's layout, without anything of this machine.

        Raises:
            GraftError: INVALID_SPEC, when a trained number is not finite.
        """

    @abstractmethod
    def load(self, model: Any, folder: Path) -> None:
        """Puts back what save() wrote, into a model that apply() made."""
