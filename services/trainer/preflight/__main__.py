"""python -m services.trainer.preflight check KIND | survey EXAMPLES REGISTRY: the spec on standard input, JSON lines out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format
from graft.trainer.v1.model_jobs_pb2 import EvaluationSpec

from services.trainer.convert import spec_from_json
from services.trainer.side_process import serve_aside

Report = Callable[[dict[str, Any]], None]


def main(arguments: list[str]) -> None:
    """Does what the first argument says."""
    if arguments[0] == "check":
        serve_aside({"train": _check, "merge": _nothing, "evaluate": _check_rows}[arguments[1]])
        return
    examples, registry = int(arguments[1]), arguments[2]
    serve_aside(lambda spec_json, progress: _survey(spec_json, examples, progress, registry))


def _check(spec_json: str, progress: Report) -> dict[str, Any]:
    from services.trainer.preflight.check import check_spec

    check_spec(spec_from_json(spec_json))
    return {}


def _check_rows(spec_json: str, progress: Report) -> dict[str, Any]:
    from services.trainer.preflight.check import check_evaluation

    check_evaluation(json_format.Parse(spec_json, EvaluationSpec()))
    return {}


def _nothing(spec_json: str, progress: Report) -> dict[str, Any]:
    """What a merge names is in the registry: its worker looks there first."""
    return {}


def _survey(spec_json: str, examples: int, progress: Report, registry: str) -> dict[str, Any]:
    from services.trainer.tokens.tokenizer import leave_torch_out

    leave_torch_out()
    from services.trainer.preflight.survey import survey

    return survey(spec_from_json(spec_json), examples, progress, registry)


if __name__ == "__main__":
    main(sys.argv[1:])
