"""What a tracker is. It may be slow, and it may be away: who feeds it (reporter.py) never waits for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class About:
    """What a tracker's run is of: the job's short name, the attempt from 1, and the spec as text."""

    job: str
    attempt: int
    spec_json: str


class Tracker(ABC):
    """Takes a job's figures. Every call is made on one thread of its own; each may raise anything."""

    name: str

    @abstractmethod
    def start(self, about: About, first_step: int) -> None:
        """Opens the job's run, or goes on with it: figures from first_step on come (again)."""

    @abstractmethod
    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Takes figures of a step."""

    @abstractmethod
    def close(self, succeeded: bool) -> None:
        """Writes what is left."""
