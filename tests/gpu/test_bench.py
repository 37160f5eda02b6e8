"""The benchmarks of `make bench-gpu`, in a tiny form: every contender trains, and says no where there is no device."""

from __future__ import annotations

import pytest
import torch

from bench.gpu.__main__ import main
from bench.gpu.architectures import QWEN25_05B, QWEN25_7B, QWEN25_15B, Architecture
from bench.gpu.training import TINY_CASES, Case, run

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
PARAMETERS = {QWEN25_05B: 494_032_768, QWEN25_15B: 1_543_714_304, QWEN25_7B: 7_615_616_512}


@pytest.mark.parametrize("case", TINY_CASES, ids=lambda case: case.method)
def test_every_contender_trains(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    report = run(case, short=True)
    assert report.settings["method"] == case.method
    assert len(report.figures) == 5
    for figures in report.figures.values():
        assert figures["real_tokens_per_second"].median > 0


@pytest.mark.parametrize("architecture", PARAMETERS, ids=lambda one: one.name)
def test_an_architecture_has_as_many_parameters_as_it_is_published_with(
    architecture: Architecture,
) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture.config())
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[architecture]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_measured_and_it_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    assert "There is no CUDA device" in capsys.readouterr().err
