"""Data sets on the Hugging Face Hub, pinned to the commit that was found, through huggingface_hub.

The Hub's address and token are huggingface_hub's own: HF_ENDPOINT, HF_TOKEN, or what `hf auth login` kept.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.digests import digest_file
from graft.errors import GraftError

from services.trainer.formats.files import ENDINGS
from services.trainer.sources.base import Fetched, Log, RemoteSource, no_data, unreachable
from services.trainer.sources.listing import Listed, choose
from services.trainer.spec import DatasetSource, local_path

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

SCHEME = "hf://"
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_URI = re.compile(
    rf"(?:datasets/)?(?P<id>{_ID.pattern})(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^/]+))?(?:/(?P<path>.*))?"
)
_CREDENTIALS_STEP = (
    "Set HF_TOKEN in the trainer's environment to a token that may read it, and accept the set's terms "
    "on its page."
)

_AGAIN_STEP = "Try again later; check the network and HF_ENDPOINT."


@dataclass(frozen=True, slots=True)
class HubPlace:
    """A repository of data, or a file, folder or pattern in it; revision "" is its main branch."""

    repository: str
    revision: str
    path: str


def hub_place(text: str) -> HubPlace | None:
    """What a data set's path says of the Hub: "hf://owner/name[@revision][/path]", or "owner/name" when
    there is no such file; None for nothing.
    """
    if text.startswith(SCHEME):
        match = _URI.fullmatch(text.removeprefix(SCHEME).rstrip("/"))
        if match is None:
            return None
        return HubPlace(match["id"], match["revision"] or "", (match["path"] or "").strip("/"))
    is_id = _ID.fullmatch(text) is not None and not text.lower().endswith(ENDINGS)
    return HubPlace(text, "", "") if is_id and not local_path(text).exists() else None


class HubSource(RemoteSource):
    """Repositories of data on the Hub.

    Args:
        log: takes a line for people.
        endpoint: the Hub's address; None for HF_ENDPOINT, or the real one.
    """

    def __init__(self, log: Log, endpoint: str | None = None) -> None:
        self._log, self._endpoint = log, endpoint or os.environ.get("HF_ENDPOINT") or None

    def takes(self, source: DatasetSource) -> bool:
        return source.path.startswith(SCHEME) or hub_place(source.path) is not None

    def fetch_now(self, source: DatasetSource, folder: Path) -> Fetched:
        place = hub_place(source.path)
        if place is None:
            raise no_data(
                source.path,
                "it is no address on the Hub",
                'Write "hf://owner/name", optionally with "@revision" and "/path" after it.',
            )
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self._endpoint, library_name="graft")
        where = source.path
        if not where.startswith(SCHEME):
            where = f"{where} (no file or folder here, so looked for on the Hub)"
        with _hub_errors(where):
            return self._fetch(api, place, where, folder)

    def _fetch(self, api: HfApi, place: HubPlace, where: str, folder: Path) -> Fetched:
        commit = api.dataset_info(place.repository, revision=place.revision or None).sha
        if not commit:
            raise no_data(where, "it has no commit", "Upload the data first.")
        tree = list(_files(api, place, commit))
        choice = choose(where, [Listed(file.path, file.size) for file in tree], place.path)
        self._log(f"Fetching {choice.words()} from {SCHEME}{place.repository}@{commit}.")
        # Named after the commit: what an earlier try fetched of another one is not taken for this.
        target = folder / commit
        by_name = {file.path: file for file in tree}
        for file in choice.files:
            self._download(api, place, where, commit, by_name[file.name], target)
        shutil.rmtree(target / ".cache", ignore_errors=True)
        origin = f"{SCHEME}{place.repository}@{commit}" + (f"/{place.path}" if place.path else "")
        return Fetched(target / choice.root, origin)

    def _download(
        self,
        api: HfApi,
        place: HubPlace,
        where: str,
        commit: str,
        file: RepoFile,
        target: Path,
    ) -> None:
        local = api.hf_hub_download(
            place.repository, file.path, repo_type="dataset", revision=commit, local_dir=target
        )
        promised = file.lfs.sha256 if file.lfs is not None else None
        if promised and digest_file(Path(local)) != f"sha256:{promised}":
            Path(local).unlink()
            raise unreachable(
                where,
                f"{file.path} arrived with other bytes than the Hub lists",
                "Try again; if it stays so, tell whoever owns the repository.",
            )


def _files(api: HfApi, place: HubPlace, commit: str) -> Iterator[RepoFile]:
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(
        place.repository, recursive=True, revision=commit, repo_type="dataset"
    )
    return (one for one in tree if isinstance(one, RepoFile))


@contextmanager
def _hub_errors(where: str) -> Iterator[None]:
    """huggingface_hub's errors in our words."""
    try:
        yield
    except GraftError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # This machine's: a full disk, say.
        raise _translated(error, where) from None


def _translated(error: Exception, where: str) -> GraftError:
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = (lines or [type(error).__name__])[0]
    missing = (
        errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.EntryNotFoundError
    )
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return no_data(
            where,
            "this trainer is told to stay off the Hub (HF_HUB_OFFLINE)",
            "Fetch the set where there is a network and name its folder, or unset HF_HUB_OFFLINE.",
        )
    # It is a kind of EntryNotFoundError, but says that the Hub could not be asked.
    if isinstance(error, errors.LocalEntryNotFoundError):
        return unreachable(where, f"the Hub did not give it ({said})", _AGAIN_STEP)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return no_data(where, f"it may not be read ({said})", _CREDENTIALS_STEP)
    if isinstance(error, missing) or status == 401:
        return no_data(
            where,
            f"the Hub has no such data set for this trainer ({said})",
            f"Check owner, name, revision and path. For a private set: {_CREDENTIALS_STEP}",
        )
    if isinstance(error, errors.HFValidationError) or status in (400, 422):
        return no_data(where, said, 'Write "hf://owner/name".')
    return unreachable(where, f"the Hub did not give it ({said})", _AGAIN_STEP)
