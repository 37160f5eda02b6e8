"""Names and references are read back as they were written, and nothing else is a name."""

from __future__ import annotations

import pytest
from graft.errors import GraftError, Reason
from graft.names import ModelReference, adapter_name, parse_name, version_name
from hypothesis import given
from hypothesis import strategies as st

IDS = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True)


@given(IDS, IDS, st.none() | IDS, st.none() | st.integers(1, 10**9))
def test_a_reference_is_read_as_it_is_written(
    namespace: str, name: str, alias: str | None, version: int | None
) -> None:
    reference = ModelReference(namespace, name, alias, None if alias else version)
    assert ModelReference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    ["", "a@", "a:0", "a:x", "a@b:3", "A", "a/b/c", "../etc", "a b", "a:7@b", "a\n", "/a", "a@b\n"],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(GraftError) as caught:
        ModelReference.parse(text)
    assert caught.value.reason is Reason.INVALID_REFERENCE


@given(IDS, IDS, st.integers(1, 10**6))
def test_a_version_name_comes_apart_into_what_it_was_made_of(ns: str, a: str, n: int) -> None:
    name = version_name(adapter_name(ns, a), n)
    pattern = "namespaces/{namespace}/adapters/{adapter}/versions/{version}"
    assert parse_name(name, pattern) == {"namespace": ns, "adapter": a, "version": str(n)}


@pytest.mark.parametrize("name", ["namespaces/a/adapters/..", "namespaces/a/jobs/x", "adapters/b"])
def test_a_name_of_another_shape_is_refused_with_the_right_one(name: str) -> None:
    with pytest.raises(GraftError, match="Write namespaces"):
        parse_name(name, "namespaces/{namespace}/adapters/{adapter}")
