"""torch's fully_shard (FSDP2): each process holds a part of every parameter, its gradient and its optimizer state.

Losses call the model's layers and its head, and not only the model: they run as a forward method of the whole
model, in which what belongs to no layer is whole.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from services.trainer.run.joined_team import lost_peers
from services.trainer.run.sharding.base import Replicas
from services.trainer.run.sharding.whole import Parameter, swapped, swapped_state
from services.trainer.run.team import Team
from services.trainer.spec.sharding import Fsdp

_WORK = "graft_work"


class FullyShared(Replicas):
    """Every process holds a part of everything.

    Args:
        team: the processes.
        config: what the spec says.
        trains_all: whether the base's own numbers are trained.
        bfloat16: whether the job computes in it.
    """

    lockstep = True
    places_model = True
    evaluates_together = True
    _model: Any

    def __init__(self, team: Team, config: Fsdp, trains_all: bool, bfloat16: bool) -> None:
        super().__init__(team)
        self._config = config
        self._trains_all = trains_all
        self._bfloat16 = bfloat16

    def share(self, model: Any) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        options: dict[str, Any] = {
            "mesh": init_device_mesh(device, (self.team.size,)),
            "mp_policy": self._precision(),
            "offload_policy": self._offload(device),
        }
        with lost_peers():
            for layer in decoder_layers(model):
                fully_shard(
                    layer, reshard_after_forward=self._config.reshard_after_forward, **options
                )
            fully_shard(model, **options)
        for module in _shared_modules(model):
            # A loss is its part of the step's: gradients are summed, with gloo as well, which has no mean.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        setattr(model, _WORK, types.MethodType(_do, model))
        register_fsdp_forward_method(model, _WORK)
        self._model = model

    def _precision(self) -> MixedPrecisionPolicy:
        wanted = self._config.compute_dtype
        if wanted == "auto":
            wanted = "bfloat16" if self._bfloat16 and self._trains_all else ""
        dtype = getattr(torch, wanted) if wanted else None
        return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)

    def _offload(self, device: str) -> OffloadPolicy:
        if not self._config.cpu_offload:
            return OffloadPolicy()
        return CPUOffloadPolicy(pin_memory=device == "cuda")

    def share_optimizer(self, optimizer: Any) -> Any:
        optimizer.register_load_state_dict_post_hook(_cut_state)
        return optimizer

    @contextmanager
    def passes(self, last: bool) -> Iterator[None]:
        with lost_peers():
            yield

    def call(self, work: Callable[[], Any]) -> Any:
        return getattr(self._model, _WORK)(work)

    def join(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """They are joined already."""

    def clip(self, usual: Callable[[], Any], parameters: list[Any], most: float) -> Any:
        with lost_peers():
            norm = get_total_norm([one.grad for one in parameters if one.grad is not None])
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            if most > 0:
                clip_grads_with_norm_(parameters, most, norm)
        return norm

    @contextmanager
    def gathered(self, model: Any, optimizer: Any, everything: bool) -> Iterator[None]:
        _let_go(model)
        keep = self.team.first
        with (
            lost_peers(),
            self._whole(model, everything, keep),
            swapped_state(optimizer, _whole_or_none, keep),
        ):
            yield

    @contextmanager
    def loading(self, model: Any) -> Iterator[None]:
        _let_go(model)
        with self._whole(model, self._trains_all, True) as made:
            with _unheard(model):
                yield
            with torch.no_grad():
                for shared, whole in made.items():
                    shared.to_local().copy_(_cut(whole.data, shared).to_local())

    def _whole(self, model: Any, everything: bool, keep: bool) -> Any:
        def wanted(parameter: Parameter) -> bool:
            return isinstance(parameter, DTensor) and (everything or parameter.requires_grad)

        return swapped(model, wanted, _whole, keep)


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that a model repeats: those of its longest list of modules of one class."""
    lists = [one for one in model.modules() if isinstance(one, torch.nn.ModuleList)]
    alike = [one for one in lists if len({type(each) for each in one}) == 1]
    return max(map(list, alike), key=len, default=[])


def _do(_: Any, work: Callable[[], Any]) -> Any:
    return work()


def _shared_modules(model: torch.nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _let_go(model: torch.nn.Module) -> None:
    """After a pass without a backward one some parameters are whole yet."""
    for module in _shared_modules(model):
        module.reshard()


@contextmanager
def _unheard(model: torch.nn.Module) -> Iterator[None]:
    """While inside, nobody looks at what is loaded: torch expects shared parameters in their places."""
    kept = [(module, module._load_state_dict_post_hooks) for module in model.modules()]
    for module, hooks in kept:
        module._load_state_dict_post_hooks = type(hooks)()
    try:
        yield
    finally:
        for module, hooks in kept:
            module._load_state_dict_post_hooks = hooks


@torch.no_grad()
def _whole(shared: Any) -> torch.Tensor:
    tensor: torch.Tensor = shared.detach().full_tensor().cpu()
    return tensor


def _whole_or_none(value: torch.Tensor) -> torch.Tensor | None:
    return _whole(value) if isinstance(value, DTensor) else None


@torch.no_grad()
def _cut(whole: torch.Tensor, like: Any) -> Any:
    """A whole tensor, which every process has, shared as another is."""
    device = like.device_mesh.device_type
    return distribute_tensor(
        whole.to(device, like.dtype), like.device_mesh, like.placements, src_data_rank=None
    )


def _cut_state(optimizer: Any) -> None:
    """Whole tensors that an optimizer has read are cut as its parameters are."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, torch.Tensor) or isinstance(value, DTensor):
                continue
            if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                local = _cut(value, parameter)
                own = local.to_local().to(parameter.to_local().device)
                state[name] = DTensor.from_local(
                    own, parameter.device_mesh, parameter.placements,
                    run_check=False, shape=parameter.shape, stride=parameter.stride(),
                )  # fmt: skip
