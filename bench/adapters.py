"""200 adapters of rank 8 on 8 slots of rank 64: traffic that asks for them by Zipf's law beside the same traffic to one.

Once with slots that small adapters share, in pages of rank 8, and once with a slot for each. Each service
answers both kinds of traffic, and all of it takes turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import graft

from bench.clients import run_client
from bench.harness import Measurement, Report, compare
from bench.processes import REPOSITORY, ServerProcess, start_graft_service
from tests.support.models import make_adapter

ADAPTERS = 200
STREAMS = 64
# As it is usual, and one that is steeper.
EXPONENT, STEEPER = 1.0, 1.5
RANK = 8
SLOTS, SLOT_RANK = 8, 64
PAGE_RANK = 8
LEAST_TOKENS, MOST_TOKENS = 16, 112
PROMPT_WORDS = 24
WANTED_TOKENS, WANTED_FIRST = 0.8, 3.0


def run(*, short: bool = False, base: Path = REPOSITORY / "examples/base") -> Report:
    """Publishes the adapters, starts a service for each number of slots, and lets the loads take turns."""
    seconds, rounds = (2.0, 1) if short else (6.0, 4)
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        registry, registry_address = start_graft_service("registry", {}, folder / "registry")
        stack.callback(registry.close)
        names = [f"adapter-{number:03}" for number in range(ADAPTERS)]
        asyncio.run(_publish(registry_address, base, names, folder / "adapters"))
        contenders = {}
        for page_rank in (PAGE_RANK, 0):
            settings = _settings(base, registry_address, page_rank)
            server, address = start_graft_service("inference", settings, folder / str(page_rank))
            stack.callback(server.close)
            load = {"address": address, "names": names, "seconds": seconds, "streams": STREAMS}
            # Each adapter once, so that what is measured is not how they come to this machine.
            _load(server, load | {"warm": True})
            for exponent in _exponents(page_rank):
                name = _name(exponent, page_rank)
                contenders[name] = partial(_load, server, load | {"exponent": exponent})
        report = compare(
            "adapters",
            contenders,
            rounds=rounds,
            warm_up_rounds=0 if short else 1,
            settings={
                "adapters": ADAPTERS,
                "streams": STREAMS,
                "rank": RANK,
                "slots": SLOTS,
                "slot_rank": SLOT_RANK,
                "page_rank": PAGE_RANK,
                "max_tokens": f"{LEAST_TOKENS} to {MOST_TOKENS}",
                "prompt_words": PROMPT_WORDS,
                "seconds": seconds,
                "cores": os.cpu_count(),
            },
        )
    return _judge(report)


def _settings(base: Path, registry_address: str, page_rank: int) -> dict[str, object]:
    return {
        "base": base,
        "registry_address": registry_address,
        "max_adapters": SLOTS,
        "max_cpu_adapters": ADAPTERS,
        "max_lora_rank": SLOT_RANK,
        "lora_page_rank": page_rank,
        "max_model_len": 1024,
        "max_num_seqs": STREAMS,
        "enable_prefix_caching": False,
    }


async def _publish(address: str, base: Path, names: list[str], folder: Path) -> None:
    async with graft.Client(registry=address) as client:
        for seed, name in enumerate(names):
            made = make_adapter(folder / name, base, rank=RANK, seed=seed, scale=0.02)
            await client.adapters.push(name, made, base=base)


def _load(server: ServerProcess, load: dict[str, object]) -> Measurement:
    return run_client(server, "bench.zipf_client", json.dumps(load))


def _exponents(page_rank: int) -> tuple[float | None, ...]:
    """None is the same traffic to one adapter."""
    return (EXPONENT, STEEPER, None) if page_rank else (EXPONENT, None)


def _name(exponent: float | None, page_rank: int) -> str:
    who = "one adapter" if exponent is None else f"Zipf {exponent:g}"
    return f"{who}, {'shared slots' if page_rank else 'a slot for each'}"


def _judge(report: Report) -> Report:
    """Each service's own ratios; for shared slots also those to one adapter on a slot of its own."""
    report.ratios.clear()
    for page_rank, peer in ((PAGE_RANK, PAGE_RANK), (0, 0), (PAGE_RANK, 0)):
        one = _name(None, peer)
        for exponent in _exponents(page_rank):
            ours = _name(exponent, page_rank)
            if ours == one:
                continue
            tokens = report.ratio(ours, one, "tokens_per_s").median
            first = report.ratio(ours, one, "first_token_p99_ms").median
            if page_rank == peer and exponent == EXPONENT:
                figure = f"tokens/s, {ours} / one adapter"
                wanted = f"at least {WANTED_TOKENS}"
                report.goal(figure, wanted, tokens, tokens >= WANTED_TOKENS)
                figure = f"first token p99, {ours} / one adapter"
                wanted = f"at most {WANTED_FIRST}"
                report.goal(figure, wanted, first, first <= WANTED_FIRST)
    return report
