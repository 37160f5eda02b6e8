"""A base that was looked at before anything is started for it: found, brought here, recorded, fit for this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from graft.errors import GraftError, Reason
from graft.names import base_name, default_base_id

from services.inference.bases.domain import BaseVersion, Loading, Source
from services.inference.bases.memory import Room, available_bytes, engine_bytes
from services.inference.bases.quantization import Quantization, check_device, read_quantization
from services.inference.bases.state import Chosen
from services.inference.bases.store import BaseStore
from services.inference.config import InferenceSettings
from services.inference.domain import Base
from services.inference.registry.base import Registry


@dataclass(frozen=True, slots=True)
class Place:
    """What a Serving is made for.

    Attributes:
        chosen: what brings exactly this one again.
        source: its files.
        settings: the service's, with this base in them.
        quantization: how the engine loads it.
        base: who it is; None where the registry is told when it has started.
    """

    chosen: Chosen
    source: Source
    settings: InferenceSettings
    quantization: Quantization
    base: Base | None = None


class Places:
    """Finds and checks bases for one service. Nothing that serves is touched.

    Args:
        settings: of the service.
        store: where files of versions are.
        registry: is told of folders.
    """

    def __init__(self, settings: InferenceSettings, store: BaseStore, registry: Registry) -> None:
        self._settings, self._store, self._registry = settings, store, registry

    @property
    def setting(self) -> Chosen:
        """What the operator set."""
        return Chosen(str(self._settings.base))

    async def first(self, chosen: Chosen) -> Place:
        """For the start: waits for a registry that is away, and leaves it to the engine to look into a folder.

        Raises:
            GraftError: of BaseStore.find and bring, and of read_quantization for a version.
        """
        found = await self._store.find_patiently(chosen.reference)
        source = await self._store.bring(found, chosen.loading, patient=True)
        if source.version is not None:
            if chosen == self.setting:
                self._check_name(source.version)
            return await self._of_version(source, source.version)
        settings = self._settings
        if source.folder != settings.base.absolute():
            # Its name was made of its folder's when it was switched to.
            settings = settings.model_copy(update={"base_name": ""})
        asked = chosen.loading.quantization or settings.quantization
        changes = {"base": source.folder, "quantization": asked, **_dtype(source)}
        quantization = _read_if_there(source.folder, asked)
        return Place(chosen, source, settings.model_copy(update=changes), quantization)

    async def find(self, reference: str) -> BaseVersion | Path:
        """See BaseStore.find; a folder has to be there.

        Raises:
            GraftError: INVALID_REFERENCE, NOT_A_MODEL, VERSION_NOT_FOUND, ALIAS_NOT_FOUND, UNAVAILABLE.
        """
        if not reference:
            raise GraftError(
                Reason.INVALID_REFERENCE,
                "base is empty",
                next_step="Write bases/name, bases/name@alias, bases/name:7, or a folder's absolute path.",
            )
        found = await self._store.find(reference)
        if isinstance(found, Path) and not Path(reference).is_absolute():
            raise GraftError(
                Reason.INVALID_REFERENCE,
                f"{reference!r} names neither a base of the registry nor a folder",
                next_step=f"Write bases/{reference} for the registry's, or the folder's absolute path.",
            )
        return found

    async def prepare(self, found: BaseVersion | Path, loading: Loading) -> Place:
        """Brings it here and looks at everything that can be known before an engine starts.

        Raises:
            GraftError: of BaseStore.bring, read_quantization; NOT_A_MODEL; ALREADY_EXISTS when the
                registry knows another base by a folder's name.
        """
        source = await self._store.bring(found, loading)
        try:
            if source.version is not None:
                return await self._of_version(source, source.version)
            return await self._of_folder(source)
        except BaseException:
            self._store.release(source)
            raise

    def release(self, place: Place) -> None:
        """Nothing reads its files any more."""
        self._store.release(place.source)

    def _check_name(self, version: BaseVersion) -> None:
        """A setting must not say two names."""
        named = self._settings.base_name
        if named and named != version.base.rpartition("/")[2]:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"GRAFT_INFERENCE_BASE names {version.base}, and GRAFT_INFERENCE_BASE_NAME {named!r}",
                next_step="Leave GRAFT_INFERENCE_BASE_NAME out: the reference says the name.",
            )

    async def _of_version(self, source: Source, version: BaseVersion) -> Place:
        asked = _asked(source, self._settings)
        quantization = await asyncio.to_thread(read_quantization, source.folder, asked)
        base = Base(
            version.base,
            version.fingerprint,
            source.reference,
            version.name,
            version.digest,
            quantization.kind,
        )
        chosen = Chosen(source.reference, source.loading)
        return Place(chosen, source, self._with(source, base, asked), quantization, base)

    async def _of_folder(self, source: Source) -> Place:
        asked = _asked(source, self._settings)
        quantization = await asyncio.to_thread(read_quantization, source.folder, asked)
        same = source.folder == self._settings.base.absolute()
        base_id = self._settings.base_name if same else ""
        name = base_name(self._settings.namespace, base_id or default_base_id(str(source.folder)))
        fingerprint = await self._registry.record_base(source.folder, name)
        base = Base(name, fingerprint, source.reference, quantization=quantization.kind)
        chosen = Chosen(source.reference, source.loading)
        return Place(chosen, source, self._with(source, base, asked), quantization, base)

    def _with(self, source: Source, base: Base, asked: str | None) -> InferenceSettings:
        changes = {"base": source.folder, "base_name": base.base_id, "quantization": asked}
        return self._settings.model_copy(update={**changes, **_dtype(source)})


def check_engine(place: Place) -> None:
    """Whether this machine's vLLM serves it. In a thread: it may import vLLM.

    Raises:
        GraftError: NOT_A_MODEL, with what can be done instead.
    """
    from services.inference.engines.vllm_device import this_device

    with_lora = place.settings.max_adapters > 0
    folder, settings = place.source.folder, place.settings
    check_device(
        folder, place.quantization, this_device(), with_lora=with_lora, dtype=settings.dtype
    )


def engine_room(place: Place) -> Room:
    """What its engine takes beside the one that runs. In a thread: it may import vLLM."""
    from services.inference.engines.vllm_device import gpu_memory, this_device

    if this_device().cuda:
        free, total = gpu_memory()
        return Room(round(total * place.settings.gpu_memory_utilization), free)
    return Room(engine_bytes(place.settings), available_bytes())


Check = Callable[[Place], None]
Measure = Callable[[Place], Room]


def _asked(source: Source, settings: InferenceSettings) -> str | None:
    """What is asked for, else the setting's where the base does not say itself."""
    asked = source.loading.quantization
    if asked or not settings.quantization:
        return asked
    if read_quantization(source.folder).method:
        return None
    return settings.quantization


def _dtype(source: Source) -> dict[str, str]:
    """What is told of the type, as a change of the settings."""
    return {} if source.loading.dtype is None else {"dtype": source.loading.dtype}


def _read_if_there(folder: Path, asked: str | None) -> Quantization:
    try:
        return read_quantization(folder, asked)
    except GraftError:
        # The engine says what is wrong.
        return Quantization(kind="")
