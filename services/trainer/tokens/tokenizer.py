"""Loads a base's tokenizer. Importing this module imports neither torch nor transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from services.trainer.chat_templates import template_for
from services.trainer.run.bases import not_a_model


def leave_torch_out() -> None:
    """Makes transformers load as if torch were not installed, which saves 2 s and 350 MB.

    Only for a process of its own that never needs torch, before its first import of transformers: afterwards
    `import torch` fails there.
    """
    assert "transformers" not in sys.modules, "transformers has already looked for torch"
    sys.modules["torch"] = None  # type: ignore[assignment]  # What the import system reads as: is not there.


def load_tokenizer(folder: Path, chat_template: str = "") -> Any:
    """The base's own tokenizer, with its own chat template or a named one.

    Args:
        folder: of the base.
        chat_template: a name as in dataset.chat_template; "" for the base's own.

    Raises:
        GraftError: NOT_A_MODEL, when there is none or it cannot tell where its tokens come from; INVALID_SPEC
            for a name that no template has.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise not_a_model(
            str(folder), f"its tokenizer cannot be read ({reason})", "Add its tokenizer.json."
        ) from None
    if not tokenizer.is_fast:
        raise not_a_model(
            str(folder), "its tokenizer gives no offsets", "Convert it to tokenizer.json."
        )
    if chat_template:
        ends = end_token_ids(tokenizer, folder)
        tokenizer.chat_template = template_for(chat_template, tokenizer, ends)
    return tokenizer


def end_token_ids(tokenizer: Any, folder: Path) -> frozenset[int]:
    """The tokens that end an answer, as the tokenizer and the base's generation settings name them."""
    named = _settings(folder / "generation_config.json").get("eos_token_id")
    if named is None:
        config = _settings(folder / "config.json")
        named = config.get("eos_token_id", config.get("text_config", {}).get("eos_token_id"))
    ids = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id}
    return frozenset(token for token in ids if isinstance(token, int))


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # Not every base has the file; one that is broken fails to load.
        return {}
    return found if isinstance(found, dict) else {}
