"""vLLM's LoRAResolver: asked once for each name that vLLM does not know, from then on it keeps the name current.

Nothing that it meets gets out of it but None: vLLM then answers 404, and the engine goes on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from graft.errors import GraftError, NotFoundError, Reason
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from services.inference.vllm_plugin.follower import Follower
from services.inference.vllm_plugin.names import read_reference
from services.inference.vllm_plugin.table import ModelTable
from services.inference.vllm_plugin.versions import Versions

if TYPE_CHECKING:
    import logging

    from services.inference.vllm_plugin.follower import Followed

_MAX_REFUSALS = 1024
# Somebody mistyped a name, or asked for another resolver's: nothing for the operator to do.
_ORDINARY = (
    Reason.INVALID_REFERENCE,
    Reason.ADAPTER_NOT_FOUND,
    Reason.ALIAS_NOT_FOUND,
    Reason.VERSION_NOT_FOUND,
)


class RegistryResolver(LoRAResolver):  # type: ignore[misc]
    """Resolves `adapter`, `adapter@alias`, `adapter:7`, each with `{namespace}/` before it or not.

    Args:
        namespace: of references that name none.
        retry_s: how long a refused name is refused without asking.
    """

    def __init__(
        self,
        namespace: str,
        retry_s: float,
        versions: Versions,
        table: ModelTable,
        log: logging.Logger,
    ) -> None:
        self._namespace, self._retry_s = namespace, retry_s
        self._versions, self._table, self._log = versions, table, log
        self._model = ""
        self._refused_until_s: dict[str, float] = {}
        self.follower: Follower | None = None

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The load of the version that a name means now, or None."""
        self._model = base_model_name
        if time.monotonic() < self._refused_until_s.get(lora_name, 0.0):
            return None
        try:
            load = await self._resolve(lora_name)
        except GraftError as error:
            level = self._log.info if error.reason in _ORDINARY else self._log.warning
            level("%s is not served: %s", lora_name, error)
        except Exception:
            self._log.exception("%s is not served", lora_name)
        else:
            self._refused_until_s.pop(lora_name, None)
            return load
        self._refuse(lora_name)
        return None

    async def _resolve(self, asked: str) -> LoRARequest:
        reference = read_reference(asked, self._namespace)
        followed: Followed | None = None
        if self.follower is not None:
            followed = self.follower.follow(asked, reference)
        elif reference.version is None:
            self._log.warning("%s will not follow its alias: this server has no HTTP app", asked)
        version = await self._versions.find_or_last(reference)
        folder = await self._versions.take(version, self._model)
        if followed is not None:
            followed.version = version
        load = self._table.new_load(asked, version, folder)
        self._log.info(
            "%s is %s (%s), served as %s", asked, version.name, version.digest, load.name
        )
        return load

    def _refuse(self, asked: str) -> None:
        if self.follower is not None:
            self.follower.forget(asked)
        self._refused_until_s.pop(asked, None)
        self._refused_until_s[asked] = time.monotonic() + self._retry_s
        if len(self._refused_until_s) > _MAX_REFUSALS:
            del self._refused_until_s[next(iter(self._refused_until_s))]

    async def refresh(self, asked: str) -> None:
        """Has a served name mean what it means in the registry now.

        Raises:
            GraftError: as Versions.find() and take(); the name then stays as it is.
        """
        assert self.follower is not None, "only a follower asks"
        async with self._table.lock(asked):
            followed = self.follower.followed.get(asked)
            if followed is None or asked not in self._table.entries:
                # Removed by vLLM's unload, or never loaded: the next request resolves it anew.
                self.follower.forget(asked)
                return
            try:
                version = await self._versions.find(followed.reference)
            except NotFoundError as error:
                self._table.drop(asked)
                self.follower.forget(asked)
                self._log.warning("%s is not served any more: %s", asked, error.message)
                return
            if version == followed.version:
                return
            folder = await self._versions.take(version, self._model)
            await self._table.replace(asked, version, folder)
            followed.version = version
            self._log.info("%s is now %s (%s)", asked, version.name, version.digest)
