"""Has vLLM's core hash of a soft prompt's request only what was learned: `graft_soft_prompts` of vllm.general_plugins.

vLLM keys its prefix cache by the embeddings of every position, also of those that are tokens, whose rows
are never read: for a prompt of 1,000 tokens at a width of 4,096 that is 8 MB of zeros through SHA-256, while
nobody's answer goes on. The ids of these positions are part of the key already, and so is all before them.

vLLM loads it in each of its processes, also where nobody wants it, so it does nothing unless the engine
that starts them says so. Graft's own scheduler on a CPU calls install() by itself.
"""

from __future__ import annotations

import os
from functools import wraps
from typing import Any

VARIABLE = "GRAFT_SOFT_PROMPTS"


def register() -> None:
    """What the entry point names."""
    if os.environ.get(VARIABLE):
        install()


def install() -> None:
    """Takes the place of vLLM's own in this process; any number of times."""
    from vllm.v1.core import kv_cache_utils

    of_block = kv_cache_utils._gen_prompt_embeds_extra_hash_keys
    if hasattr(of_block, "__wrapped__"):
        return

    @wraps(of_block)
    def of_learned(request: Any, start: int, end: int) -> list[tuple[str, bytes]]:
        mask = request.prompt_is_token_ids
        if mask is not None and all(mask[start:end]):
            return []
        found: list[tuple[str, bytes]] = of_block(request, start, end)
        return found

    kv_cache_utils._gen_prompt_embeds_extra_hash_keys = of_learned
