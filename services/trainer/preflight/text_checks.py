"""What can be seen in a row's text alone: broken encodings, unfilled placeholders, the same text twice."""

from __future__ import annotations

import re
from collections.abc import Iterator

from services.trainer.formats import (
    Completion,
    Content,
    Conversation,
    Labelled,
    PlainText,
    Preference,
    Prompt,
)
from services.trainer.formats.cleaning import content_key

_REPLACEMENT = "�"
# UTF-8 read as Latin-1 or Windows-1252: an accented letter, a quotation mark or an emoji become these.
_MOJIBAKE = re.compile("[ÂÃ][\u0080-¿]|â€[\u0098-™œž\u009d¢“”]|ðŸ|Ã¤|Ã¶|Ã¼|ÃŸ|Ã©")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_PLACEHOLDER = re.compile(r"\{\{\s*[A-Za-z_][\w.-]*\s*\}\}")


def texts(content: Content) -> Iterator[str]:
    """Every text of a row."""
    match content:
        case Conversation(messages=messages):
            for message in messages:
                yield str(message.get("content") or "")
        case Completion(prompt=prompt, completion=completion):
            yield from (prompt, completion)
        case PlainText(text=text):
            yield text
        case Preference(chosen=chosen, rejected=rejected):
            yield from texts(chosen)
            yield from texts(rejected)
        case Labelled(answer=answer):
            yield from texts(answer)
        case Prompt(prompt=prompt, answer=answer):
            yield from ((prompt,) if isinstance(prompt, str) else texts(prompt))
            yield answer or ""


def broken_encoding(text: str) -> str:
    """How a text is broken, in words; "" where it is not."""
    if _REPLACEMENT in text:
        return "it holds the replacement character \\ufffd: bytes that were not UTF-8"
    if not text.isascii() and (found := _MOJIBAKE.search(text)) is not None:
        return f"{found.group()!r} looks like UTF-8 that was read as another encoding"
    if (found := _CONTROL.search(text)) is not None:
        return f"it holds the control character {found.group()!r}"
    return ""


def unfilled_placeholder(text: str) -> str:
    """The first "{{name}}" in a text; "" where there is none."""
    found = _PLACEHOLDER.search(text) if "{{" in text else None
    return found.group() if found else ""


def question_key(content: Content) -> bytes | None:
    """The key of what comes before the last answer; None where there is no such thing."""
    match content:
        case Conversation(messages=messages) if messages and messages[-1]["role"] == "assistant":
            return content_key(Conversation(messages[:-1]))
        case Completion(prompt=prompt):
            return content_key(PlainText(prompt))
        case _:
            return None
