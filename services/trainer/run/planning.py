"""python -m services.trainer.run.planning plan|recommend|probe: a request as JSON on standard input, JSON lines out."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from graft.errors import GraftError, Reason
from graft.trainer.v1 import job_spec_pb2

from services.trainer.objectives import OBJECTIVES
from services.trainer.plan.convert import as_json, plan_message
from services.trainer.plan.recommend import recommend
from services.trainer.run.data import Data, read_data
from services.trainer.run.lean import leave_out_unused, read_libraries
from services.trainer.side_process import serve_aside
from services.trainer.sources import SetOpener
from services.trainer.spec import JobSpec, parse_spec

Report = Callable[[dict[str, Any]], None]


def main(arguments: list[str]) -> None:
    """Does what the first argument says."""
    serve_aside({"plan": _plan, "recommend": _recommend, "probe": _probe}[arguments[0]])


def _plan(request_json: str, progress: Report) -> dict[str, Any]:
    request = json.loads(request_json)
    given = dict(request)
    spec = parse_spec(_message(request))
    with tempfile.TemporaryDirectory(prefix="graft-plan-") as folder:
        # What is wrong with the data is said before torch is read.
        data = _read(spec, request, Path(folder), progress)
        _hide_cards(request)
        read_libraries()
        from services.trainer.run import plan

        hardware = plan.find_hardware(request["accelerator"], request["memory_bytes"])
        made = plan.make_plan(
            spec,
            hardware,
            data,
            lambda stage: progress({"stage": stage}),
            None if request["skip_probe"] else lambda: _try_steps(given, folder),
        )
    return as_json(plan_message(made))


def _recommend(request_json: str, progress: Report) -> dict[str, Any]:
    request = json.loads(request_json)
    _hide_cards(request)
    read_libraries()
    from services.trainer.run import plan

    message = _message(request)
    hardware = plan.find_hardware(request["accelerator"], request["memory_bytes"])

    def say(stage: str) -> None:
        progress({"stage": stage})

    given = job_spec_pb2.JobSpec(
        base=job_spec_pb2.BaseSpec(source=message.base.source, name=message.base.name),
        dataset=message.dataset,
        objective=message.objective,
        output=message.output,
        seed=message.seed,
    )
    # Lengths are looked at before anything is cut.
    given.hyperparameters.max_length_tokens = 1_000_000
    given.hyperparameters.packing = False
    if given.output.base:
        given.method.full.SetInParent()
    spec = parse_spec(given)
    with tempfile.TemporaryDirectory(prefix="graft-plan-") as folder:
        data = _read(spec, request, Path(folder), progress)
        say("tokenizing")
        figures = plan.data_figures(spec, plan.prepare(spec, data, say))
        own = plan.own_bytes(hardware)

        def estimate(chosen: JobSpec, known: Any) -> Any:
            return plan.Planner(chosen, hardware, known, own).memory(chosen)

        say("choosing")
        found = recommend(given, figures, hardware, estimate)
        chosen = parse_spec(found.spec)
        made = plan.make_plan(chosen, hardware, data, say, None)
    found.plan.CopyFrom(plan_message(made))
    return as_json(found)


def _try_steps(request: dict[str, Any], folder: str) -> tuple[float, int]:
    """Probes in a process that holds nothing of the planner's.

    Raises:
        GraftError: what keeps the job from running; INTERNAL.
    """
    done = subprocess.run(
        [sys.executable, "-m", "services.trainer.run.planning", "probe"],
        input=json.dumps({**request, "folder": folder}),
        capture_output=True,
        text=True,
        check=False,
    )
    last = (done.stdout.strip().splitlines() or ["{}"])[-1]
    said = json.loads(last) if last.startswith("{") else {}
    if result := said.get("result"):
        return float(result["tokens_per_second"]), int(result["peak_bytes"])
    if error := said.get("error"):
        raise GraftError(
            Reason(error["reason"]),
            error["message"],
            next_step=error["next_step"],
            **error["metadata"],
        )
    raise GraftError(
        Reason.INTERNAL,
        f"The probe ended with code {done.returncode}: {(done.stderr.strip() or 'it wrote nothing')[-300:]}",
        next_step="Plan without a probe; if memory ran out, choose what needs less than the plan says.",
    )


def _probe(request_json: str, progress: Report) -> dict[str, Any]:
    request = json.loads(request_json)
    spec = parse_spec(_message(request))
    # Once fetched, data stays in the folder of whoever asked.
    data = _read(spec, request, Path(request["folder"]), progress)
    _hide_cards(request)
    # As the worker that it stands for.
    leave_out_unused(spec)
    read_libraries()
    from services.trainer.run import plan

    tokens_per_second, peak_bytes = plan.probe(spec, data)
    return {"tokens_per_second": tokens_per_second, "peak_bytes": peak_bytes}


def _hide_cards(request: dict[str, Any]) -> None:
    """Before torch looks for cards: a plan for "cpu", or a trainer that uses none."""
    if request["accelerator"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        request["accelerator"] = ""


def _message(request: dict[str, Any]) -> job_spec_pb2.JobSpec:
    return json_format.Parse(request["spec_json"], job_spec_pb2.JobSpec())


def _read(spec: JobSpec, request: dict[str, Any], folder: Path, progress: Report) -> Data:
    def log(line: str) -> None:
        progress({"stage": line})

    opener = SetOpener.usual(folder, log, request["registry_address"], "plan", asyncio.run)
    return read_data(spec.dataset, OBJECTIVES[spec.objective.kind].info, spec.seed, opener, log)


if __name__ == "__main__":
    main(sys.argv[1:])
