"""Jobs, attempts and events as JSON text for a database, and back. No protobuf: that is convert.py."""

from __future__ import annotations

import json
from dataclasses import replace

from pydantic import TypeAdapter

from services.trainer.jobs import (
    Attempt,
    CheckpointSaved,
    EventBody,
    Job,
    LogLine,
    Metrics,
    StageReached,
    StateChanged,
)


class Codec:
    """Reads and writes records. A field that an older record lacks takes its default."""

    def __init__(self) -> None:
        self._job = TypeAdapter(Job)
        self._attempt = TypeAdapter(Attempt)
        self._bodies: dict[str, TypeAdapter[EventBody]] = {
            kind.__name__: TypeAdapter(kind)
            for kind in (StateChanged, Metrics, LogLine, CheckpointSaved, StageReached)
        }

    def dump_job(self, job: Job) -> str:
        """A job without its spec, which never changes and has its own column."""
        return _text(self._job.dump_python(replace(job, spec_json=""), mode="json"))

    def load_job(self, text: str, number: int, spec_json: str) -> Job:
        """A job from its record, its row number and its spec."""
        return replace(
            self._job.validate_python(json.loads(text)), number=number, spec_json=spec_json
        )

    def dump_attempt(self, attempt: Attempt) -> str:
        """An attempt."""
        return _text(self._attempt.dump_python(attempt, mode="json"))

    def load_attempt(self, text: str) -> Attempt:
        """An attempt from its record."""
        return self._attempt.validate_python(json.loads(text))

    def dump_body(self, body: EventBody) -> tuple[str, str]:
        """What happened, as the name of its kind and its record."""
        kind = type(body).__name__
        return kind, _text(self._bodies[kind].dump_python(body, mode="json"))

    def load_body(self, kind: str, text: str) -> EventBody:
        """What happened, from its kind and record."""
        return self._bodies[kind].validate_python(json.loads(text))


def _text(record: object) -> str:
    # json, not pydantic's own writer: a loss that is NaN must come back as NaN.
    return json.dumps(record, separators=(",", ":"))
