"""Holds an attestation against what else is known: the answer it came with, a prompt, the registry.

Nothing here looks at signatures; attestation.py does. Reads the forms in which people save answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graft.attestation import Attestation, text_digest, token_digest
from graft.errors import GraftError, Reason

MAX_FILE_BYTES = 64 * 1024 * 1024
# OpenAI's words where they are others.
_FINISHES = {"abort": "aborted"}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was compared; detail says what is wrong, or what it was compared with."""

    what: str
    holds: bool
    detail: str


@dataclass(slots=True)
class Said:
    """What an answer says of itself beside its attestation; what is None or empty was not said.

    Attributes:
        texts, token_ids, finishes: by the index of the answer.
        plain: what stands in the statement in the same words, by its path there: "base.name".
    """

    texts: dict[int, str] = field(default_factory=dict)
    token_ids: dict[int, Sequence[int]] = field(default_factory=dict)
    finishes: dict[int, str] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    completion_tokens: int | None = None
    prompt: str | None = None
    prompt_token_ids: Sequence[int] | None = None


def read_saved(text: str) -> tuple[Attestation, Said]:
    """An attestation, and what its answer says, from one of three forms of JSON.

    An answer of `graft generate --json` or `graft chat --json`, one of the OpenAI-compatible door, or the
    attestation alone, which is a DSSE envelope.

    Raises:
        GraftError: ATTESTATION_INVALID.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_one(f"it is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise _not_one("it is not a JSON object")
    ours, openai = value.get("attestation"), value.get("graft")
    if "payload" in value:
        return Attestation.of_envelope(value), Said()
    if isinstance(ours, dict):
        made = Attestation.of_fields if "statement_json" in ours else Attestation.of_envelope
        return made(ours), _of_graft(value)
    if isinstance(openai, dict) and isinstance(openai.get("attestation"), dict):
        return Attestation.of_envelope(openai["attestation"]), _of_openai(value)
    raise _not_one("it has neither attestation, nor graft.attestation, nor payload")


def compare(statement: Mapping[str, Any], said: Said) -> list[Finding]:
    """Everything that is said, held against a statement; nothing is found of what is not said.

    Args:
        statement: of Attestation.statement, so its form is right.
    """
    found = [_same(path, _at(statement, path), value) for path, value in said.plain.items()]
    prompt = statement["prompt"]
    if said.prompt is not None:
        found.append(_prompt_text(prompt["text"], said.prompt))
    if said.prompt_token_ids is not None:
        given = token_digest(said.prompt_token_ids)
        found.append(_digests("prompt.tokens", prompt["tokens"], given))
    answers = {one["index"]: one for one in statement["answers"]}
    if said.completion_tokens is not None:
        total = sum(one["count"] for one in answers.values())
        found.append(_same("usage.completion_tokens", total, said.completion_tokens))
    for index in sorted({*said.texts, *said.token_ids, *said.finishes}):
        found += _answer(answers.get(index), index, said)
    return found


def _answer(attested: Mapping[str, Any] | None, index: int, said: Said) -> list[Finding]:
    at = f"answers[{index}]"
    if attested is None:
        return [Finding(at, False, "the statement knows no such answer")]
    found = []
    if index in said.texts:
        found.append(_digests(f"{at}.text", attested["text"], text_digest(said.texts[index])))
    if index in said.token_ids:
        given = token_digest(said.token_ids[index])
        found.append(_digests(f"{at}.tokens", attested["tokens"], given))
    if said.finishes.get(index):
        found.append(_same(f"{at}.finish", attested["finish"], said.finishes[index].lower()))
    return found


def _prompt_text(attested: str, text: str) -> Finding:
    if not attested:
        detail = "the statement has no digest of a text: a conversation or token ids were sent"
        return Finding("prompt.text", False, detail)
    return _digests("prompt.text", attested, text_digest(text))


def _digests(what: str, attested: str, given: str) -> Finding:
    if attested == given:
        return Finding(what, True, "is what was attested")
    return Finding(what, False, f"is another than was attested: {given}, not {attested}")


def _same(what: str, attested: Any, given: Any) -> Finding:
    if attested == given:
        return Finding(what, True, str(given))
    return Finding(what, False, f"is {given!r}, and attested is {attested!r}")


def _at(statement: Mapping[str, Any], path: str) -> Any:
    value: Any = statement
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _of_graft(answer: Mapping[str, Any]) -> Said:
    said = Said()
    if isinstance(answer.get("text"), str):
        said.texts[0] = answer["text"]
    ids = answer.get("token_ids")
    if isinstance(ids, list) and _are_ids(ids):
        said.token_ids[0] = ids
    if isinstance(answer.get("finish_reason"), str):
        said.finishes[0] = answer["finish_reason"]
    _take_provenance(said, answer.get("provenance"))
    _take_usage(said, answer.get("usage"))
    return said


def _of_openai(answer: Mapping[str, Any]) -> Said:
    said, choices = Said(), answer.get("choices")
    for number, choice in enumerate(choices if isinstance(choices, list) else []):
        if not isinstance(choice, dict):
            continue
        given = choice.get("index")
        index = given if isinstance(given, int) else number
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        said.texts[index] = text if isinstance(text, str) else ""
        ids = choice.get("token_ids")
        if isinstance(ids, list) and _are_ids(ids):
            said.token_ids[index] = ids
        finish = choice.get("finish_reason")
        if isinstance(finish, str):
            said.finishes[index] = _FINISHES.get(finish, finish)
    if "base" in answer["graft"]:
        _take_provenance(said, answer["graft"])
    _take_usage(said, answer.get("usage"))
    return said


def _take_provenance(said: Said, made: Any) -> None:
    if not isinstance(made, dict):
        return
    said.plain["adapter.version"] = made.get("version") or None
    said.plain["adapter.digest"] = made.get("version_digest") or None
    said.plain["base.name"] = made.get("base")
    said.plain["base.fingerprint"] = made.get("base_fingerprint")
    if made.get("engine"):
        said.plain["engine.name"] = made["engine"]


def _take_usage(said: Said, usage: Any) -> None:
    if isinstance(usage, dict):
        if isinstance(usage.get("prompt_tokens"), int):
            said.plain["prompt.count"] = usage["prompt_tokens"]
        if isinstance(usage.get("completion_tokens"), int):
            said.completion_tokens = usage["completion_tokens"]


def _are_ids(values: list[Any]) -> bool:
    return all(type(one) is int and 0 <= one < 2**32 for one in values)


def _not_one(why: str) -> GraftError:
    return GraftError(
        Reason.ATTESTATION_INVALID,
        f"This is no attestation and no answer with one: {why}",
        next_step="Save what `graft generate --json` prints, a whole answer of the OpenAI door, or the "
        "attestation itself.",
    )
