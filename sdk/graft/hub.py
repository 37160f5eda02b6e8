"""Versions to and from repositories on the Hugging Face Hub, through huggingface_hub.

The Hub's address, cache and token are huggingface_hub's own: HF_ENDPOINT, HF_HOME, HF_TOKEN, or what
`hf auth login` kept.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.adapters import Note
from graft.client import Client
from graft.digests import digest_file
from graft.errors import GraftError, Reason
from graft.folders import CONFIG, OLD_WEIGHTS, WEIGHTS, may_belong
from graft.keys import PublicKey
from graft.model_card import hub_id, model_card
from graft.results import Version
from graft.signatures import SignaturePolicy
from graft.transfers import Transferred

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

_CARD = "README.md"
_NEXT_STEPS = {
    Reason.PERMISSION_DENIED: "Log in with `hf auth login`, or set HF_TOKEN to a token that may do this.",
    Reason.MODEL_NOT_FOUND: "Check the name and revision; a private repository needs `hf auth login` "
    "or HF_TOKEN.",
    Reason.INVALID_REQUEST: "Correct what the Hub says; a repository is named ORG/NAME.",
    Reason.UNAVAILABLE: "Try again later; check the network and HF_ENDPOINT. `graft --debug` shows more.",
}


@dataclass(frozen=True, slots=True)
class HubCommit:
    """A commit on the Hub that holds a version; url is where people look at it."""

    repository: str
    commit: str
    url: str
    version: str
    digest: str


class Hub:
    """Moves versions between a registry and the Hub.

    Args:
        client: speaks to the registry.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def push(
        self,
        reference: str,
        repository: str,
        *,
        revision: str | None = None,
        private: bool = False,
        base_model: str = "",
        policy: SignaturePolicy = SignaturePolicy.OFF,
        trusted: Sequence[PublicKey] = (),
        note: Note | None = None,
    ) -> HubCommit:
        """Makes a version the content of a repository, in one commit; creates the repository.

        Args:
            reference: "bot:7", "bot@production" or "bot".
            repository: "org/name".
            revision: an existing branch; by default main.
            private: whether a repository that is created is private.
            base_model: id of the base on the Hub, for the card; by default as adapter_config.json
                says, where that can be an id.
            policy, trusted: as in Adapters.pull.
            note: called with a sentence for people.

        Raises:
            GraftError: VERSION_NOT_FOUND and so on, PERMISSION_DENIED (no token, or not one for this
                repository), INVALID_REQUEST (what the Hub does not take), UNAVAILABLE, NOT_INSTALLED.
        """
        api = _api()
        with tempfile.TemporaryDirectory(prefix="graft-hub-") as made:
            folder = Path(made) / "version"
            version = await self._client.adapters.pull(
                reference, folder, policy=policy, trusted=trusted, note=note
            )
            base = base_model or _base_model(folder, note)
            await asyncio.to_thread(_write_card, folder, version, base)

            def work() -> HubCommit:
                with _hub_errors(repository):
                    return _commit(api, folder, version, repository, revision, private)

            return await asyncio.to_thread(work)

    async def pull(
        self,
        repository: str,
        adapter: str,
        *,
        revision: str | None = None,
        base: str | Path | None = None,
        progress: Transferred | None = None,
        note: Note | None = None,
    ) -> Version:
        """Makes a repository's adapter the next version; the commit is kept in its lineage.

        Args:
            repository: "org/name".
            adapter: the adapter; created where there is none.
            revision: a branch, tag or commit; by default main.
            base: as in Adapters.push.
            progress: called while files go to the registry.
            note: called with a sentence for people.

        Raises:
            GraftError: MODEL_NOT_FOUND (no such repository or revision, or not for this token),
                DIGEST_MISMATCH, UNAVAILABLE, NOT_INSTALLED; and what Adapters.push raises.
        """
        api = _api()
        with tempfile.TemporaryDirectory(prefix="graft-hub-") as made:
            folder = Path(made)

            def work() -> str:
                with _hub_errors(repository):
                    return _download(api, folder, repository, revision)

            commit = await asyncio.to_thread(work)
            return await self._client.adapters.push(
                adapter,
                folder,
                base=base,
                sources=[f"hf://{repository}@{commit}"],
                progress=progress,
                note=note,
            )


