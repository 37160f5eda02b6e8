"""Mixed batches of adapters on a CPU: our grouped LoRA beside vLLM's own, and both beside the base.

64 requests at once, a 4-layer toy model, adapters of rank 8 on every linear module. The engines take turns.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.harness import Measurement, Report, compare
from bench.lora_engine import STREAMS
from bench.processes import REPOSITORY
from tests.support.models import LINEAR, make_adapter

SLOTS = 8
RANK = 8
GOAL = 0.75
MAX_TOKENS = 128


class EngineProcess:
    """An engine that runs only while it is measured.

    Args:
        arguments: of bench.lora_engine.
        env: added to this process's environment.
        log: what it says goes there.
        module: what is run, if another one.
    """

    def __init__(
        self,
        arguments: list[str],
        env: dict[str, str],
        log: Path,
        module: str = "bench.lora_engine",
    ) -> None:
        self._log = log
        path = os.pathsep.join([str(REPOSITORY / "sdk"), str(REPOSITORY)])
        quiet = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        # The core computes itself, as in our service, on the cores that vLLM would give a worker.
        threads = str(max(1, (os.cpu_count() or 1) - 1))
        same = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": threads,
            "GOMP_SPINCOUNT": "1000",
            "PYTHONPATH": path,
        }
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env={**os.environ, **quiet, **same, **env},
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._read()
        os.killpg(self._process.pid, signal.SIGSTOP)

    def measure(self, adapters: int, streams: int = STREAMS) -> Measurement:
        """Tokens per second of a batch of requests in which so many adapters and the base take turns."""
        os.killpg(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"adapters": adapters, "streams": streams}) + "\n")
        self._process.stdin.flush()
        figures: dict[str, float] = json.loads(self._read())
        os.killpg(self._process.pid, signal.SIGSTOP)
        return figures

    def close(self) -> None:
        """Kills it; nothing that it has is wanted."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the engine died:\n{self._log.read_text('utf-8', 'replace')[-3000:]}"
            )
        return line


def run(*, short: bool = False, base: Path = REPOSITORY / "examples/base") -> Report:
    """Starts an engine without LoRA, one with ours and one with vLLM's own."""
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        targets = [module.split(".")[1] for module in LINEAR]
        for number in range(SLOTS):
            make_adapter(
                folder / "adapters" / str(number),
                base,
                rank=RANK,
                seed=number,
                scale=0.02,
                targets=targets,
            )
        common = [str(base), "--rank", str(RANK), "--max-tokens", str(MAX_TOKENS)]
        lora = [*common, "--lora", str(folder / "adapters")]

        def start(name: str, arguments: list[str], setting: str) -> EngineProcess:
            env = {"GRAFT_CPU_LORA": setting}
            engine = EngineProcess(arguments, env, folder / f"{name}.log")
            stack.callback(engine.close)
            return engine

        plain = start("base", common, "grouped")
        ours, stock = start("ours", [*lora, "--compiled"], "grouped"), start("stock", lora, "stock")
        contenders = {
            "base": partial(plain.measure, 0),
            "ours, base alone": partial(ours.measure, 0),
            "ours, 2 adapters": partial(ours.measure, 2),
            f"ours, {SLOTS} adapters": partial(ours.measure, SLOTS),
            "vllm, base alone": partial(stock.measure, 0),
            "vllm, 2 adapters": partial(stock.measure, 2),
            f"vllm, {SLOTS} adapters": partial(stock.measure, SLOTS),
        }
        report = compare(
            "lora",
            contenders,
            rounds=2 if short else 9,
            warm_up_rounds=1 if short else 2,
            settings={
                "streams": STREAMS,
                "max_tokens": MAX_TOKENS,
                "rank": RANK,
                "slots": SLOTS,
                "cores": os.cpu_count(),
            },
        )
    report.ratios.clear()
    for who in list(contenders)[1:]:
        report.ratio(who, "base", "tokens_per_s")
    reached = report.ratios[f"ours, {SLOTS} adapters / base"]["tokens_per_s"].median
    report.goal(
        f"tokens/s, {SLOTS} adapters and the base / base",
        f"at least {GOAL}",
        reached,
        reached >= GOAL,
    )
    return report
