"""Where training data comes from: each kind of place brings a set's files to this machine, whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from graft.errors import GraftError, Reason
from graft.files import write_atomic

from services.trainer.spec import DatasetSource

_RECORD = "fetched.json"
_SECRET = re.compile(r"(//)[^/@\s]+@|([?&](?:X-Amz-|Signature|sig|token)[^&\s]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A set on this machine.

    Attributes:
        path: its file, or the folder of its files.
        origin: where outside of this machine and the registry it came from, pinned where it can be:
            "hf://owner/name@{commit}"; "" for neither.
    """

    path: Path
    origin: str = ""


class Source(ABC):
    """One kind of place. Credentials come from the environment, and go into no message."""

    @abstractmethod
    def takes(self, source: DatasetSource) -> bool:
        """Whether the set is at a place of this kind."""

    @abstractmethod
    def fetch(self, source: DatasetSource, folder: Path) -> Fetched:
        """Brings the set here, unless it is here.

        What was fetched into the folder before is used as it is, also where the place holds something
        newer by now: every attempt of a job trains on the same rows.

        Args:
            folder: of this job, for this set alone.

        Raises:
            GraftError: BAD_DATA, when there is no such data or it may not be read; UNAVAILABLE, when the
                place cannot be reached: trying again goes on where it stopped.
        """


class RemoteSource(Source):
    """A place whose files are fetched into folder/files, with a record of what they are beside them."""

    def fetch(self, source: DatasetSource, folder: Path) -> Fetched:
        record = folder / _RECORD
        if record.is_file():
            found = json.loads(record.read_text("utf-8"))
            if found["asked"] == _asked(source):
                return Fetched(folder / found["path"], found["origin"])
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        fetched = self.fetch_now(source, folder)
        content = {
            "asked": _asked(source),
            "path": fetched.path.relative_to(folder).as_posix(),
            "origin": fetched.origin,
        }
        write_atomic(record, json.dumps(content).encode())
        return fetched

    @abstractmethod
    def fetch_now(self, source: DatasetSource, folder: Path) -> Fetched:
        """Brings the set into the folder, which may hold what an earlier try left.

        Raises:
            GraftError: as fetch().
        """


def _asked(source: DatasetSource) -> str:
    return sha256(f"{source.path}\0{source.blob_digest}".encode()).hexdigest()


def no_data(where: str, why: str, next_step: str) -> GraftError:
    """The error of a place that does not hold what is asked for."""
    return GraftError(
        Reason.BAD_DATA, f"{where}: {without_secrets(why)}", next_step=next_step, path=where
    )


def unreachable(where: str, why: str, next_step: str) -> GraftError:
    """The error of a place that does not answer, for now."""
    return GraftError(
        Reason.UNAVAILABLE, f"{where}: {without_secrets(why)}", next_step=next_step, path=where
    )


def without_secrets(text: str) -> str:
    """The text without user names, passwords and signatures in URLs."""
    return _SECRET.sub(lambda match: f"{match[1]}***@" if match[1] else "***", text)


Log = Callable[[str], None]
