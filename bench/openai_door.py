"""64 concurrent streams over HTTP: our OpenAI door beside vLLM's own server, through the same client.

Both speak to the same model with the same engine settings, each server is a process of its own, and they take
turns. See streaming.py for the gRPC door, and for what the further server of a CPU is.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from pathlib import Path

from bench.clients import run_client
from bench.harness import Report, compare
from bench.processes import REPOSITORY, start_graft_service, start_vllm_server
from bench.streaming import (
    MAX_TOKENS,
    STREAMS,
    our_settings,
    peer_arguments,
    peers,
    prompts,
)


def run(*, short: bool = False, base: Path = REPOSITORY / "examples/base") -> Report:
    """Starts the servers and lets them take turns."""
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
        ours, _ = start_graft_service("inference", our_settings(base), folder / "ours")
        url = json.loads((folder / "ours/ready.json").read_bytes())["http_address"]
        servers = [ours]
        try:
            contenders = {"graft": partial(run_client, ours, client, "sse", url, load)}
            chats = {"graft, chat": partial(run_client, ours, client, "chat", url, load)}
            for who, (more, env) in peers().items():
                arguments = [*peer_arguments(base), *more]
                peer, its_url = start_vllm_server(arguments, folder / f"peer-{len(servers)}", env)
                servers.append(peer)
                contenders[who] = partial(run_client, peer, client, "sse", its_url, load)
                chats[f"{who}, chat"] = partial(run_client, peer, client, "chat", its_url, load)
                # It polls, and would take time from those that start or measure.
                peer.pause()
            report = compare(
                "openai_door",
                contenders | chats,
                rounds=3 if short else 7,
                warm_up_rounds=1,
                settings={"streams": STREAMS, "max_tokens": MAX_TOKENS, "cores": os.cpu_count()},
            )
        finally:
            for server in servers:
                server.close()
    _set_goals(report)
    return report


def _set_goals(report: Report) -> None:
    """Each of ours beside vLLM's server as it comes, completions and chats."""
    report.ratios = {who: each for who, each in report.ratios.items() if "chat" not in who}
    for kind in ("", ", chat"):
        ours, peer = f"graft{kind}", f"vllm (HTTP){kind}"
        tokens = report.ratio(ours, peer, "tokens_per_s").median
        report.ratio(ours, peer, "first_token_p50_ms")
        what = "chats" if kind else "completions"
        report.goal(f"tokens/s, {what}, ours / vLLM's", "at least 1", tokens, tokens >= 1)
