"""Whether an answer that ended by itself is whole: a grammar that failed on the way lets the end token through."""

from __future__ import annotations

import json

from services.common.logs import get_logger
from services.inference.engines.base import Delta, Finish, Sampling


class WholeJson:
    """One answer that has to be JSON."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    @classmethod
    def of(cls, sampling: Sampling) -> WholeJson | None:
        """None where the answer may be anything, or is cut off where the caller wants."""
        structure = sampling.structure
        if structure is None or not (structure.json_schema or structure.json_object):
            return None
        return None if sampling.stop or sampling.stop_token_ids else cls()

    def check(self, delta: Delta) -> None:
        """The last delta of an answer that is no JSON does not say that the answer is complete."""
        self._parts.append(delta.text)
        if delta.finish is not Finish.STOP:
            return
        try:
            json.loads("".join(self._parts))
        except ValueError:
            get_logger().warning("a structured answer broke off")
            delta.finish = Finish.ABORTED
