"""A worker loads bitsandbytes where its job holds something in few bits, and only there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from graft.spec_file import spec_from_dict

from services.trainer.run.lean import needs_few_bits
from services.trainer.spec import parse_spec
from tests.support.processes import process_environment
from tests.unit.trainer_worker.support import merge


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, False),
        ({"base": {"quantization": "nf4"}}, True),
        ({"method": {"lora": None, "qlora": {}}}, True),
        ({"hyperparameters": {"optimizer": "paged_adamw_8bit"}}, True),
        ({"base": {"source": "owner/on-the-hub"}}, True),
    ],
)
def test_what_is_held_in_few_bits_is_known_from_the_spec(
    spec: dict[str, Any], changes: dict[str, Any], needed: bool
) -> None:
    assert needs_few_bits(parse_spec(spec_from_dict(merge(spec, changes)))) is needed


def test_a_base_that_is_stored_in_few_bits_needs_it_whatever_the_spec_says(
    spec: dict[str, Any], tmp_path: Path
) -> None:
    config = {"model_type": "llama", "quantization_config": {"load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = merge(spec, {"base": {"source": str(tmp_path)}})
    assert needs_few_bits(parse_spec(spec_from_dict(stored)))


def test_what_is_left_out_is_not_there_for_peft_either(spec: dict[str, Any]) -> None:
    code = (
        "import importlib.util, json, sys\n"
        "from graft.spec_file import spec_from_dict\n"
        "from services.trainer.run.lean import leave_out_unused\n"
        "from services.trainer.spec import parse_spec\n"
        "leave_out_unused(parse_spec(spec_from_dict(json.load(sys.stdin))))\n"
        "print(importlib.util.find_spec('bitsandbytes'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(spec),
        env=process_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "None"
