"""Several processes that train one job, by torch's collective calls.

Control goes over gloo, so that it can be waited for; gradients go over NCCL where they are on a GPU.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from services.trainer.run.exits import ExitCode, PeerFailedError, PeerLostError
from services.trainer.run.team import Team

# Of torchrun. What is not there any more cannot make a library split the work once more.
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")
_PATIENCE = timedelta(minutes=30)
_BUCKET_NUMBERS = 16 * 1024 * 1024
_PIECE_BYTES = 64 * 1024 * 1024
_END, _FAILED = "graft/end", "graft/failed"
_END_POLL_S = 0.1


class JoinedTeam(Team):
    """A process that has found the others.

    Args:
        rank: of this process, from 0.
        size: how many there are.
        store: what they found each other by.
    """

    def __init__(self, rank: int, size: int, store: Any) -> None:
        super().__init__(rank, size)
        self._store = store

    @classmethod
    def join(cls, rank: int, size: int) -> JoinedTeam:
        """Waits for the others, at the address that torchrun has put into the environment.

        Raises:
            PeerLostError: they did not come.
        """
        with lost_peers():
            store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=_PATIENCE)))
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE
            )
        for name in _VARIABLES:
            os.environ.pop(name, None)
        return cls(rank, size, store)

    def sum(self, numbers: Sequence[float]) -> list[float]:
        tensor = torch.tensor(numbers, dtype=torch.float64)
        with lost_peers():
            dist.all_reduce(tensor)
        return [float(number) for number in tensor]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter], factor: float) -> None:
        with lost_peers():
            for bucket in _buckets(parameters):
                flat = torch.cat([_gradient(one).reshape(-1) for one in bucket])
                dist.all_reduce(flat)
                flat *= factor
                at = 0
                for one in bucket:
                    one.grad = flat[at : at + one.numel()].view_as(one).to(one.dtype)
                    at += one.numel()

    def begin_alike(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        with lost_peers():
            for parameter in parameters:
                dist.broadcast(parameter.data, src=0)

    def tell(self, what: Any) -> Any:
        return self._hear(what, 0)

    def ask_all(self, what: Any) -> list[Any]:
        return [self._hear(what, rank) for rank in range(self.size)]

    def _hear(self, what: Any, source: int) -> Any:
        """What one process says. As JSON: torch's own call for objects would unpickle it."""
        said = json.dumps(what).encode() if self.rank == source else b""
        size = torch.tensor([len(said)])
        with lost_peers():
            dist.broadcast(size, src=source)
            text = torch.zeros(int(size), dtype=torch.uint8)
            if said:
                text = torch.frombuffer(bytearray(said), dtype=torch.uint8)
            dist.broadcast(text, src=source)
        return json.loads(text.numpy().tobytes())

    def share_folder(self, folder: Path) -> None:
        self._spread(folder, 0)

    def collect_folder(self, folder: Path) -> None:
        for source in range(1, self.size):
            self._spread(folder, source, 0)

    def _spread(self, folder: Path, source: int, taker: int | None = None) -> None:
        """Writes one process' files to another's folder, or to every other's."""
        giving = self.rank == source
        takes = not giving and taker in (None, self.rank)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()] if giving else []
        own = [(str(path.relative_to(folder)), path.stat().st_size) for path in files]
        for name, size_bytes in self._hear(own, source):
            path = folder / name
            with ExitStack() as opened:
                file = None
                if giving or takes:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    file = opened.enter_context(path.open("rb" if giving else "wb"))
                for start in range(0, size_bytes, _PIECE_BYTES):
                    self._spread_piece(file, min(_PIECE_BYTES, size_bytes - start), source)

    def _spread_piece(self, file: Any, size_bytes: int, source: int) -> None:
        piece = torch.empty(size_bytes, dtype=torch.uint8)
        giving = self.rank == source
        if giving:
            piece = torch.frombuffer(bytearray(file.read(size_bytes)), dtype=torch.uint8)
        with lost_peers():
            dist.broadcast(piece, src=source)
        if file is not None and not giving:
            file.write(piece.numpy().tobytes())

    def fail(self, code: int, message: str) -> None:
        with suppress(RuntimeError):  # A store that is gone tells by that.
            self._store.set(_FAILED, json.dumps([self.rank, code, message]))

    def cause_of(self, error: BaseException) -> BaseException:
        with suppress(RuntimeError):
            if self._store.check([_FAILED]):
                rank, code, message = json.loads(self._store.get(_FAILED))
                return PeerFailedError(
                    ExitCode(code), f"Process {rank} of {self.size} failed: {message}"
                )
        return error

    def end(self) -> None:
        self._store.set(_END, b"1")

    def wait_for_end(self) -> None:
        with lost_peers():
            # Not by a blocking call, in which no signal would be heard.
            while not self._store.check([_END]):
                time.sleep(_END_POLL_S)


def _buckets(parameters: Iterable[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    numbers = 0
    for one in parameters:
        other = bucket and (bucket[0].dtype, bucket[0].device) != (one.dtype, one.device)
        if bucket and (other or numbers + one.numel() > _BUCKET_NUMBERS):
            yield bucket
            bucket, numbers = [], 0
        bucket.append(one)
        numbers += one.numel()
    if bucket:
        yield bucket


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@contextmanager
def lost_peers() -> Iterator[None]:
    """Errors of the connections between the processes, as what they mean."""
    try:
        yield
    except (dist.DistError, RuntimeError, ConnectionError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PeerLostError(f"Another process of this job is gone ({reason[:200]})") from error
