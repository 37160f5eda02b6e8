"""What comes before the engine sees a version: it fits, it is trusted, and its files are here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from services.inference.blends.store import BlendStore
from services.inference.cache import AdapterCache, Held, read_config, read_template
from services.inference.domain import AdapterVersion, Base
from services.inference.engines.base import Engine
from services.inference.fitness import check_config, check_version, kind_of
from services.inference.templates import ChatTemplate
from services.inference.trust import Trust


@dataclass(frozen=True, slots=True)
class Prepared:
    """A folder that the engine may load; held is to be released when the engine reads it no more.

    kind is what an engine has to compute for it. version has its files, which a blend gets only now.
    """

    version: AdapterVersion
    held: Held
    template: ChatTemplate | None
    kind: str = "LORA"


class Preparation:
    """The checks of one service, from the cheap to the dear."""

    def __init__(
        self, engine: Engine, cache: AdapterCache, base: Base, trust: Trust, blends: BlendStore
    ) -> None:
        self._engine, self._cache, self._blends = engine, cache, blends
        self._base, self._trust = base, trust

    async def prepare(self, version: AdapterVersion, *, make_room: bool = True) -> Prepared:
        """Checks a version and brings its files to this machine.

        Args:
            make_room: other folders may go for it; see AdapterCache.hold.

        Raises:
            GraftError: of check_version, Trust.check, AdapterCache.hold, BlendStore.hold, check_config, Engine.inspect, read_template.
        """
        limits = self._engine.limits
        check_version(version, self._base, limits)
        for each in version.registered:
            await self._trust.check(each)
        if version.blend is None:
            held = await self._cache.hold(version, make_room=make_room)
        else:
            held, version = await self._blends.hold(version, make_room=make_room)
        try:
            config = read_config(version, held.folder)
            check_config(version, config, limits)
            await self._engine.inspect(version.name, held.folder)
            template = await asyncio.to_thread(read_template, version, held.folder)
        except BaseException:
            held.release()
            raise
        return Prepared(version, held, template, kind_of(version.peft_type, config))