def _commit(
    api: HfApi,
    folder: Path,
    version: Version,
    repository: str,
    revision: str | None,
    private: bool,
) -> HubCommit:
    from huggingface_hub import CommitOperationAdd

    # None leaves it to the organization's own default.
    api.create_repo(repository, private=private or None, exist_ok=True)
    operations = [
        CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path)
        for path in sorted(folder.iterdir())
    ]
    info = api.create_commit(
        repository,
        operations,
        commit_message=version.name.partition("/adapters/")[2],
        commit_description=f"Manifest {version.digest}",
        revision=revision,
    )
    return HubCommit(repository, info.oid, info.commit_url, version.name, version.digest)


def _download(api: HfApi, folder: Path, repository: str, revision: str | None) -> str:
    from huggingface_hub.hf_api import RepoFile

    commit = api.model_info(repository, revision=revision).sha
    if not commit:
        raise GraftError(
            Reason.MODEL_NOT_FOUND,
            f"{repository} on the Hub has no commit",
            next_step="Name a repository that holds an adapter.",
        )
    tree = api.list_repo_tree(repository, revision=commit)
    found = {one.path: one for one in tree if isinstance(one, RepoFile) and may_belong(one.path)}
    if WEIGHTS in found:
        found.pop(OLD_WEIGHTS, None)
    for path, file in found.items():
        local = api.hf_hub_download(repository, path, revision=commit, local_dir=folder)
        _check_bytes(repository, file, Path(local))
    return commit


def _check_bytes(repository: str, file: RepoFile, local: Path) -> None:
    promised = file.lfs.sha256 if file.lfs is not None else None
    if promised and digest_file(local) != f"sha256:{promised}":
        raise GraftError(
            Reason.DIGEST_MISMATCH,
            f"{file.path} of {repository} arrived with other bytes than the Hub lists",
            next_step="Try again; if it stays so, tell whoever owns the repository.",
        )


def _write_card(folder: Path, version: Version, base_model: str) -> None:
    card = folder / _CARD
    readme = card.read_text("utf-8") if card.is_file() else ""
    card.write_text(model_card(readme, version, base_model), "utf-8")


def _base_model(folder: Path, note: Note | None) -> str:
    named = str(json.loads((folder / CONFIG).read_text("utf-8")).get("base_model_name_or_path"))
    found = hub_id(named)
    if not found and note:
        note(
            f"{CONFIG} names its base as {named!r}, which is no id on the Hub: the card names none. "
            "Say it with --base-model ORG/NAME."
        )
    return found


def _api() -> HfApi:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise GraftError(
            Reason.NOT_INSTALLED,
            "The Hugging Face Hub needs the package huggingface_hub, which is not installed",
            next_step="Install it: pip install 'graft-adapters[hub]'.",
        ) from None
    return HfApi(library_name="graft")


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """huggingface_hub's errors in our words."""
    try:
        yield
    except GraftError:
        raise
    except Exception as error:
        raise _translated(error, repository) from error


def _translated(error: Exception, repository: str) -> GraftError:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError | errors.LocalTokenNotFoundError):
        reason = Reason.PERMISSION_DENIED
    elif isinstance(
        error,
        errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.EntryNotFoundError,
    ):
        reason = Reason.MODEL_NOT_FOUND
    elif status in (401, 403):
        reason = Reason.PERMISSION_DENIED
    elif isinstance(error, errors.HFValidationError | ValueError) or status in (400, 409, 422):
        reason = Reason.INVALID_REQUEST
    else:
        reason = Reason.UNAVAILABLE
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:2]) or type(error).__name__
    return GraftError(
        reason,
        f"{repository} on the Hub: {said}",
        next_step=_NEXT_STEPS[reason],
        repository=repository,
    )
