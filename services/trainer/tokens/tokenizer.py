"""Loads a base's tokenizer. Importing this module imports neither torch nor transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from services.trainer.run.bases import not_a_model


def leave_torch_out() -> None:
    """Makes transformers load as if torch were not installed, which saves 2 s and 350 MB.

    Only for a process of its own that never needs torch, before its first import of transformers: afterwards
    `import torch` fails there.
    """
    assert "transformers" not in sys.modules, "transformers has already looked for torch"
    sys.modules["torch"] = None  # type: ignore[assignment]  # What the import system reads as: is not there.


def load_tokenizer(folder: Path) -> Any:
    """The base's own tokenizer.

    Raises:
        GraftError: NOT_A_MODEL, when there is none or it cannot tell where its tokens come from.
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
    return tokenizer
