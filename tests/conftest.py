"""Fixtures that tests of several services share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models import make_adapter, make_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of two layers and 64 features with a real tokenizer; treat it as read-only."""
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rank 8 adapter of tiny_base; treat it as read-only."""
    return make_adapter(tmp_path_factory.mktemp("adapters") / "tiny", tiny_base)
