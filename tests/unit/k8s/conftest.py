"""Every installation, rendered once."""

from __future__ import annotations

import functools

import pytest

from tests.support.k8s.render import INSTALLATIONS, Installation, Object, can_render, render


@pytest.fixture(params=INSTALLATIONS, ids=lambda one: one.name)
def installation(request: pytest.FixtureRequest) -> Installation:
    """Each one in turn."""
    found: Installation = request.param
    return found


@pytest.fixture
def objects(installation: Installation) -> list[Object]:
    """What it applies."""
    return rendered(installation.name)


@functools.cache
def rendered(name: str) -> list[Object]:
    """What an installation applies, by its name."""
    if not can_render():
        pytest.skip("kubectl, which has kustomize, is not installed here")
    return render(next(one for one in INSTALLATIONS if one.name == name))


@pytest.fixture
def gpu() -> list[Object]:
    """overlays/gpu."""
    return rendered("gpu")


@pytest.fixture
def dev() -> list[Object]:
    """overlays/dev."""
    return rendered("dev")
