"""Runs a rendered Job's pods as processes on this machine: its command line, environment and ConfigMap, elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.processes import ROOT

Manifest = dict[str, Any]


class PodProcess:
    """The worker's container of one pod. Its folders lie below a folder of this machine.

    Args:
        manifests: of the job, as they would be applied.
        folder: takes the place of the pod's own disk; each pod has its own.
        environment: what a cluster would set, or another test address in place of the cluster's.
        index: of an Indexed Job's pod.
        replace: parts of the command line that are otherwise here, for example host names.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        folder: Path,
        environment: Mapping[str, str],
        index: int = 0,
        replace: Mapping[str, str] | None = None,
    ) -> None:
        by_kind = {one["kind"]: one for one in manifests}
        owner = by_kind.get("Job") or by_kind["CronJob"]["spec"]["jobTemplate"]
        (container,) = owner["spec"]["template"]["spec"]["containers"]
        self._places = {
            "/opt/graft/": f"{ROOT}/",
            "/graft/": f"{folder}/graft/",
            "/home/graft": f"{folder}/home",
            "/dev/termination-log": str(folder / "end"),
            **(replace or {}),
        }
        self.end_file, self.folder = folder / "end", folder
        spec_dir = folder / "graft" / "spec"
        spec_dir.mkdir(parents=True, exist_ok=True)
        for name, text in by_kind["ConfigMap"]["data"].items():
            (spec_dir / name).write_text(self._here(text) if name == "spec.json" else text, "utf-8")
        self._out = (folder / "out").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, *self._command(container, index)],
            env=os.environ
            | {"PYTHONPATH": f"{ROOT / 'sdk'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
            | self._environment(container, index)
            | dict(environment),
            cwd=ROOT,
            stdout=self._out,
            stderr=subprocess.STDOUT,
        )

    def _command(self, container: Manifest, index: int) -> list[str]:
        python, *arguments = container["command"]
        assert python == "python"
        return [self._here(one).replace("$(GRAFT_NODE_RANK)", str(index)) for one in arguments]

    def _environment(self, container: Manifest, index: int) -> dict[str, str]:
        plain = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        return {name: self._here(text) for name, text in plain.items()}

    def _here(self, text: str) -> str:
        for there, here in self._places.items():
            text = text.replace(there, here)
        return text

    def output(self) -> str:
        """What it has written so far."""
        return (self.folder / "out").read_text("utf-8")

    def events(self) -> list[dict[str, Any]]:
        """Its reports so far; a line that is not whole yet is left out."""
        lines = self.output().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line[0] == "{" and line[-1] == "\n"]

    def step(self) -> int:
        """The last step that it has reported."""
        steps = [int(e["metrics"].get("step", 0)) for e in self.events() if "metrics" in e]
        return max(steps, default=0)

    def wait(self, timeout_s: float = 120) -> int:
        """Waits for its end; its exit code."""
        try:
            return self.process.wait(timeout_s)
        finally:
            self.close()

    def close(self) -> None:
        """Ends it and what it started, if it has not ended."""
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        self._out.close()
