"""Rewards an answer that is JSON of a given shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from services.trainer.rewards.base import Completion, Reward
from services.trainer.rewards.schemas import Schema, strict_json

# Longer answers get nothing: reading one would take longer than writing it did.
_MOST_CHARACTERS = 256 * 1024


class JsonSchema(Reward):
    """1 when the whole answer is JSON that a schema allows.

    Args:
        schema_json: the schema (draft 2020-12) as JSON.

    Raises:
        ValueError: saying what is wrong with the schema.
    """

    name: ClassVar[str] = "json_schema"

    def __init__(self, schema_json: str) -> None:
        self._schema = Schema(schema_json)

    def score(
        self, completions: Sequence[Completion], answers: Sequence[str | None]
    ) -> list[float]:
        return [float(self._allows(one.text)) for one in completions]

    def _allows(self, text: str) -> bool:
        if len(text) > _MOST_CHARACTERS:
            return False
        try:
            value = strict_json(text)
        except (ValueError, RecursionError):
            return False
        return self._schema.allows(value)
