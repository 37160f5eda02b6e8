"""Takes down what an answer consists of while it comes, and says at its end what the service stands for.

Nothing is computed before the end: token ids are kept as 4 bytes each, and texts as they are.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from graft.attestation import Attestation, sign, text_digest, token_digest
from graft.keys import PrivateKey

from services.inference.attestation.software import version_of
from services.inference.domain import AdapterVersion
from services.inference.engines.base import Delta, Finish, Sampling
from services.inference.questions import Provenance

# A longer text among the sampling parameters, as a schema is, is said by its digest.
_LONG = 256


class _Choice:
    """One answer of a question, so far."""

    __slots__ = ("finish", "ids", "texts")

    def __init__(self) -> None:
        self.ids, self.texts = array("I"), list[str]()
        self.finish: Finish | None = None


class Record:
    """One question and its answers.

    Args:
        count: how many answers were asked for.
        prompt_text: as it was sent; None for a conversation, or where token ids were sent.
        key: signs, if there is one.
    """

    __slots__ = ("_choices", "_count", "_done", "_ended", "_ids", "_key", "_provenance", "_request_id", "_sampling", "_text")  # fmt: skip

    def __init__(
        self,
        provenance: Provenance,
        request_id: str,
        prompt_token_ids: Sequence[int],
        prompt_text: str | None,
        sampling: Sampling,
        count: int,
        key: PrivateKey | None,
    ) -> None:
        self._provenance, self._request_id = provenance, request_id
        self._ids, self._text = prompt_token_ids, prompt_text
        self._sampling, self._count, self._key = sampling, count, key
        self._choices: dict[int, _Choice] = {}
        self._ended = 0
        self._done: Attestation | None = None

    def add(self, delta: Delta) -> None:
        """What is new of an answer, as it is handed out."""
        choice = self._choices.get(delta.index)
        if choice is None:
            choice = self._choices[delta.index] = _Choice()
        choice.ids.extend(delta.token_ids)
        choice.texts.append(delta.text)
        if delta.finish is not None:
            choice.finish = delta.finish
            self._ended += 1

    def attest(self) -> Attestation | None:
        """The attestation, once all answers have ended; it is made once."""
        if self._done is None and self._ended >= self._count:
            text = json.dumps(
                self._statement(), sort_keys=True, separators=(",", ":"), ensure_ascii=False
            )
            self._done = sign(text, self._key)
        return self._done

    def _statement(self) -> dict[str, Any]:
        made = self._provenance
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {
            "request_id": self._request_id,
            "time": now,
            "base": {"name": made.base.name, "fingerprint": made.base.fingerprint},
            "adapter": None if made.version is None else _adapter(made.version),
            "engine": {"name": made.engine, "version": version_of(made.engine)},
            "sampling": _plain(self._sampling),
            "prompt": {
                "count": len(self._ids),
                "tokens": token_digest(self._ids),
                "text": "" if self._text is None else text_digest(self._text),
            },
            "answers": [_answer(index, choice) for index, choice in sorted(self._choices.items())],
        }


def _answer(index: int, choice: _Choice) -> dict[str, Any]:
    return {
        "index": index,
        "finish": "" if choice.finish is None else choice.finish.name.lower(),
        "count": len(choice.ids),
        "tokens": token_digest(choice.ids),
        "text": text_digest("".join(choice.texts)),
    }


def _adapter(version: AdapterVersion) -> dict[str, Any]:
    found: dict[str, Any] = {"version": version.name, "digest": version.digest}
    blend = version.blend
    if blend is not None:
        found["blend"] = blend.reference
        found["parts"] = [
            {"version": one.version.name, "digest": one.version.digest, "weight": one.weight}
            for one in blend.parts
        ]
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it; what is None, empty or long is left out or said by its digest."""
    if is_dataclass(value) and not isinstance(value, type):
        named = ((each.name, getattr(value, each.name)) for each in fields(value))
        return {name: _plain(one) for name, one in named if one not in (None, "", ())}
    if isinstance(value, str):
        return value if len(value) <= _LONG else text_digest(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
