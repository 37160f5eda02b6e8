"""The README.md of a repository on the Hugging Face Hub: the author's words, kept, and what the registry knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from graft.results import Version

# PEFT does not load it.
_OURS = "BOTTLENECK"
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_BEGIN, _END = "<!-- graft: begin -->", "<!-- graft: end -->"
_SECTION = re.compile(rf"\s*{_BEGIN}.*?{_END}\s*", re.DOTALL)
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def hub_id(text: str) -> str:
    """text where it can be the id of a repository on the Hub, else nothing."""
    return text if _HUB_ID.fullmatch(text) and not text.startswith(".") else ""


def model_card(readme: str, version: Version, base_model: str) -> str:
    """The card of a version.

    Args:
        readme: the version's own README.md; empty where it has none.
        version: what it is about.
        base_model: id of the base on the Hub; empty where it is not known.
    """
    metadata, body = _split(readme)
    tags = metadata.get("tags")
    tags = [tags] if isinstance(tags, str) else tags if isinstance(tags, list) else []
    added = [tag for tag in (version.peft_type.lower(), version.kind, "graft") if tag]
    if base_model:
        metadata.setdefault("base_model", base_model)
        added.append(f"base_model:adapter:{base_model}")
    metadata["library_name"] = "graft" if version.peft_type == _OURS else "peft"
    metadata["tags"] = list(dict.fromkeys([*tags, *added]))
    metadata["graft"] = {
        "version": version.name,
        "digest": version.digest,
        "base_fingerprint": version.base_fingerprint,
    }
    front = yaml.safe_dump(metadata, sort_keys=True, allow_unicode=True)
    text = body.strip() or f"# {_title(version)}"
    return f"---\n{front}---\n\n{text}\n\n{_section(version)}\n"


def _split(readme: str) -> tuple[dict[str, Any], str]:
    body = _SECTION.sub("\n\n", readme)
    match = _FRONT.match(body)
    if match is None:
        return {}, body
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError:
        metadata = None
    rest = body[match.end() :]
    return (metadata, rest) if isinstance(metadata, dict) else ({}, rest)


def _section(version: Version) -> str:
    lines = ["## Lineage", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in _facts(version).items() if value]
    return "\n".join([_BEGIN, *lines, _END])


def _facts(version: Version) -> Mapping[str, str]:
    lineage = version.lineage
    return {
        "version": f"`{version.name}`",
        "digest": f"`{version.digest}`",
        "base": f"`{version.base}`, fingerprint `{version.base_fingerprint}`",
        "method": version.kind_in_words,
        "modules": ", ".join(version.target_modules),
        "job": f"`{lineage.job}`" if lineage.job else "",
        "data": f"{lineage.data_rows} rows, `{lineage.data_digest}`" if lineage.data_digest else "",
        "metrics": ", ".join(f"{name} {value:g}" for name, value in lineage.metrics.items()),
        "libraries": ", ".join(f"{k} {v}" for k, v in lineage.library_versions.items()),
        "signed by": ", ".join(f"`{one.key_id}`" for one in version.signatures),
    }


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


def _title(version: Version) -> str:
    adapter, _, number = version.name.partition("/versions/")
    return f"{adapter.rpartition('/')[2]}, version {number}"
