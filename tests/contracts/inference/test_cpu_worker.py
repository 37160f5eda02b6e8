"""Asking for AMX is harmless where there is none."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

pytestmark = pytest.mark.engine


@pytest.fixture
def allow_amx() -> Callable[[], bool]:
    with warnings.catch_warnings():
        # As of the engine's fixture.
        warnings.simplefilter("ignore")
        from services.inference.engines.vllm_cpu_worker import allow_amx
    return allow_amx


@pytest.mark.parametrize("granted", [True, False])
def test_a_cpu_with_amx_is_asked_for_once(
    monkeypatch: pytest.MonkeyPatch, allow_amx: Callable[[], bool], granted: bool
) -> None:
    asked: list[bool] = []

    def ask() -> bool:
        asked.append(True)
        return granted

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_init_amx", ask)
    assert allow_amx() is granted
    assert asked == [True]


def test_a_cpu_without_amx_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, allow_amx: Callable[[], bool]
) -> None:
    def never() -> bool:
        raise AssertionError("asked")

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_init_amx", never)
    assert allow_amx() is False


def test_a_torch_without_these_functions_is_no_error(
    monkeypatch: pytest.MonkeyPatch, allow_amx: Callable[[], bool]
) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert allow_amx() is False
