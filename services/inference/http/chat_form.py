"""The answers of /v1/chat/completions, whole and as events.

Events are put together by hand from what never changes in a stream: at 64 streams that is the hot path.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from services.inference.answer import Answer
from services.inference.engines.base import Delta, ToolCallPart
from services.inference.http.forms import FINISH, chat_logprobs, fingerprint, graft_field, usage_of
from services.inference.http.schemas import ChatRequest
from services.inference.http.streams import Form

_text = json.encoder.encode_basestring_ascii


class ChatForm(Form):
    """Of one request."""

    def __init__(self, request: ChatRequest) -> None:
        super().__init__(request.stream_options)
        self._model, self._token_ids = request.model, bool(request.return_token_ids)
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._fixed = self._head = ""
        self._begun: set[int] = set()

    def event(self, answer: Answer, delta: Delta, place: int) -> str:
        index, finish = delta.index, delta.finish
        if index not in self._begun:
            self._begun.add(index)
            first = self._first(answer, index)
        else:
            first = ""
        more = delta.logprobs or delta.tool_calls or self._token_ids
        if finish is None and not more and not self._continuous:
            if not delta.text:
                return first
            return (
                f'{first}{self._head}{index},"delta":{{"content":{_text(delta.text)}}},'
                '"logprobs":null,"finish_reason":null}]}\n\n'
            )
        return first + self._full(answer, delta)

    def _first(self, answer: Answer, index: int) -> str:
        """Who speaks, and by which version."""
        if not self._head:
            fixed = json.dumps(
                {
                    "id": self._id,
                    "object": "chat.completion.chunk",
                    "created": self._created,
                    "model": self._model,
                    "system_fingerprint": fingerprint(answer.provenance),
                },
                separators=(",", ":"),
            )
            self._fixed = f'data: {fixed[:-1]},"choices":['
            self._head = self._fixed + '{"index":'
        graft = json.dumps(graft_field(answer.provenance))
        return (
            f'{self._head}{index},"delta":{{"role":"assistant","content":""}},'
            f'"logprobs":null,"finish_reason":null}}],"graft":{graft}}}\n\n'
        )

    def _full(self, answer: Answer, delta: Delta) -> str:
        """An event with all that an event may have."""
        said: dict[str, Any] = {}
        if delta.text:
            said["content"] = delta.text
        if delta.tool_calls:
            said["tool_calls"] = [_tool_call_part(part) for part in delta.tool_calls]
        tail: dict[str, Any] = {
            "delta": said,
            "logprobs": chat_logprobs(delta.logprobs),
            "finish_reason": None if delta.finish is None else FINISH[delta.finish],
        }
        if self._token_ids:
            tail["token_ids"] = list(delta.token_ids)
        after: dict[str, Any] = {}
        if self._continuous:
            after["usage"] = usage_of([answer])
        if delta.finish is not None:
            after["graft"] = graft_field(answer.provenance, answer)
        rest = f",{json.dumps(after)[1:]}" if after else "}"
        return f"{self._head}{delta.index},{json.dumps(tail)[1:]}]{rest}\n\n"

    def last(self, answers: Sequence[Answer]) -> str:
        if not self._include_usage:
            return ""
        return f'{self._fixed}],"usage":{json.dumps(usage_of(answers))}}}\n\n'

    def whole(self, answers: Sequence[tuple[Answer, Sequence[Delta]]]) -> dict[str, Any]:
        ((answer, deltas),) = answers
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": fingerprint(answer.provenance),
            "choices": [self._choice(delta) for delta in deltas],
            "usage": usage_of([answer]),
            "graft": graft_field(answer.provenance, answer),
        }

    def _choice(self, delta: Delta) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": delta.text, "refusal": None}
        if delta.tool_calls:
            message["content"] = delta.text or None
            message["tool_calls"] = [_tool_call(part) for part in delta.tool_calls]
        choice: dict[str, Any] = {
            "index": delta.index,
            "message": message,
            "logprobs": chat_logprobs(delta.logprobs),
            "finish_reason": None if delta.finish is None else FINISH[delta.finish],
        }
        if self._token_ids:
            choice["token_ids"] = list(delta.token_ids)
        return choice


def _tool_call(part: ToolCallPart) -> dict[str, Any]:
    return {
        "id": part.id,
        "type": "function",
        "function": {"name": part.name, "arguments": part.arguments},
    }


def _tool_call_part(part: ToolCallPart) -> dict[str, Any]:
    """The first piece of a call has its id and name, and all have an index."""
    if not part.id:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    return {"index": part.index, **_tool_call(part)}
