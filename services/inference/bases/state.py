"""Which base a restart serves: the one that was switched to last, as long as the setting stays what it was then."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from graft.errors import GraftError, Reason
from graft.files import write_atomic

from services.inference.bases.domain import AS_IT_SAYS, Loading


@dataclass(frozen=True, slots=True)
class Chosen:
    """A base by its exact reference, and how it is loaded."""

    reference: str
    loading: Loading = AS_IT_SAYS


class SwitchedTo:
    """A file beside the service's data, one for each setting of the base.

    Args:
        folder: of the files.
        setting: what the operator set. Whoever changes it starts anew: what was switched to is forgotten.
    """

    def __init__(self, folder: Path, setting: Chosen) -> None:
        self._setting = setting
        key = hashlib.sha256(repr(setting).encode()).hexdigest()[:16]
        self.path = folder / f"switched-{key}.json"

    def read(self) -> Chosen:
        """What is to be served.

        Raises:
            GraftError: INTERNAL when the file is not what save() wrote.
        """
        try:
            kept = json.loads(self.path.read_bytes())
            return Chosen(str(kept["reference"]), Loading(kept["quantization"], kept["dtype"]))
        except FileNotFoundError:
            return self._setting
        except (ValueError, TypeError, KeyError) as error:
            raise GraftError(
                Reason.INTERNAL,
                f"{self.path}, which names the base to serve, cannot be read: {error!r}",
                next_step="Delete it: the base of GRAFT_INFERENCE_BASE is served then.",
            ) from None

    def save(self, chosen: Chosen) -> None:
        """A restart serves this one from now on.

        Raises:
            GraftError: STORAGE_FULL when that cannot be written.
        """
        content = {"reference": chosen.reference, **asdict(chosen.loading)}
        try:
            if chosen == self._setting:
                self.path.unlink(missing_ok=True)
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(content).encode())
        except OSError as error:
            raise GraftError(
                Reason.STORAGE_FULL,
                f"The base that a restart shall serve cannot be written to {self.path}: {error.strerror}",
                next_step="Free space there, or set GRAFT_INFERENCE_DATA_DIR.",
            ) from error
