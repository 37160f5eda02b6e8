"""One training job, complete and within every range.

Nothing here imports torch or looks at the base or the data; a spec that passes can still name things
that do not exist.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graft.trainer.v1 import job_spec_pb2 as pb
from graft.trainer.v1.nodes_pb2 import NodesAs

from services.trainer.fields import identifier, integer, invalid_field, number
from services.trainer.methods import METHODS, MethodConfig
from services.trainer.objectives import OBJECTIVES, ObjectiveConfig
from services.trainer.spec.base import BaseSpec, parse_base
from services.trainer.spec.combinations import check_combinations
from services.trainer.spec.dataset import DatasetSpec, parse_dataset
from services.trainer.spec.evaluation import Evaluation, check_evaluation, parse_evaluation
from services.trainer.spec.hyperparameters import Hyperparameters, parse_hyperparameters
from services.trainer.spec.reporting import Reporting, parse_reporting
from services.trainer.spec.sharding import Sharding, check_sharding, parse_sharding

MAX_NODES = 1024
_EVERY_STEPS, _MOST_STEPS = 50, 1_000_000_000


@dataclass(frozen=True, slots=True)
class Resources:
    """What the job may use. cpu_threads or processes_per_node 0: whoever starts the worker decides.

    What several nodes are on a cluster (nodes_as) is the launcher's business, and not here.
    """

    slots: int
    cpu_threads: int
    max_restarts: int
    nodes: int = 1
    processes_per_node: int = 0
    sharding: Sharding = field(default_factory=Sharding)

    @property
    def processes(self) -> int:
        """How many train together, each with a micro batch of its own, as far as the spec says it."""
        return self.nodes * max(1, self.processes_per_node)


@dataclass(frozen=True, slots=True)
class Checkpointing:
    """When checkpoints are written and which are kept. every_steps or every_s 0: not by that.

    Args:
        every_steps: steps between two.
        keep: how many of the newest are kept.
        keep_best: how many of the best are kept.
        use_best: whether the result is the best one's.
        every_s: seconds between two.
        keep_every_steps: those of steps that this divides are kept; 0 for none.
    """

    every_steps: int
    keep: int
    keep_best: int = 0
    use_best: bool = False
    every_s: float = 0.0
    keep_every_steps: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """What gets the version: an adapter, or with method full a base; and the alias to move to it ("" for none)."""

    adapter: str
    alias: str
    base: str = ""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One training job. METHODS[method.kind] and OBJECTIVES[objective.kind] are what does it."""

    base: BaseSpec
    dataset: DatasetSpec
    method: MethodConfig
    objective: ObjectiveConfig
    hyperparameters: Hyperparameters
    resources: Resources
    checkpointing: Checkpointing
    output: Output
    seed: int
    evaluation: Evaluation = field(default_factory=Evaluation)
    reporting: Reporting = field(default_factory=Reporting)


def parse_spec(spec: pb.JobSpec) -> JobSpec:
    """Fills in the contract's defaults and checks every field, and that the parts go together.

    Raises:
        GraftError: INVALID_SPEC, naming the field's path, what it holds and what it may hold.
    """
    method_kind = spec.method.WhichOneof("kind") or "lora"
    method = METHODS[method_kind]
    objective_kind = spec.objective.WhichOneof("kind") or "sft"
    objective = OBJECTIVES[objective_kind]
    parsed = JobSpec(
        base=parse_base(spec.base, method.info.default_quantization),
        dataset=parse_dataset(spec.dataset),
        method=method.parse(getattr(spec.method, method_kind)),
        objective=objective.parse(getattr(spec.objective, objective_kind)),
        hyperparameters=parse_hyperparameters(
            spec.hyperparameters,
            objective.info.learning_rate(method.info),
            objective.info.packs_by_default and method.info.packing,
        ),
        resources=_resources(spec.resources),
        checkpointing=_checkpointing(spec.checkpointing),
        output=_output(spec.output, method.info.makes_base),
        seed=integer("seed", spec.seed, 0, 0, 2**32 - 1),
        evaluation=parse_evaluation(spec.evaluation, spec.HasField("evaluation")),
        reporting=parse_reporting(spec.reporting),
    )
    check_combinations(parsed)
    check_evaluation(parsed)
    check_sharding(parsed)
    return parsed


def _checkpointing(given: pb.Checkpointing) -> Checkpointing:
    path = "checkpointing"
    every_s = number(f"{path}.every_s", given.every_s, 0.0, 0.0, 31 * 86_400.0)
    by_time = every_s > 0
    return Checkpointing(
        every_steps=integer(
            f"{path}.every_steps",
            given.every_steps,
            0 if by_time else _EVERY_STEPS,
            0 if by_time else 1,
            _MOST_STEPS,
        ),
        keep=integer(f"{path}.keep", given.keep, 2, 1, 1000),
        keep_best=integer(f"{path}.keep_best", given.keep_best, int(given.use_best), 0, 1000),
        use_best=given.use_best,
        every_s=every_s,
        keep_every_steps=integer(
            f"{path}.keep_every_steps", given.keep_every_steps, 0, 0, _MOST_STEPS
        ),
    )


def _resources(given: pb.Resources) -> Resources:
    if given.nodes_as not in NodesAs.values():
        known = "NODES_AS_JOB, NODES_AS_JOBSET or NODES_AS_TRAINJOB"
        raise invalid_field("resources.nodes_as", given.nodes_as, known)
    restarts = given.max_restarts if given.HasField("max_restarts") else 3
    return Resources(
        slots=integer("resources.slots", given.slots, 1, 1, 1024),
        cpu_threads=integer("resources.cpu_threads", given.cpu_threads, 0, 0, 4096),
        max_restarts=integer("resources.max_restarts", restarts, 0, 0, 1000),
        nodes=integer("resources.nodes", given.nodes, 1, 1, MAX_NODES),
        processes_per_node=integer(
            "resources.processes_per_node", given.processes_per_node, 0, 0, 64
        ),
        sharding=parse_sharding(given.sharding),
    )


def _output(output: pb.Output, makes_base: bool) -> Output:
    wanted, other = ("base", "adapter") if makes_base else ("adapter", "base")
    name, stray = getattr(output, wanted), getattr(output, other)
    if not name:
        raise invalid_field(f"output.{wanted}", name, f"the {wanted}'s name")
    if makes_base and output.alias:
        raise invalid_field(
            "output.alias", output.alias, "left out, because a base's versions have no aliases"
        )
    if stray:
        made = "a base" if makes_base else "an adapter"
        raise invalid_field(f"output.{other}", stray, f"left out, because the method makes {made}")
    return Output(
        adapter="" if makes_base else identifier("output.adapter", name),
        alias=identifier("output.alias", output.alias) if output.alias else "",
        base=identifier("output.base", name) if makes_base else "",
    )
