"""Names, texts and labels of requests, checked before anything else looks at them."""

from __future__ import annotations

from collections.abc import Mapping

from graft.names import parse_name

from services.registry.errors import invalid

NAMESPACE = "namespaces/{namespace}"
ADAPTER = "namespaces/{namespace}/adapters/{adapter}"
BASE = "namespaces/{namespace}/bases/{base}"
_MAX_TEXT = 10_000
_MAX_LABELS = 64
_MAX_LABEL = 256


def check_parent(name: str) -> str:
    """The name of an adapter or a base. Raises INVALID_NAME."""
    parse_name(name, BASE if "/bases/" in name else ADAPTER)
    return name


def check_alias(name: str) -> str:
    """The name of an alias. Raises INVALID_NAME."""
    parse_name(name, (BASE if "/bases/" in name else ADAPTER) + "/aliases/{alias}")
    return name


def version_number(name: str) -> tuple[str, int]:
    """The parent's name and the number in a version's name.

    Raises:
        GraftError: INVALID_NAME, INVALID_REQUEST.
    """
    pattern = (BASE if "/bases/" in name else ADAPTER) + "/versions/{version}"
    text = parse_name(name, pattern)["version"]
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise invalid(f"{name} does not end in a version's number", "Write .../versions/7.")
    return name.rsplit("/", 2)[0], int(text)


def check_text(field: str, text: str) -> str:
    """Raises INVALID_REQUEST for a text that is too long, or that no database takes."""
    if len(text) > _MAX_TEXT:
        raise invalid(f"{field} has {len(text)} characters", f"Use at most {_MAX_TEXT}.")
    if "\0" in text:
        raise invalid(f"{field} holds a NUL character", "Leave it out: it is no text.")
    return text


def check_labels(name: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Raises INVALID_REQUEST for labels that are too many, too long, or no text."""
    if len(labels) > _MAX_LABELS:
        raise invalid(f"{name} has {len(labels)} labels", f"Use at most {_MAX_LABELS}.")
    for key, value in labels.items():
        if not key or max(len(key), len(value)) >= _MAX_LABEL or "\0" in key + value:
            raise invalid(
                f"The label {key[:80]!r} of {name} is empty, too long, or no text",
                f"Use 1 to {_MAX_LABEL - 1} characters for the key and at most as many for the value.",
            )
    return dict(labels)
