"""Which modules of a base a list of target modules means, whatever the kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.registry.admission.kinds.base import bad_field, names
from services.registry.admission.modules import BaseModules
from services.registry.admission.selectors import Selector
from services.registry.domain import Module


def targeted(config: Mapping[str, Any], base: BaseModules) -> dict[str, Module]:
    """The modules that target_modules names and exclude_modules does not, by path.

    Raises:
        GraftError: VERSION_REFUSED, when a target is no module of the base.
    """
    targets = names(config, "target_modules")
    excluded = names(config, "exclude_modules") if config.get("exclude_modules") else []
    if not targets:
        raise bad_field("target_modules", targets, "It names at least one module.")
    wanted, without = named(targets, base), named(excluded, base)
    found: dict[str, Module] = {}
    used: set[str] = set()
    for path, module in base.adaptable():
        fitting = wanted.fitting(path)
        used.update(fitting)
        if fitting and without.find(path) is None:
            found[path] = module
    for name in wanted.values:
        if name not in used:
            raise bad_field("target_modules", name, "The base has no such module: leave it out.")
    return found


def named(given: list[str], base: BaseModules) -> Selector[None]:
    """Names as the base has them: a whole path may have the model's prefix, and the base not."""
    return Selector({as_recorded(name, base): None for name in given})


def as_recorded(path: str, base: BaseModules) -> str:
    """A whole path as the base has it; the end of one stays as it is."""
    module = base.find(path)
    return path if module is None else module.path
