"""Data sets in a bucket of an S3-compatible object store, through obstore.

Where the store is and who asks is in the environment, as for any S3 client: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL (another server than Amazon's),
AWS_ALLOW_HTTP (one without TLS), AWS_SKIP_SIGNATURE (a public bucket).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from graft.errors import GraftError

from services.trainer.sources.base import Fetched, Log, RemoteSource, no_data, unreachable
from services.trainer.sources.listing import Listed, choose, literal_folder
from services.trainer.spec import DatasetSource

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import S3Store

SCHEME = "s3://"
_URI = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,62})(?:/(?P<key>.*))?")
_CHUNK_BYTES = 1024 * 1024
# So many failures in a row without a byte more; obstore itself tries each request again before that.
_ATTEMPTS = 3
_METADATA_SERVER = "169.254."
_S3_ERROR = re.compile(
    "<Code>(?P<code>.*?)</Code>.*?<Message>(?P<message>.*?)</Message>", re.DOTALL
)
_SETTINGS_STEP = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_SKIP_SIGNATURE=true for a public bucket), "
    "AWS_REGION, and for another server than Amazon's AWS_ENDPOINT_URL, in the trainer's environment."
)
_AGAIN_STEP = "Try again: it goes on where it stopped. If it stays so, check the network and AWS_ENDPOINT_URL."
Connect = Callable[[str], "S3Store"]


class ObjectSource(RemoteSource):
    """Objects by their URI, all below a prefix, or those that a pattern fits.

    Args:
        log: takes a line for people.
        connect: makes a client of a bucket.
    """

    def __init__(self, log: Log, connect: Connect | None = None) -> None:
        self._log, self._connect = log, connect or connect_bucket

    def takes(self, source: DatasetSource) -> bool:
        return source.path.startswith(SCHEME)

    def fetch_now(self, source: DatasetSource, folder: Path) -> Fetched:
        where = source.path
        match = _URI.fullmatch(where)
        if match is None:
            raise no_data(where, "it names no bucket", 'Write "s3://bucket/key".')
        path = (match["key"] or "").strip("/")
        with _store_errors(where):
            store = self._connect(match["bucket"])
            choice = choose(where, _listing(store, path), path)
            self._log(f"Fetching {choice.words()} from {where}.")
            kept = [
                (file, _fetch_object(store, where, file, folder / "objects"))
                for file in choice.files
            ]
        # Only now, when every byte is here, do the files get their names.
        target = folder / "files"
        shutil.rmtree(target, ignore_errors=True)
        for file, part in kept:
            named = target / file.name
            named.parent.mkdir(parents=True, exist_ok=True)
            part.replace(named)
        return Fetched(target / choice.root, where)


def connect_bucket(bucket: str) -> S3Store:
    """A client of a bucket as the environment says; patient with long transfers that move."""
    from obstore.store import S3Store

    return S3Store(
        bucket,
        client_options={
            # Of the environment's options this is the one that options given here would hide.
            "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true"),
            "connect_timeout": timedelta(seconds=10),
            "read_timeout": timedelta(seconds=30),
            "timeout": timedelta(days=1),
        },
        retry_config={
            "max_retries": 4,
            "retry_timeout": timedelta(seconds=60),
            "backoff": {"max_backoff": timedelta(seconds=5)},
        },
    )


def _listing(store: S3Store, path: str) -> list[Listed]:
    """What may be meant by a path: the object of that name alone, or all below it."""
    import obstore

    if path:
        try:
            found = obstore.head(store, path)
        except FileNotFoundError:
            pass
        else:
            return [Listed(path, found["size"], found["e_tag"] or str(found["last_modified"]))]
    prefix = literal_folder(path)
    return [
        Listed(found["path"], found["size"], found["e_tag"] or str(found["last_modified"]))
        for part in obstore.list(store, prefix or None)
        for found in part
    ]


def _fetch_object(store: S3Store, where: str, file: Listed, folder: Path) -> Path:
    """Completes an object's bytes in a file whose name changes when the object does."""
    folder.mkdir(parents=True, exist_ok=True)
    name = sha256(f"{file.name}\0{file.tag}".encode()).hexdigest()[:32]
    whole, part = folder / name, folder / f"{name}.part"
    if whole.exists():
        return whole
    failures = 0
    part.touch()
    while (begun := part.stat().st_size) < file.size_bytes:
        cause = _fetch_rest(store, where, file, part, begun)
        failures = 0 if part.stat().st_size > begun else failures + 1
        if failures >= _ATTEMPTS:
            size_bytes = part.stat().st_size
            raise unreachable(
                where,
                f"{file.name} did not arrive whole: it broke off at byte {size_bytes} of {file.size_bytes} ({cause})",
                _AGAIN_STEP,
            )
    part.replace(whole)
    return whole


def _fetch_rest(store: S3Store, where: str, file: Listed, part: Path, offset: int) -> str:
    """Appends what is missing; returns why it ended, for the case that something still is."""
    import obstore
    from obstore.exceptions import BaseError, PreconditionError

    with part.open("ab") as out:
        try:
            options: GetOptions = {"range": {"offset": offset}}
            if file.tag.startswith('"'):  # Neither a weak tag nor a time can be asked for.
                options["if_match"] = file.tag
            answer = obstore.get(store, file.name, options=options)
            for chunk in answer.stream(min_chunk_size=_CHUNK_BYTES):
                out.write(chunk)
        except (PreconditionError, FileNotFoundError):
            raise unreachable(
                where, f"{file.name} was changed while it was fetched", "Try again."
            ) from None
        except BaseError as error:
            return _cause(error)
    return "the answer ended early"


@contextmanager
def _store_errors(where: str) -> Iterator[None]:
    """What the object store answers in our words."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except GraftError:
        raise
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise no_data(where, f"it may not be read ({_cause(error)})", _SETTINGS_STEP) from None
    except BaseError as error:
        cause = _cause(error)
        if _METADATA_SERVER in str(error):
            why = "there are no credentials for the object store in the environment"
            raise no_data(where, why, _SETTINGS_STEP) from None
        if "NoSuchBucket" in cause:
            raise no_data(where, f"there is no such bucket ({cause})", _SETTINGS_STEP) from None
        raise unreachable(
            where, f"the object store did not give it ({cause})", _AGAIN_STEP
        ) from None


def _cause(error: Exception) -> str:
    """What the server said, without the request's address and the client's own structures."""
    said = str(error).partition("\n\nDebug source")[0].rpartition(" - ")[2]
    found = _S3_ERROR.search(said)
    if found:
        said = f"{found['code']}: {found['message']}"
    return " ".join(said.split())[:300]
