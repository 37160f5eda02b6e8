"""An object store that dies while training data is read from it, and comes back, or does not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from graft.errors import GraftError, Reason
from graft.trainer.v1 import job_spec_pb2
from obstore.store import S3Store

from services.trainer.sources.objects import ObjectSource
from services.trainer.sources.patient import PatientSource
from services.trainer.spec import DatasetSource
from services.trainer.spec.dataset import parse_dataset
from tests.support.objects import ObjectStore, object_store_server
from tests.support.s3_proxy import Fault, S3Proxy

ROWS = b"".join(b'{"text": "%d"}\n' % number for number in range(250_000))
BROKEN_AT = 1_500_000


class Store:
    """A server of objects that can be killed and started again, at one address."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running = ExitStack()
        server = self._start()
        self.bucket = server.new_bucket()
        self.proxy = S3Proxy(server.url)
        stack.callback(self.proxy.close)
        stack.callback(self.kill)
        server.put(self.bucket, "rows.jsonl", ROWS)

    def _start(self) -> ObjectStore:
        return self._running.enter_context(object_store_server())

    def kill(self) -> None:
        """Nothing answers any more."""
        self._running.close()

    def start_again(self) -> None:
        """Another process with the same object; it knows nothing of the one before."""
        server = self._start()
        self.proxy.upstream = server.url.removeprefix("http://")
        self.proxy.heal()
        server._send("PUT", self.bucket)
        server.put(self.bucket, "rows.jsonl", ROWS)

    def connect(self, bucket: str) -> S3Store:
        return S3Store(
            bucket,
            config={
                "endpoint": self.proxy.url,
                "region": "us-east-1",
                "access_key_id": "tester",
                "secret_access_key": "tester",
            },
            client_options={"allow_http": True},
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        )

    @property
    def named(self) -> DatasetSource:
        path = f"s3://{self.bucket}/rows.jsonl"
        return parse_dataset(job_spec_pb2.DatasetSpec(path=path)).sources[0]


@pytest.fixture
def store() -> Iterator[Store]:
    with ExitStack() as stack:
        made = Store(stack)
        made.proxy.faults = [
            Fault(method="GET", path="rows.jsonl", cut_after_bytes=BROKEN_AT, times=1),
        ]
        yield made


def patient(
    store: Store, patience_s: float, said: list[str], pause: Callable[[float], None]
) -> PatientSource:
    inner = ObjectSource(said.append, store.connect)
    return PatientSource(inner, patience_s, said.append, pause)


def offset(message: str) -> int:
    """Where a read broke off, as a message that names the object says."""
    match = re.search(
        rf"rows.jsonl did not arrive whole: it broke off at byte (\d+) of {len(ROWS)}", message
    )
    assert match is not None, message
    return int(match[1])


async def test_a_store_that_is_killed_in_mid_read_is_waited_for_and_the_read_goes_on(
    store: Store, tmp_path: Path
) -> None:
    said: list[str] = []
    store.proxy.faults.append(Fault(method="GET", path="rows.jsonl", lose_request=True))
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            store.kill()
            store.proxy.heal()
        elif len(pauses) == 3:
            store.start_again()

    source = patient(store, 3600.0, said, pause)
    fetched = await asyncio.to_thread(source.fetch, store.named, tmp_path / "work")
    assert fetched.path.read_bytes() == ROWS
    fetching, waiting, *_again, back = said
    assert fetching.startswith("Fetching 1 file")
    assert "rows.jsonl did not arrive whole" in waiting
    assert 0 < offset(waiting) <= BROKEN_AT
    assert back == ""
    assert pauses[0] < pauses[1] < pauses[2]


async def test_a_store_that_stays_away_ends_with_object_and_offset_and_the_next_try_goes_on(
    store: Store, tmp_path: Path
) -> None:
    said: list[str] = []
    store.proxy.faults.append(Fault(method="GET", path="rows.jsonl", lose_request=True))
    source = patient(store, 0.0, said, lambda _seconds: None)
    with pytest.raises(GraftError) as caught:
        await asyncio.to_thread(source.fetch, store.named, tmp_path / "work")
    assert caught.value.reason is Reason.UNAVAILABLE
    assert 0 < offset(caught.value.message) <= BROKEN_AT
    assert "goes on where it stopped" in caught.value.next_step
    store.proxy.heal()
    fetched = await asyncio.to_thread(source.fetch, store.named, tmp_path / "work")
    assert fetched.path.read_bytes() == ROWS


async def test_what_is_not_there_is_not_waited_for(store: Store, tmp_path: Path) -> None:
    def never(_seconds: float) -> None:
        raise AssertionError("it waits")

    source = patient(store, 3600.0, [], never)
    path = f"s3://{store.bucket}/others.jsonl"
    missing = parse_dataset(job_spec_pb2.DatasetSpec(path=path)).sources[0]
    with pytest.raises(GraftError) as caught:
        await asyncio.to_thread(source.fetch, missing, tmp_path / "work")
    assert caught.value.reason is Reason.BAD_DATA
