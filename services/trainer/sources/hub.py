"""Data sets on the Hugging Face Hub, pinned to the commit that was found, through huggingface_hub.

The Hub's address and token are huggingface_hub's own: HF_ENDPOINT, HF_TOKEN, or what `hf auth login` kept.
"""

from __future__ import annotations

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
        self._log, self._endpoint = log, endpoint

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
        with _hub_errors(place):
            return self._fetch(api, place, folder)

    def _fetch(self, api: HfApi, place: HubPlace, folder: Path) -> Fetched:
        commit = api.dataset_info(place.repository, revision=place.revision or None).sha
        if not commit:
            raise no_data(_named(place), "it has no commit", "Upload the data first.")
        tree = list(_files(api, place, commit))
        choice = choose(_named(place), [Listed(file.path, file.size) for file in tree], place.path)
        self._log(f"Fetching {choice.words()} from {SCHEME}{place.repository}@{commit}.")
        target = folder / "files"
        by_name = {file.path: file for file in tree}
        for file in choice.files:
            self._download(api, place, commit, by_name[file.name], target)
        shutil.rmtree(target / ".cache", ignore_errors=True)
        origin = f"{SCHEME}{place.repository}@{commit}" + (f"/{place.path}" if place.path else "")
        return Fetched(target / choice.root, origin)

    def _download(
        self, api: HfApi, place: HubPlace, commit: str, file: RepoFile, target: Path
    ) -> None:
        local = api.hf_hub_download(
            place.repository, file.path, repo_type="dataset", revision=commit, local_dir=target
        )
        promised = file.lfs.sha256 if file.lfs is not None else None
        if promised and digest_file(Path(local)) != f"sha256:{promised}":
            Path(local).unlink()
            raise unreachable(
                _named(place),
                f"{file.path} arrived with other bytes than the Hub lists",
                "Try again; if it stays so, tell whoever owns the repository.",
            )


def _files(api: HfApi, place: HubPlace, commit: str) -> Iterator[RepoFile]:
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(
        place.repository, recursive=True, revision=commit, repo_type="dataset"
    )
    return (one for one in tree if isinstance(one, RepoFile))


def _named(place: HubPlace) -> str:
    revision = f"@{place.revision}" if place.revision else ""
    return f"{SCHEME}{place.repository}{revision}" + (f"/{place.path}" if place.path else "")


@contextmanager
def _hub_errors(place: HubPlace) -> Iterator[None]:
    """huggingface_hub's errors in our words."""
    try:
        yield
    except GraftError:
        raise
    except Exception as error:
        raise _translated(error, place) from None


def _translated(error: Exception, place: HubPlace) -> GraftError:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = (lines or [type(error).__name__])[0]
    missing = (
        errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.EntryNotFoundError
    )
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return no_data(_named(place), f"it may not be read ({said})", _CREDENTIALS_STEP)
    if isinstance(error, missing) or status == 401:
        return no_data(
            _named(place),
            f"the Hub has no such data set for this trainer ({said})",
            f"Check owner, name, revision and path. For a private set: {_CREDENTIALS_STEP}",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return no_data(
            _named(place),
            "this trainer is told to stay off the Hub (HF_HUB_OFFLINE)",
            "Fetch the set where there is a network and name its folder, or unset HF_HUB_OFFLINE.",
        )
    if isinstance(error, errors.HFValidationError) or status in (400, 422):
        return no_data(_named(place), said, 'Write "hf://owner/name".')
    return unreachable(
        _named(place),
        f"the Hub did not give it ({said})",
        "Try again later; check the network and HF_ENDPOINT.",
    )
