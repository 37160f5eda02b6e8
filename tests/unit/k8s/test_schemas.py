"""Every object is what its kind's definition allows, in all versions of Kubernetes that are supported."""

from __future__ import annotations

import jsonschema
import kubernetes_validate
import pytest

from tests.support.k8s.custom import custom_schema
from tests.support.k8s.golden import RULES, golden_path, golden_text, rules_text
from tests.support.k8s.render import Installation, Object

VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_without_a_field_too_many(
    objects: list[Object], version: str
) -> None:
    for one in objects:
        schema = custom_schema(one["apiVersion"], one["kind"])
        if schema is not None:
            jsonschema.validate(one, schema)
        else:
            kubernetes_validate.validate(one, version, strict=True)


def test_a_slip_of_the_pen_would_be_found(dev: list[Object]) -> None:
    one = next(each for each in dev if each["kind"] == "Deployment")
    wrong = {**one, "spec": {**one["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, "1.36", strict=True)


def test_what_is_rendered_is_what_was_reviewed(
    installation: Installation, objects: list[Object]
) -> None:
    assert golden_text(objects) == golden_path(installation).read_text(), (
        "What deploy/k8s renders to has changed: look at the difference that `make k8s-golden` makes."
    )


def test_the_alerts_of_the_cluster_are_those_of_everywhere() -> None:
    assert RULES.read_text() == rules_text(), "Run `make k8s-golden`."
