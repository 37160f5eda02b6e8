"""What a method is: it adds trainable parameters to a model, saves them, and puts saved ones back.

Modules of this folder import no torch, so that the service can read them; the work they do, in the worker
alone, imports it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from services.trainer.quantization import Quantization


class Use(StrEnum):
    """What can be done with a method's result."""

    HOT_SWAP = "hot-swapped"
    MERGE = "merged"
    TO_LORA = "converted to LoRA"
    BASE = "served as a base"
    SECOND_ENGINE = "served by the second engine"


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What is known of a method before it runs.

    Args:
        kind: its field's name in MethodSpec.
        title: its name in the field.
        source: the paper.
        summary: what it does, in a sentence.
        learning_rate: its default.
        learning_rate_source: where that default comes from.
        quantizations: of a base, that it trains on.
        quantization_note: why it does not train on others.
        gradient_checkpointing: whether it can be used with it.
        checkpointing_note: why it cannot.
        packing: whether several rows may share a sequence.
        packing_note: why they may not.
        uses: what can be done with the result.
        default_quantization: of the base, where the spec says nothing.
        makes_base: whether the result is a version of a base and not of an adapter.
    """

    kind: str
    title: str
    source: str
    summary: str
    learning_rate: float
    learning_rate_source: str
    uses: frozenset[Use]
    quantizations: frozenset[Quantization] = frozenset({"nf4", "fp4", "int8"})
    quantization_note: str = ""
    gradient_checkpointing: bool = True
    checkpointing_note: str = ""
    packing: bool = True
    packing_note: str = ""
    default_quantization: Quantization = "none"
    makes_base: bool = False


@dataclass(frozen=True, slots=True)
class MethodConfig:
    """A method's settings; each method has its own with more fields."""

    kind: ClassVar[str]

    @property
    def input_tokens(self) -> int:
        """Learned tokens that stand before the input, and take from the longest that the base reads."""
        return 0


@dataclass(frozen=True, slots=True)
class Setting:
    """What a method must know of the run.

    Args:
        base_name: what the adapter's configuration calls its base; never a path.
        task_type: PEFT's: CAUSAL_LM, or SEQ_CLS for a reward model.
        total_steps: optimizer steps of the whole run.
        gradient_checkpointing: whether activations are recomputed, which a quantized base prepares for.
        tokenizer: the base's.
        seed: of the run.
        base_folder: the base's files.
    """

    base_name: str
    task_type: str
    total_steps: int
    gradient_checkpointing: bool
    tokenizer: Any
    seed: int
    base_folder: Path = Path()


C = TypeVar("C", bound=MethodConfig)


class Method(ABC, Generic[C]):
    """One way to adapt a base.

    Args:
        config: its settings.
        setting: the run that it is part of.
    """

    info: ClassVar[MethodInfo]

    def __init__(self, config: C, setting: Setting) -> None:
        self.config = config
        self.setting = setting

    @classmethod
    @abstractmethod
    def parse(cls, message: Any) -> C:
        """Its settings from the contract's message, defaults filled in.

        Raises:
            GraftError: INVALID_SPEC.
        """

    @abstractmethod
    def apply(self, model: Any) -> Any:
        """The model with trainable parameters, all others frozen.

        Raises:
            GraftError: INVALID_SPEC, when the model does not have what the method's settings name.
        """

    @abstractmethod
    def save(self, model: Any, folder: Path) -> None:
        """Writes the result to a folder: what a version consists of, without anything of this machine.

        Raises:
            GraftError: INVALID_SPEC, when a trained number is not finite.
        """

    @abstractmethod
    def checkpoint_files(self, model: Any) -> Mapping[str, Mapping[str, Any] | bytes]:
        """What load_checkpoint() needs, by file: tensors by name, or bytes. The tensors are the model's own."""

    @abstractmethod
    def load_checkpoint(self, model: Any, folder: Path) -> None:
        """Puts back what checkpoint_files() gave and was written, into a model that apply() made."""

    def optimizer(self, model: Any, optimizer_class: Any, arguments: dict[str, Any]) -> Any | None:
        """An optimizer of the method's own, of that class and with those arguments; None for the usual one."""
        return None

    def after_step(self, model: Any, step: int) -> None:
        """Called after each optimizer step, from 1, while gradients are still there."""

    def extra_loss(self, model: Any) -> Any | None:
        """What is added to the loss of each step (a scalar tensor), or None."""
        return None

    def uses_own_forward(self) -> bool:
        """Whether tokens must go through the adapted model's own forward pass, and not its layers alone."""
        return False

    def parameters(self, model: Any) -> tuple[int, int]:
        """Numbers trained, and all numbers of the adapted model."""
        trained, total = model.get_nb_trainable_parameters()
        return int(trained), int(total)

    def result_files(self, folder: Path) -> Sequence[str]:
        """The files of a saved result, relative to its folder."""
        return ("adapter_config.json", "adapter_model.safetensors")

    @classmethod
    def make(cls, config: MethodConfig, setting: Setting) -> Self:
        """The method with settings that are of its own kind."""
        return cls(config, setting)  # type: ignore[arg-type]
