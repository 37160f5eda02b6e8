"""Begins the record of each answer; holds the key that signs."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graft.attestation import Attestation
from graft.channel import REQUEST_ID
from graft.keys import PrivateKey, load_key

from services.inference.attestation.record import Record
from services.inference.engines.base import Sampling
from services.inference.questions import Provenance, Question


class Attestor:
    """The one of a service.

    Args:
        key: None leaves attestations without a signature.
    """

    def __init__(self, key: PrivateKey | None = None) -> None:
        self._key = key

    @classmethod
    def from_file(cls, path: Path | None) -> Attestor:
        """With the key in a PEM file, if one is named.

        Raises:
            GraftError: INVALID_REQUEST, NOT_INSTALLED; of load_key.
        """
        return cls(None if path is None else load_key(path))

    def record(
        self,
        provenance: Provenance,
        question: Question,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
    ) -> Record:
        """The record of an answer that is about to be made.

        Args:
            prompt_token_ids: what the engine is given.
            sampling: as it is used: complete.
        """
        prompt = question.prompt
        return Record(
            provenance,
            REQUEST_ID.get() or uuid.uuid4().hex,
            prompt_token_ids,
            prompt if isinstance(prompt, str) else None,
            sampling,
            question.n,
            self._key,
        )


def attestation_json(attestation: Attestation) -> dict[str, Any]:
    """An attestation as an object of JSON, for answers over HTTP: a DSSE envelope.

    `graft verify` takes it alone, or an answer whose field graft.attestation it is.
    """
    return attestation.envelope()
