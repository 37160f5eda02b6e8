"""The answers of /v1/completions, whole and as events; see chat_form.py."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from services.inference.answer import Answer
from services.inference.engines.base import Delta
from services.inference.http.forms import (
    FINISH,
    completion_logprobs,
    fingerprint,
    graft_field,
    usage_of,
)
from services.inference.http.schemas import CompletionRequest
from services.inference.http.streams import Form

_text = json.encoder.encode_basestring_ascii


class CompletionForm(Form):
    """Of one request; n choices for each of its prompts, in their order."""

    def __init__(self, request: CompletionRequest, n: int) -> None:
        super().__init__(request.stream_options)
        self._model, self._n = request.model, n
        self._token_ids = bool(request.return_token_ids)
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        # By prompt: where an alias has weights, each may have another version.
        self._fixed: dict[int, str] = {}
        self._characters: dict[int, int] = {}

    def event(self, answer: Answer, delta: Delta, place: int) -> str:
        index = place * self._n + delta.index
        known = index in self._characters
        fixed = self._fixed.get(place) or self._begin(answer, place)
        more = delta.logprobs or self._token_ids or self._continuous
        if known and delta.finish is None and not more:
            if not delta.text:
                return ""
            return (
                f'{fixed}{{"index":{index},"text":{_text(delta.text)},'
                '"logprobs":null,"finish_reason":null}]}\n\n'
            )
        tail: dict[str, Any] = self._choice(index, delta)
        after: dict[str, Any] = {}
        if self._continuous:
            after["usage"] = usage_of([answer])
        if not known or delta.finish is not None:
            after["graft"] = graft_field(answer.provenance, answer)
        rest = f",{json.dumps(after)[1:]}" if after else "}"
        return f"{fixed}{json.dumps(tail)}]{rest}\n\n"

    def _begin(self, answer: Answer, place: int) -> str:
        fixed = json.dumps(
            {
                "id": self._id,
                "object": "text_completion",
                "created": self._created,
                "model": self._model,
                "system_fingerprint": fingerprint(answer.provenance),
            },
            separators=(",", ":"),
        )
        self._fixed[place] = f'data: {fixed[:-1]},"choices":['
        return self._fixed[place]

    def _choice(self, index: int, delta: Delta) -> dict[str, Any]:
        offset = self._characters.get(index, 0)
        self._characters[index] = offset + sum(len(each.drawn.text) for each in delta.logprobs)
        choice: dict[str, Any] = {
            "index": index,
            "text": delta.text,
            "logprobs": completion_logprobs(delta.logprobs, offset),
            "finish_reason": None if delta.finish is None else FINISH[delta.finish],
        }
        if self._token_ids:
            choice["token_ids"] = list(delta.token_ids)
        return choice

    def last(self, answers: Sequence[Answer]) -> str:
        if not self._include_usage:
            return ""
        return f'{self._fixed[0]}],"usage":{json.dumps(usage_of(answers))}}}\n\n'

    def whole(self, answers: Sequence[tuple[Answer, Sequence[Delta]]]) -> dict[str, Any]:
        provenance = answers[0][0].provenance
        choices = []
        for place, (answer, deltas) in enumerate(answers):
            for delta in deltas:
                choice = self._choice(place * self._n + delta.index, delta)
                if len(answers) > 1:
                    choice["graft"] = graft_field(answer.provenance)
                choices.append(choice)
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": fingerprint(provenance),
            "choices": choices,
            "usage": usage_of([answer for answer, _ in answers]),
            "graft": graft_field(provenance, *(answer for answer, _ in answers)),
        }
