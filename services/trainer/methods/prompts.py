"""What the methods share that train inputs and not weights: prompt tuning, P-tuning and prefix tuning."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from services.trainer.methods.base import Method, MethodConfig

MAX_VIRTUAL_TOKENS = 4096
USUAL_VIRTUAL_TOKENS = 20
CANNOT_PACK = "every row needs the learned tokens before it, and a pack has one beginning for all"


@dataclass(frozen=True, slots=True)
class PromptConfig(MethodConfig):
    """What all of them have."""

    virtual_tokens: int

    @property
    def input_tokens(self) -> int:
        """All of them: positions count on from the learned tokens."""
        return self.virtual_tokens


C = TypeVar("C", bound=PromptConfig)


class PromptMethod(Method[C]):
    """A method whose result is embeddings, or keys and values, that come before the input."""

    @abstractmethod
    def peft_config(self, model: Any) -> Any:
        """PEFT's configuration."""

    def apply(self, model: Any) -> Any:
        from services.trainer.run import prompt_models

        return prompt_models.adapt_inputs(model, self.peft_config(model), self.setting)

    def save(self, model: Any, folder: Path) -> None:
        from services.trainer.run import prompt_models

        prompt_models.save(model, folder)

    def checkpoint_files(self, model: Any) -> Mapping[str, Mapping[str, Any] | bytes]:
        from services.trainer.run import peft_models

        # The network that makes the embeddings, too, which a result does not hold.
        return peft_models.trained_files(model)

    def load_checkpoint(self, model: Any, folder: Path) -> None:
        from services.trainer.run import peft_models

        peft_models.load_trained(model, folder)

    def uses_own_forward(self) -> bool:
        return True
