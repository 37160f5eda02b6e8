"""From a reference to a folder that vLLM may load: found in the registry, verified, fitting, fetched.

Knows nothing of vLLM. The registry's word is checked, not taken: a manifest by its digest and
signature, a file by its digest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graft.digests import digest_message
from graft.errors import GraftError, Reason, UnavailableError
from graft.names import ModelReference
from graft.registry.v1.registry_service_pb2 import Version
from graft.signatures import SignaturePolicy, check

from services.inference.cache import AdapterCache, brings_template, read_config
from services.inference.domain import AdapterVersion
from services.inference.engines.base import Limits
from services.inference.fitness import check_config, check_version
from services.inference.registry import convert
from services.inference.registry.remote import RemoteRegistry
from services.inference.templates import FILE as TEMPLATE
from services.inference.vllm_plugin import scales_entry
from services.inference.vllm_plugin.engine_base import EngineBase

if TYPE_CHECKING:
    import logging

    from graft.keys import PublicKey

# The largest that vLLM has kernels for; it refuses by itself what is above its --max-lora-rank.
_MAX_RANK = 512
_MAX_REMEMBERED = 4096


class Versions:
    """The registry as the plugin uses it.

    Args:
        policy: what a version without a trusted signature means.
        trusted: keys whose signatures count.
        answer_timeout_s: longest wait for an answer; fetching has no limit, as a file may be large.
    """

    def __init__(
        self,
        registry: RemoteRegistry,
        cache: AdapterCache,
        base: EngineBase,
        policy: SignaturePolicy,
        trusted: Sequence[PublicKey],
        answer_timeout_s: float,
        log: logging.Logger,
    ) -> None:
        self._registry, self._cache, self._base = registry, cache, base
        self._policy, self._trusted = policy, trusted
        self._answer_timeout_s, self._log = answer_timeout_s, log
        self._fetches: dict[str, asyncio.Task[Path]] = {}
        self._last: dict[ModelReference, AdapterVersion] = {}
        self._warned: set[str] = set()
        self.max_rank = _MAX_RANK
        # vLLM's --chat-template: a file or the text itself; empty where the base's own is used.
        self.chat_template = ""

    async def find(self, reference: ModelReference) -> AdapterVersion:
        """The version that a reference means now.

        Raises:
            GraftError: ADAPTER_NOT_FOUND, VERSION_NOT_FOUND, ALIAS_NOT_FOUND, DIGEST_MISMATCH,
                SIGNATURE_REQUIRED, SIGNATURE_INVALID, UNAVAILABLE.
        """
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                message = await self._registry.find_message(reference)
        except TimeoutError:
            raise GraftError(
                Reason.UNAVAILABLE,
                f"The registry did not answer for {reference} within {self._answer_timeout_s:g} s",
                next_step="See how it is with `graft doctor`.",
            ) from None
        version = self._verified(message)
        self._last[reference] = version
        if len(self._last) > _MAX_REMEMBERED:
            del self._last[next(iter(self._last))]
        return version

    async def find_or_last(self, reference: ModelReference) -> AdapterVersion:
        """As find(); while the registry is away, what the reference meant when it was last asked.

        Raises:
            GraftError: as find().
        """
        try:
            return await self.find(reference)
        except UnavailableError as error:
            last = self._last.get(reference)
            if last is None:
                raise
            self._log.warning("%s; %s stays %s", error.message, reference, last.name)
            return last

    def _verified(self, message: Version) -> AdapterVersion:
        digest = digest_message(message.manifest)
        if digest != message.digest:
            raise GraftError(
                Reason.DIGEST_MISMATCH,
                f"The manifest of {message.name} has the digest {digest}, and the registry says "
                f"{message.digest}",
                next_step="Check the registry with `graft doctor`.",
            )
        verdict = check(self._policy, message, self._trusted)
        if verdict.problem:
            self._log.warning("%s is used, but: %s", message.name, verdict.problem)
        return convert.adapter_version(message)

    async def take(self, version: AdapterVersion, model: str) -> Path:
        """The version's folder, named by its digest, once it is known to fit the model and is verified.

        Callers that want the same version at once share one fetch.

        Raises:
            GraftError: WRONG_BASE, RANK_TOO_LARGE, ADAPTER_UNUSABLE, NOT_A_MODEL, DIGEST_MISMATCH,
                BLOB_NOT_FOUND, STORAGE_FULL, UNAVAILABLE.
        """
        # The workers of this server have the same plugin, which says what it computes.
        kinds = scales_entry.KINDS if scales_entry.wanted() else frozenset[str]()
        limits = Limits(1, self.max_rank, 0, 0, 0, kinds=kinds | {"LORA"})
        check_version(version, await self._base.get(model), limits)
        task = self._fetches.get(version.digest)
        if task is None:
            task = self._fetches[version.digest] = asyncio.create_task(self._cache.take(version))
            task.add_done_callback(lambda _: self._fetches.pop(version.digest, None))
        folder = await asyncio.shield(task)
        check_config(version, await asyncio.to_thread(read_config, version, folder), limits)
        if brings_template(version) and version.digest not in self._warned:
            await asyncio.to_thread(self._compare_template, version, folder / TEMPLATE, model)
        return folder

    def _compare_template(self, version: AdapterVersion, file: Path, model: str) -> None:
        """vLLM has one template for all: says so where it is not the version's."""
        if file.read_bytes() == self._servers_template(model):
            return
        self._warned.add(version.digest)
        self._log.warning(
            "%s was trained with the chat template %s, and this server renders every conversation with %s: "
            "/v1/chat/completions asks it in another way than it was trained. Start the server with "
            "--chat-template %s where all adapters share it, send rendered prompts to /v1/completions, "
            "or serve it with Graft's inference service, which uses each version's own.",
            version.name,
            file,
            f"--chat-template {self.chat_template:.100}"
            if self.chat_template
            else "the base's own",
            file,
        )

    def _servers_template(self, model: str) -> bytes:
        given = self.chat_template or self._base.chat_template(model)
        try:
            return Path(given).read_bytes()
        except (
            OSError,
            ValueError,
        ):  # The text itself, which need not be a name that a file can have.
            return given.encode()
