"""Resource names (AIP-122) and model references: made and taken apart here and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from graft.errors import GraftError, Reason

DEFAULT_NAMESPACE = "default"
DEFAULT_ALIAS = "production"
# A DNS label with dots and underscores, so that names can be folders, labels and metrics.
_ID = r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
_ID_RE = re.compile(_ID)
_REFERENCE = re.compile(
    rf"(?:(?P<namespace>{_ID})/)?(?P<name>{_ID})(?:@(?P<alias>{_ID})|:(?P<version>[1-9][0-9]{{0,17}}))?"
)


def check_id(kind: str, text: str) -> str:
    """Returns text when it can be the id of a resource.

    Raises:
        GraftError: INVALID_NAME.
    """
    if _ID_RE.fullmatch(text) is None:
        raise GraftError(
            Reason.INVALID_NAME,
            f"{text!r} cannot be the name of {_an(kind)}",
            next_step="Use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit.",
            resource=kind,
        )
    return text


def namespace_name(namespace: str) -> str:
    """ "namespaces/{namespace}"."""
    return f"namespaces/{check_id('namespace', namespace)}"


def adapter_name(namespace: str, adapter: str) -> str:
    """ "namespaces/{namespace}/adapters/{adapter}"."""
    return f"{namespace_name(namespace)}/adapters/{check_id('adapter', adapter)}"


def base_name(namespace: str, base: str) -> str:
    """ "namespaces/{namespace}/bases/{base}"."""
    return f"{namespace_name(namespace)}/bases/{check_id('base', base)}"


def default_base_id(source: str) -> str:
    """Id of a base that nobody named: the last part of its folder or hub id, made to fit.

    Raises:
        GraftError: INVALID_NAME, when nothing of it can be a name.
    """
    last = source.rstrip("/").rpartition("/")[2].lower()
    text = re.sub(r"[^a-z0-9._-]+", "-", last).strip("._-")[:63].rstrip("._-")
    return check_id("base", text)


def job_name(namespace: str, job: str) -> str:
    """ "namespaces/{namespace}/jobs/{job}"."""
    return f"{namespace_name(namespace)}/jobs/{check_id('job', job)}"


def version_name(adapter: str, number: int) -> str:
    """ "{adapter}/versions/{number}", where adapter is a full adapter name."""
    return f"{adapter}/versions/{number}"


def alias_name(adapter: str, alias: str) -> str:
    """ "{adapter}/aliases/{alias}", where adapter is a full adapter name."""
    return f"{adapter}/aliases/{check_id('alias', alias)}"


def namespace_of(name: str) -> str:
    """The namespace of a resource's name, which is known to be one."""
    return name.split("/", 2)[1]


def parse_name(name: str, pattern: str) -> dict[str, str]:
    """Takes a resource name apart.

    Args:
        name: for example "namespaces/default/adapters/bot/versions/7".
        pattern: for example "namespaces/{namespace}/adapters/{adapter}/versions/{version}".

    Returns:
        The variables, for example {"namespace": "default", "adapter": "bot", "version": "7"}.

    Raises:
        GraftError: INVALID_NAME.
    """
    parts, wanted = name.split("/"), pattern.split("/")
    found: dict[str, str] = {}
    fits = len(parts) == len(wanted)
    for part, want in zip(parts, wanted, strict=False):
        if not want.startswith("{"):
            fits = fits and part == want
            continue
        found[want.strip("{}")] = part
        fits = fits and _ID_RE.fullmatch(part) is not None
    if not fits:
        raise GraftError(
            Reason.INVALID_NAME, f"{name!r} is not a resource name", next_step=f"Write {pattern}."
        )
    return found


@dataclass(frozen=True, slots=True)
class ModelReference:
    """What a request may name as its model: `adapter`, `adapter@alias`, `adapter:7` or a base.

    At most one of alias and version is set; with neither it means the alias "production" and, where
    there is none, the newest version.
    """

    namespace: str
    name: str
    alias: str | None = None
    version: int | None = None

    @classmethod
    def parse(cls, text: str, namespace: str = DEFAULT_NAMESPACE) -> Self:
        """Reads a reference; "{ns}/" before it overrides the namespace.

        Raises:
            GraftError: INVALID_REFERENCE.
        """
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise GraftError(
                Reason.INVALID_REFERENCE,
                f"{text!r} is not a model reference",
                next_step="Write adapter, adapter@alias, adapter:7 or the base's name.",
            )
        version = match["version"]
        return cls(
            match["namespace"] or namespace,
            match["name"],
            match["alias"],
            int(version) if version else None,
        )

    def __str__(self) -> str:
        prefix = "" if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/"
        suffix = f"@{self.alias}" if self.alias else f":{self.version}" if self.version else ""
        return f"{prefix}{self.name}{suffix}"


def full_name(text: str, namespace: str = DEFAULT_NAMESPACE) -> str:
    """The resource name of what a person writes.

    Args:
        text: "bot", "bot:7", "bot@production", "bases/tiny", "bases/tiny:1", "jobs/j", each with
            "{ns}/" before it where it is in another namespace; or a full name, which stays as it is.
        namespace: where it is, unless text says so.

    Raises:
        GraftError: INVALID_REFERENCE.
    """
    if text.startswith("namespaces/"):
        return text
    for group, make in (("bases/", base_name), ("jobs/", job_name)):
        before, found, rest = text.rpartition(group)
        if found and (not before or before.endswith("/")):
            reference = ModelReference.parse(before + rest, namespace)
            return _of(reference, make(reference.namespace, reference.name))
    reference = ModelReference.parse(text, namespace)
    return _of(reference, adapter_name(reference.namespace, reference.name))


def _of(reference: ModelReference, parent: str) -> str:
    if reference.version:
        return version_name(parent, reference.version)
    return alias_name(parent, reference.alias) if reference.alias else parent


def _an(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
