"""Puts the transformers engine beside a first one, as the settings say. Part of the composition root."""

from __future__ import annotations

from services.inference.config import InferenceSettings
from services.inference.engines.base import Engine, Limits
from services.inference.engines.composed import ComposedEngine
from services.inference.engines.second import SecondEngine, SecondOptions
from services.inference.engines.transformers_engine import TransformersEngine
from services.inference.engines.transformers_messages import KINDS, NAME, TransformersOptions

# What a version's PEFT type tells apart; plain LoRA is the first engine's in any case.
_KINDS = KINDS - {"LORA", "DORA"}


def with_second(settings: InferenceSettings, first: Engine) -> Engine:
    """The engine for all kinds; the first alone, where a second is switched off."""
    if settings.second_engine == "off" or not settings.max_adapters:
        return first
    engine = TransformersEngine(
        TransformersOptions(
            base=settings.base,
            dtype=settings.dtype,
            device=settings.second_engine_device,
            # So many of each kind.
            max_adapters=settings.second_engine_max_adapters * len(_KINDS),
            max_num_seqs=settings.second_engine_max_seqs,
            max_model_len=settings.max_model_len,
            kv_cache_bytes=int(settings.second_engine_kv_gib * 1024**3),
            max_waiting=settings.max_waiting,
            trust_remote_code=settings.trust_remote_code,
        )
    )
    # What is known before it has started; the first engine's own bounds hold for all requests.
    limits = Limits(
        max_adapters=settings.second_engine_max_adapters,
        max_rank=0,
        max_context_tokens=0,
        vocab_size=0,
        max_token_characters=0,
        kinds=_KINDS,
        engine=NAME,
    )
    options = SecondOptions(
        wait_s=settings.engine_wait_s,
        first_delay_s=settings.engine_restart_delay_s,
        max_delay_s=settings.engine_restart_max_s,
        idle_s=settings.second_engine_idle_s,
    )
    return ComposedEngine(first, SecondEngine(engine, limits, options))
