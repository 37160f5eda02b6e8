"""Held-out questions with the answers that a trained adapter must give, to the letter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import graft

from examples.demo.load import Piece

_MAX_TOKENS = 64
_AT_A_TIME = 16


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its only right answer."""

    text: str
    answer: str


def read_questions(path: Path) -> list[Question]:
    """Questions of a JSONL file of messages or of instruction and output."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [
        Question(row["messages"][0]["content"], row["messages"][-1]["content"])
        if "messages" in row
        else Question(row["instruction"], row["output"])
        for row in rows
    ]


async def ask_all(client: graft.Client, model: str, questions: Sequence[Question]) -> list[str]:
    """Greedy answers in the order of the questions."""
    free = asyncio.Semaphore(_AT_A_TIME)

    async def ask(question: Question) -> str:
        async with free:
            answer = await client.chat(model, question.text, temperature=0, max_tokens=_MAX_TOKENS)
            return answer.text

    return list(await asyncio.gather(*map(ask, questions)))


def exact_match(questions: Sequence[Question], answers: Sequence[str]) -> float:
    """Share of answers that are right to the letter, 0 to 1."""
    pairs = zip(questions, answers, strict=True)
    return sum(question.answer == answer for question, answer in pairs) / len(questions)


async def stream_pieces(
    client: graft.Client, model: str, question: str, max_tokens: int = _MAX_TOKENS
) -> AsyncIterator[Piece]:
    """One streamed greedy answer, for the load."""
    async for part in client.stream_chat(model, question, temperature=0, max_tokens=max_tokens):
        version = part.provenance.version if part.provenance else None
        yield Piece(part.text, len(part.token_ids), version or "")
