"""torch's DistributedDataParallel: gradients are summed, bucket by bucket, while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from services.trainer.run.joined_team import lost_peers
from services.trainer.run.sharding.base import Replicas


class Around(torch.nn.Module):
    """A model whose forward pass is whatever it is given: losses call its layers, and not only itself."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        """Does the work."""
        return work()


class OverlappedReplicas(Replicas):
    """Every process holds everything."""

    lockstep = True
    _wrapped: Any

    def share(self, model: Any) -> None:
        self._wrapped = DistributedDataParallel(
            Around(model),
            # Numbers are alike already, and nothing trained is a buffer.
            init_sync=False,
            broadcast_buffers=False,
            # An expert that no token goes to has no gradient.
            find_unused_parameters=True,
        )
        # It refuses annotations that are not its own.
        self._wrapped.register_comm_hook(None, lambda _, bucket: _sum(bucket))

    @contextmanager
    def passes(self, last: bool) -> Iterator[None]:
        with lost_peers():
            if last:
                yield
            else:
                with self._wrapped.no_sync():
                    yield

    def call(self, work: Callable[[], Any]) -> Any:
        return self._wrapped(work)

    def join(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """They are joined already."""


def _sum(bucket: Any) -> Any:
    """The sum of the processes' gradients; DistributedDataParallel by itself takes their mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])
