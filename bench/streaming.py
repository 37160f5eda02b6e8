"""64 concurrent streams: our gRPC endpoint beside vLLM's own HTTP server, same model, same engine settings.

Each server and each client is a process of its own, and all share this machine's cores. On a CPU our engine
computes in its core's process and vLLM's server in another one, as it comes; so that one sees how much is
the engine's and how much the front end's, a second server is told by hand to do as ours does.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from importlib.metadata import distributions
from pathlib import Path

from bench.clients import WORDS, run_client
from bench.harness import Report, compare
from bench.processes import REPOSITORY, start_graft_service, start_vllm_server

STREAMS = 64
MAX_TOKENS = 128
MAX_MODEL_LEN = 1024
_CPU_WORKER = "services.inference.engines.vllm_cpu_worker.GraftCpuWorker"
PROMPT_WORDS = 24

# Further arguments and environment of a server.
_Told = tuple[tuple[str, ...], dict[str, str]]


def run(*, short: bool = False, base: Path = REPOSITORY / "examples/base") -> Report:
    """Starts both servers and lets them take turns."""
    client = "bench.stream_client"
    load = json.dumps(
        {
            "model": base.name,
            "streams": STREAMS,
            "requests_per_stream": 2 if short else 4,
            "max_tokens": MAX_TOKENS,
            "prompts": prompts(STREAMS * 4),
        }
    )
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as temporary:
        folder = Path(temporary)
        ours, address = start_graft_service("inference", our_settings(base), folder / "ours")
        servers = [ours]
        try:
            contenders = {"graft (gRPC)": partial(run_client, ours, client, "grpc", address, load)}
            for who, (more, env) in peers().items():
                arguments = [*peer_arguments(base), *more]
                peer, url = start_vllm_server(arguments, folder / f"peer-{len(servers)}", env)
                servers.append(peer)
                contenders[who] = partial(run_client, peer, client, "sse", url, load)
                # It polls, and would take time from those that start or measure.
                peer.pause()
            report = compare(
                "streaming",
                contenders,
                rounds=3 if short else 7,
                warm_up_rounds=1,
                settings={"streams": STREAMS, "max_tokens": MAX_TOKENS, "cores": os.cpu_count()},
            )
        finally:
            for server in servers:
                server.close()
    ratios = next(iter(report.ratios.values()))
    tokens, first = ratios["tokens_per_s"].median, ratios["first_token_p50_ms"].median
    report.goal("tokens/s, ours / vLLM's server", "at least 1.2", tokens, tokens >= 1.2)
    report.goal("time to first token, ours / theirs", "at most 1", first, first <= 1)
    return report


def peers() -> dict[str, _Told]:
    """vLLM's own server as it comes and, on a CPU, told by hand to do as ours does."""
    return {"vllm (HTTP)": ((), {})} | (_told_by_hand() if on_cpu() else {})


def our_settings(base: Path) -> dict[str, object]:
    """Of our service."""
    return {
        "base": base,
        "max_adapters": 0,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": STREAMS,
        "enable_prefix_caching": False,
        "cpu_kv_cache_gib": 1,
    }


def peer_arguments(base: Path) -> list[str]:
    """The same for vLLM's server."""
    return [
        *("--model", str(base), "--served-model-name", base.name),
        *("--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(STREAMS)),
        # The fix that our engine has.
        *on_cpu(),
        *("--generation-config", "vllm", "--no-enable-prefix-caching", "--disable-log-stats"),
    ]


def _told_by_hand() -> dict[str, _Told]:
    executor = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    threads = str(max(1, (os.cpu_count() or 1) - 1))
    return {
        "vllm (HTTP), engine in one process": (
            ("--distributed-executor-backend", executor),
            {"OMP_NUM_THREADS": threads},
        )
    }


def on_cpu() -> tuple[str, ...]:
    """What vLLM's own server needs on a CPU: without it its worker may die of SIGILL where there is AMX."""
    cpu = any(each.name == "vllm-cpu" for each in distributions())
    return ("--worker-cls", _CPU_WORKER) if cpu else ()


def prompts(count: int) -> list[str]:
    """So many texts that share no long prefix."""
    return [
        " ".join(
            WORDS[(number * 7 + place * (1 + number % 5)) % len(WORDS)]
            for place in range(PROMPT_WORDS)
        )
        for number in range(count)
    ]
