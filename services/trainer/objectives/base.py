"""What an objective is: it prepares the examples that it learns from, and trains a model on them.

Modules of this folder import no torch, so that the service can read them; make_trainer() and what else
works in the worker alone imports it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from services.trainer.formats import Content, Example
from services.trainer.methods.base import MethodInfo
from services.trainer.run.team import Team

if TYPE_CHECKING:
    from services.trainer.methods.base import Method
    from services.trainer.run.checkpoint_writer import CheckpointWriter
    from services.trainer.run.checkpoints import CheckpointStore
    from services.trainer.run.progress import Progress
    from services.trainer.spec import BaseSpec, JobSpec


@dataclass(frozen=True, slots=True)
class ObjectiveInfo:
    """What is known of an objective before it runs.

    Args:
        kind: its field's name in ObjectiveSpec.
        title: its name in the field.
        source: the paper.
        summary: what it does, in a sentence.
        contents: kinds of content that it learns from.
        needs: those in words, for errors.
        adapter_learning_rate: default with an adapter; None for the method's own.
        full_learning_rate: default with all parameters; None for the method's own.
        learning_rate_source: where these come from.
        refused_methods: kinds of methods that it cannot use, each with the reason and what works.
        packing: whether rows may share a sequence.
        packs_by_default: whether they do where the spec says nothing.
        streaming: whether it can read its data while it trains.
        task_type: PEFT's.
        several_processes: whether they may train it together.
        neftune_note: why noise on the embeddings does not go with it; "" where it does.
    """

    kind: str
    title: str
    source: str
    summary: str
    contents: tuple[type[Content], ...]
    needs: str
    adapter_learning_rate: float | None = None
    full_learning_rate: float | None = None
    learning_rate_source: str = ""
    refused_methods: Mapping[str, str] = field(default_factory=dict)
    packing: bool = False
    packs_by_default: bool = False
    streaming: bool = False
    task_type: str = "CAUSAL_LM"
    several_processes: bool = True
    neftune_note: str = ""

    def learning_rate(self, method: MethodInfo) -> float:
        """The default learning rate with a method."""
        own = self.full_learning_rate if method.makes_base else self.adapter_learning_rate
        return method.learning_rate if own is None else own


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """An objective's settings; each objective has its own with more fields."""

    kind: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Reading:
    """What an objective reads its examples with.

    Args:
        spec: the job.
        tokenizer: the base's.
        end_ids: tokens that end an answer.
        max_tokens: the longest sequence that both the spec and the base allow.
        log: takes a line for people.
        stream: with dataset.streaming, begins the training rows anew: without end, read as they are asked for.
        processes: how many train together.
    """

    spec: JobSpec
    tokenizer: Any
    end_ids: frozenset[int]
    max_tokens: int
    log: Callable[[str], None]
    stream: Callable[[], Iterator[Example]] | None = None
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Prepared:
    """Examples in the form that the objective's trainer takes.

    Args:
        train: the training rows; what they are is between an objective and its trainer.
        evaluation: the held-out rows, or None.
        rows: training rows that are left, for the lineage; 0 where that is not known before.
        sequences: what an epoch has, in the unit of micro_batch_size; None while streaming.
        figures: further numbers for the lineage.
    """

    train: Any
    evaluation: Any | None
    rows: int
    sequences: int | None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """What a trainer is made of.

    Args:
        spec: the job.
        model: with the method applied.
        tokenizer: the base's.
        prepared: of the same objective.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one pass over the data.
        max_tokens: the longest sequence.
        method: saves and restores what is trained.
        store: keeps the checkpoints.
        writer: writes them beside the training.
        progress: counts and reports.
        load_base: loads another base by a spec like the job's own: a teacher, a reference.
        team: the processes that train together.
    """

    spec: JobSpec
    model: Any
    tokenizer: Any
    prepared: Prepared
    total_steps: int
    steps_per_epoch: int
    max_tokens: int
    method: Method[Any]
    store: CheckpointStore
    writer: CheckpointWriter
    progress: Progress
    load_base: Callable[[BaseSpec], Any]
    team: Team = field(default_factory=Team)


C = TypeVar("C", bound=ObjectiveConfig)


class Objective(ABC, Generic[C]):
    """One thing to optimize for.

    Args:
        config: its settings.
    """

    info: ClassVar[ObjectiveInfo]

    def __init__(self, config: C) -> None:
        self.config = config

    @classmethod
    @abstractmethod
    def parse(cls, message: Any) -> C:
        """Its settings from the contract's message, defaults filled in.

        Raises:
            GraftError: INVALID_SPEC.
        """

    @classmethod
    def check(cls, config: C, spec: JobSpec) -> None:
        """Checks what its settings need of the rest of the spec.

        Raises:
            GraftError: INVALID_SPEC, naming the field, the reason and what works.
        """

    def other_bases(self) -> Mapping[str, str]:
        """Sources of models beside the job's base, by the field that names them: a teacher."""
        return {}

    def load_model(self, folder: Path, base: BaseSpec) -> Any:
        """The base's model for this objective: a causal language model, unless it says otherwise.

        Raises:
            GraftError: NOT_A_MODEL.
        """
        from services.trainer.run.models import load_model

        return load_model(folder, base)

    @abstractmethod
    def prepare(
        self, training: list[Example], held_out: list[Example], reading: Reading
    ) -> Prepared:
        """Makes rows of examples. Their content is of info.contents.

        Raises:
            GraftError: BAD_DATA, when nothing can be learned from them; INVALID_SPEC.
        """

    @abstractmethod
    def make_trainer(self, run: Run) -> Any:
        """A trainer of the transformers library with our checkpoints and reports.

        It has train(resume_from_checkpoint), model, and state with global_step and max_steps.
        """

    @classmethod
    def make(cls, config: ObjectiveConfig) -> Self:
        """The objective with settings that are of its own kind."""
        return cls(config)  # type: ignore[arg-type]
