"""DeepSpeed's ZeRO: optimizer state, gradients (stage 2) and parameters (stage 3) are shared among the processes.

DeepSpeed's engine takes the backward pass, the clipping and the optimizer's step; the loop stays ours.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason

from services.trainer.run.joined_team import lost_peers
from services.trainer.run.precision import precision_of
from services.trainer.run.sharding.base import ABOUT, ZERO_PARTS, Replicas, not_of_these, parts_of
from services.trainer.run.sharding.whole import Parameter, swapped
from services.trainer.run.team import Team
from services.trainer.spec import JobSpec
from services.trainer.spec.sharding import Zero

_TAG = "parts"


class SharedByZero(Replicas):
    """Every process holds its part of what the stage shares.

    Args:
        team: the processes.
        config: what the spec says.
        spec: the job.

    Raises:
        GraftError: INVALID_SPEC, where DeepSpeed is not installed.
    """

    lockstep = True
    places_model = True
    _model: Any
    _engine: Any = None
    _boundary = True

    def __init__(self, team: Team, config: Zero, spec: JobSpec) -> None:
        super().__init__(team)
        if find_spec("deepspeed") is None:
            raise GraftError(
                Reason.INVALID_SPEC,
                "resources.sharding.zero needs the package deepspeed, which this worker does not have",
                next_step="Install graft with its deepspeed extra where workers run, or set resources.sharding.fsdp.",
                field="resources.sharding.zero",
            )
        self._config = config
        self.evaluates_together = config.stage == 3
        self._trains_all = spec.method.kind == "full"
        self._settings = settings(config, spec)
        self._parts: Path | None = None

    def share(self, model: Any) -> None:
        self._model = model

    def share_optimizer(self, optimizer: Any) -> Any:
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        # On CPUs it would compile its own way between processes of one machine, for minutes; gloo is there.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        from services.trainer.run.sharding.ddp import Around

        with _launched(self.team):
            self._engine, *_ = deepspeed.initialize(
                model=Around(self._model),
                optimizer=optimizer,
                config=self._settings,
                dist_init_required=False,
            )
        return _EngineStep(self._engine, optimizer, self.team)

    def backward(self, usual: Callable[..., None]) -> Callable[..., None]:
        # DeepSpeed takes the processes' mean; a loss is its part of the step's sum.
        return lambda loss, **_: self._engine.backward(loss * self.team.size)

    @contextmanager
    def passes(self, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        with _launched(self.team):
            yield
            if not last:
                self._engine.step()

    def call(self, work: Callable[[], Any]) -> Any:
        # An evaluation may come before the first step, when nothing is shared yet.
        if self._engine is None:
            return work()
        with _launched(self.team):
            return self._engine(work)

    def join(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """They are joined already."""

    def clip(self, usual: Callable[[], Any], parameters: list[Any], most: float) -> Any:
        return 0.0  # The engine clips in its step.

    def last_norm(self, norm: float) -> float:
        return float(self._engine.get_global_grad_norm() or 0.0)

    @contextmanager
    def gathered(self, model: Any, optimizer: Any, everything: bool) -> Iterator[None]:
        with _launched(self.team), tempfile.TemporaryDirectory(prefix="graft-zero-") as folder:
            if optimizer is not None:
                self._parts = Path(folder)
                self._engine.save_checkpoint(
                    folder, tag=_TAG, save_latest=False, exclude_frozen_parameters=True
                )
                self.team.collect_folder(self._parts)
            shares = self._config.stage == 3
            with self._whole(model, everything, self.team.first) if shares else nullcontext():
                yield

    def _whole(self, model: Any, everything: bool, keep: bool) -> Any:
        from deepspeed.runtime.zero import GatheredParameters

        def gather(shared: Parameter) -> torch.Tensor:
            with GatheredParameters([shared]):
                return shared.detach().cpu().clone()

        def wanted(parameter: Parameter) -> bool:
            return everything or parameter.requires_grad

        return swapped(model, wanted, gather, keep)

    @contextmanager
    def loading(self, model: Any) -> Iterator[None]:
        if self._engine is None or self._config.stage < 3:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters

        with _launched(self.team), self._whole(model, self._trains_all, True) as made:
            yield
            for shared, whole in made.items():
                with GatheredParameters([shared], modifier_rank=0), torch.no_grad():
                    if self.team.first:
                        shared.copy_(whole)

    def parts(self) -> Mapping[str, bytes]:
        assert self._parts is not None
        files = [path for path in self._parts.rglob("*") if path.is_file()]
        about = {"processes": self.team.size, "stage": self._config.stage}
        return {
            f"{ZERO_PARTS}/{path.relative_to(self._parts).as_posix()}": path.read_bytes()
            for path in files
        } | {f"{ZERO_PARTS}/{ABOUT}": json.dumps(about).encode()}

    def check_parts(self, folder: Path) -> None:
        about = parts_of(folder)
        if about != {"processes": self.team.size, "stage": self._config.stage}:
            raise not_of_these(about, self.team.size)

    def load_parts(self, folder: Path) -> None:
        with _launched(self.team):
            self._engine.load_checkpoint(
                str(folder / ZERO_PARTS), tag=_TAG, load_module_strict=False,
                load_lr_scheduler_states=False,
            )  # fmt: skip


def settings(config: Zero, spec: JobSpec) -> dict[str, Any]:
    """DeepSpeed's configuration. What it would do beside sharing stays with the loop."""
    hyper = spec.hyperparameters
    sharing: dict[str, Any] = {"stage": config.stage}
    if config.offload_optimizer:
        sharing["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload_parameters:
        sharing["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    bfloat16 = precision_of(hyper, torch.cuda.is_available()) == "bf16"
    return {
        "train_micro_batch_size_per_gpu": hyper.micro_batch_size,
        # The loop says which batch is a step's last.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max(hyper.max_grad_norm, 0.0),
        "zero_optimization": sharing,
        # torch's AdamW steps on the machine's memory as well, without a compiler.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": bfloat16, "dtype": "bfloat16"},
        "steps_per_print": 2**31,
    }


class _EngineStep(torch.optim.Optimizer):
    """The loop's optimizer, whose step is the engine's; its state is kept by SharedByZero."""

    def __init__(self, engine: Any, optimizer: Any, team: Team) -> None:
        # Not by torch's constructor: the groups are the other's, whose learning rates a schedule sets.
        self._engine = engine
        self._team = team
        self._optimizer = optimizer
        self.defaults = optimizer.defaults

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        """The other's, which are new ones when it has read its state."""
        return self._optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The other's."""
        return self._optimizer.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """The engine's step."""
        with _launched(self._team):
            self._engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The engine does, after its step."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see SharedByZero.add_parts()."""
        return {}

    def load_state_dict(self, state_dict: Any) -> None:
        """Nothing: see SharedByZero.load_parts()."""


@contextmanager
def _launched(team: Team) -> Iterator[None]:
    """torchrun's variables, which DeepSpeed reads, and by which others would split the work once more."""
    # Each process sees its own accelerator alone.
    own = {"RANK": str(team.rank), "WORLD_SIZE": str(team.size), "LOCAL_RANK": "0"}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        with lost_peers():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
