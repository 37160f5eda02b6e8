"""Paths as specs give them."""

from __future__ import annotations

from pathlib import Path


def local_path(text: str) -> Path:
    """A base's or a data set's path on this machine; "~" is the home of whoever runs the service."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~nobody": then it is a name like any other.
        return Path(text)
