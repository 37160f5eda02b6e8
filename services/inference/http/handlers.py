"""The routes of the HTTP door; each reads, asks the domain, and writes in OpenAI's form."""

from __future__ import annotations

import array
import asyncio
import base64
import json
import sys
import time
from collections.abc import Callable, Sequence

from aiohttp import web
from graft.errors import GraftError, Reason
from graft.names import ModelReference

from services.inference.answers import Answers
from services.inference.assembly import Assembly
from services.inference.embeddings import MAX_INPUTS, embed
from services.inference.engines.base import Pooling
from services.inference.fields import checked_priority, invalid_field
from services.inference.http.bodies import read_body
from services.inference.http.chat_form import ChatForm
from services.inference.http.completion_form import CompletionForm
from services.inference.http.conversations import conversation
from services.inference.http.convert import (
    chat_question,
    completion_questions,
    prompts,
)
from services.inference.http.forms import graft_field, usage
from services.inference.http.refused import EMBEDDING, check_refused
from services.inference.http.schemas import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from services.inference.http.streams import Streams, within_deadline
from services.inference.models import Model
from services.inference.prompts import LONG_BYTES, Prompt
from services.inference.serving import Serving

SESSION_HEADER = "x-graft-session"
_RETRY_AFTER_S = 5
_MAX_SESSION_CHARACTERS = 1024


class Handlers:
    """What is answered at each route.

    Args:
        serving: the base that is served now; None while the service starts.
        stalled_after_s: see Streams.
    """

    def __init__(self, serving: Callable[[], Serving | None], stalled_after_s: float) -> None:
        self._serving = serving
        self._streams = Streams(self._answers, stalled_after_s)
        self._began = int(time.time())

    def routes(self) -> list[web.RouteDef]:
        """For web.Application."""
        return [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.completions),
            web.post("/v1/embeddings", self.embeddings),
            web.post("/tokenize", self.tokenize),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model:.+}", self.model),
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        self._answers()
        asked, size_bytes = await read_body(request, ChatRequest)
        key = _session_key(request)
        if size_bytes <= LONG_BYTES:
            question = chat_question(asked, size_bytes, key)
        else:
            question = await asyncio.to_thread(chat_question, asked, size_bytes, key)
        form = ChatForm(asked)
        return await self._streams.reply(request, [question], form, stream=bool(asked.stream))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        self._answers()
        asked, _ = await read_body(request, CompletionRequest)
        questions = completion_questions(asked, _session_key(request))
        form = CompletionForm(asked, questions[0].n)
        return await self._streams.reply(request, questions, form, stream=bool(asked.stream))

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/embeddings."""
        answers = self._answers()
        asked, _ = await read_body(request, EmbeddingRequest)
        check_refused({"dimensions": asked.dimensions, **(asked.model_extra or {})}, EMBEDDING)
        if asked.encoding_format not in _ENCODINGS:
            raise invalid_field(
                "encoding_format", f"is {asked.encoding_format[:40]!r}", "Use float or base64."
            )
        if asked.pooling not in _POOLINGS:
            raise invalid_field("pooling", f"is {asked.pooling[:40]!r}", "Use last or mean.")
        inputs = prompts("input", asked.input, MAX_INPUTS)
        async with within_deadline(request) as remaining_s:
            found = await embed(
                answers,
                asked.model,
                inputs,
                pooling=_POOLINGS[asked.pooling],
                priority=checked_priority(asked.priority),
                session_key=_session_key(request) or asked.user or "",
                time_remaining_s=remaining_s,
            )
        rest = {
            "model": asked.model,
            "usage": usage(sum(found.prompt_tokens), 0),
            "graft": graft_field(found.provenance),
        }
        data = await _data(found.vectors, _ENCODINGS[asked.encoding_format])
        text = f'{{"object":"list","data":[{data}],{json.dumps(rest)[1:]}'
        return web.Response(text=text, content_type="application/json")

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        """POST /tokenize: how many tokens a prompt or a conversation takes."""
        answers = self._answers()
        asked, size_bytes = await read_body(request, TokenizeRequest)
        prompt: Prompt
        if asked.messages is not None:
            prompt = conversation(asked.messages, asked.tools or [], size_bytes)
        elif asked.prompt is not None:
            prompt = asked.prompt
        else:
            raise invalid_field("prompt", "is missing", "Send prompt or messages.")
        async with within_deadline(request):
            found = await answers.count_tokens(asked.model, prompt)
        return web.json_response(
            {
                "count": found.tokens,
                "max_model_len": found.max_context_tokens,
                "graft": graft_field(found.provenance),
            }
        )

    async def models(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/models."""
        ready = self._ready()
        context = ready.engine.limits.max_context_tokens
        data = [self._model(each, context) for each in ready.models.list()]
        return web.json_response({"object": "list", "data": data})

    async def model(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/models/{reference}: whatever may be asked, whether or not it is loaded."""
        ready = self._ready()
        asked = request.match_info["model"]
        context = ready.engine.limits.max_context_tokens
        wanted = str(ModelReference.parse(asked))
        for each in ready.models.list():
            if each.reference == wanted:
                return web.json_response(self._model(each, context))
        found = (await self._answers().count_tokens(asked, _ANY_TOKEN)).provenance.version
        name, digest = ("", "") if found is None else (found.name, found.digest)
        return web.json_response(self._model(Model(wanted, name, digest, False), context))

    def _model(self, model: Model, max_context_tokens: int) -> dict[str, object]:
        return {
            "id": model.reference,
            "object": "model",
            # When this service began: a name's meaning changes, and its versions say when they were made.
            "created": self._began,
            "owned_by": "graft",
            "max_model_len": max_context_tokens,
            "graft": {
                "version": model.version,
                "version_digest": model.digest,
                "resident": model.resident,
            },
        }

    def _answers(self) -> Answers:
        return self._ready().answers

    def _ready(self) -> Assembly:
        serving = self._serving()
        if serving is None or serving.assembly is None:
            raise GraftError(
                Reason.UNAVAILABLE,
                "The service is starting",
                next_step="Try again in a few seconds; /ready says when it is ready.",
                retry_after_s=_RETRY_AFTER_S,
            )
        return serving.assembly


_POOLINGS = {"last": Pooling.LAST, "mean": Pooling.MEAN}
# To ask what a reference means, one token is enough.
_ANY_TOKEN = (0,)


def _session_key(request: web.Request) -> str:
    given = request.headers.get(SESSION_HEADER, "")
    if len(given) > _MAX_SESSION_CHARACTERS:
        raise invalid_field(
            SESSION_HEADER,
            f"has {len(given)} characters",
            f"Use at most {_MAX_SESSION_CHARACTERS}: an id, or a digest of one.",
        )
    return given


async def _data(
    vectors: Sequence[Sequence[float]], encode: Callable[[Sequence[float]], object]
) -> str:
    """The items of an answer; everybody else's streams have their turn between two of them."""
    items = []
    for index, vector in enumerate(vectors):
        values = json.dumps(encode(vector))
        items.append(f'{{"object":"embedding","index":{index},"embedding":{values}}}')
        await asyncio.sleep(0)
    return ",".join(items)


def _base64(vector: Sequence[float]) -> str:
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


_ENCODINGS: dict[str, Callable[[Sequence[float]], object]] = {"float": list, "base64": _base64}
