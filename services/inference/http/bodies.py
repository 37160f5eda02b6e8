"""Reads a request's body and checks its types: bounded in size and time, and long ones in a thread."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from aiohttp import web
from graft.errors import GraftError, Reason
from pydantic import BaseModel, ValidationError

from services.inference.prompts import LONG_BYTES

_READ_TIMEOUT_S = 60.0
_MAX_INPUT_SHOWN = 60
Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: web.Request, model: type[Model]) -> tuple[Model, int]:
    """The body as the given model, and its length in bytes.

    Raises:
        GraftError: INVALID_REQUEST, naming the field; DEADLINE_EXCEEDED when it does not come in time.
        HTTPRequestEntityTooLarge: it is longer than the application takes.
    """
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            body = await request.read()
    except TimeoutError:
        raise GraftError(
            Reason.DEADLINE_EXCEEDED,
            f"The request's body did not come within {_READ_TIMEOUT_S:g} s",
            next_step="Send it at once.",
        ) from None
    try:
        if len(body) <= LONG_BYTES:
            return model.model_validate_json(body), len(body)
        return await asyncio.to_thread(model.model_validate_json, body), len(body)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> GraftError:
    """The first thing that is wrong."""
    problem = error.errors(include_url=False, include_context=False)[0]
    if problem["type"] == "json_invalid":
        return GraftError(
            Reason.INVALID_REQUEST,
            f"The request's body is not JSON ({problem['msg']})",
            next_step="Send one JSON object, with Content-Type: application/json.",
        )
    field = _field(problem["loc"])
    if problem["type"] == "missing":
        what, next_step = "is missing", f"Send {field}."
    else:
        what = f"is {_shown(problem['input'])}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
        next_step = "Send it as OpenAI's API has it."
    return GraftError(
        Reason.INVALID_REQUEST, f"{field or 'The body'} {what}", next_step=next_step, field=field
    )


def _field(place: tuple[int | str, ...]) -> str:
    """ "messages[0].role"; without the branches of a union, which pydantic names too."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "dict"):
            text += f".{part}" if text else part
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_INPUT_SHOWN else f"{text[:_MAX_INPUT_SHOWN]}..."
