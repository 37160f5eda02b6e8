"""Load for bench.adapters, in a process of its own: `python -m bench.zipf_client JSON`.

So many streams are open all the time; each asks for an adapter drawn by Zipf's law, or always for the first.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

import uvloop
from graft.channel import open_channel
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from bench.adapters import LEAST_TOKENS, MOST_TOKENS, PROMPT_WORDS
from bench.clients import WORDS

# Before it is counted: the queue has to be as long as it gets.
_SETTLE_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked.

    Attributes:
        address: of the service.
        names: models.
        streams: open at once.
        seconds: that are counted.
        exponent: of Zipf's law over the names; None for the first name alone.
        warm: only one short request for each name.
    """

    address: str
    names: list[str]
    streams: int
    seconds: float
    exponent: float | None = None
    warm: bool = False


@dataclass(slots=True)
class Tally:
    """What was seen since counting began."""

    tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)


def zipf(names: list[str], exponent: float | None, draw: random.Random) -> Callable[[], str]:
    """Draws the name of rank k with a probability of k ** -exponent, normalized."""
    if exponent is None:
        return lambda: names[0]
    sums = list(accumulate((rank + 1) ** -exponent for rank in range(len(names))))
    return lambda: names[min(bisect(sums, draw.random() * sums[-1]), len(names) - 1)]


async def measure(load: Load) -> dict[str, float]:
    """Tokens per second and seconds until first tokens, in a window of a load that goes on."""
    draw, tally, counting, stop = random.Random(7), Tally(), False, False
    name = zipf(load.names, load.exponent, draw)
    async with open_channel(load.address) as channel:
        stub = InferenceServiceStub(channel)

        async def ask(model: str, tokens: int) -> None:
            words = " ".join(draw.choices(WORDS, k=PROMPT_WORDS))
            sampling = pb.SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
            request = pb.GenerateRequest(model=model, prompt=words, sampling=sampling)
            began_s, first = time.perf_counter(), True
            async for message in stub.StreamGenerate(request):
                if counting:
                    tally.tokens += len(message.token_ids)
                    if first:
                        tally.first_token_s.append(time.perf_counter() - began_s)
                        tally.asked[model] += 1
                first = False

        async def stream() -> None:
            while not stop:
                await ask(name(), draw.randint(LEAST_TOKENS, MOST_TOKENS))

        if load.warm:
            for model in load.names:
                await ask(model, 1)
            return {}
        streams = [asyncio.create_task(stream()) for _ in range(load.streams)]
        await asyncio.sleep(load.seconds * _SETTLE_SHARE)
        counting, began_s = True, time.perf_counter()
        await asyncio.sleep(load.seconds)
        counting, seconds = False, time.perf_counter() - began_s
        stop = True
        # A request that failed ends the measurement.
        await asyncio.gather(*streams)
    return _figures(tally, seconds)


def _figures(tally: Tally, seconds: float) -> dict[str, float]:
    first_s = sorted(tally.first_token_s)
    return {
        "tokens_per_s": tally.tokens / seconds,
        "first_token_p50_ms": 1000 * first_s[len(first_s) // 2],
        "first_token_p99_ms": 1000 * first_s[int(0.99 * len(first_s))],
        "first_token_max_ms": 1000 * first_s[-1],
        "requests": len(first_s),
        "different_adapters": len(tally.asked),
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(measure(Load(**json.loads(sys.argv[1]))))))
