"""A Hugging Face tokenizer's files as GGUF metadata, as llama.cpp reads it. What it could not split alike is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SentencePieceVocab, TokenType
from graft.errors import GraftError, Reason

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
_PUNCTUATION = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
# llama.cpp's names of ways to split text before its pieces are merged, by the pattern that Hugging Face's has.
_PATTERNS = {
    f"{_CONTRACTIONS}\\p{{N}}{{1,3}}{_PUNCTUATION}": "llama-bpe",
    f"{_CONTRACTIONS}\\p{{N}}{_PUNCTUATION}": "qwen2",
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file says of its tokenizer; pre, merges and scores are empty where the model has none."""

    model: str
    pre: str
    tokens: list[bytes]
    types: list[int]
    merges: list[str]
    scores: list[float]


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Reads a model's tokenizer.

    Args:
        folder: the model's.
        size: rows of its embedding; tokens that the tokenizer lacks are filled up.

    Raises:
        GraftError: NOT_SUPPORTED, for a tokenizer that llama.cpp would read otherwise.
    """
    if (folder / "tokenizer.model").is_file():
        return _sentencepiece(folder, size)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise _unsupported("it has neither tokenizer.json nor tokenizer.model")
    return _byte_level(json.loads(path.read_text("utf-8")), size)


def _sentencepiece(folder: Path, size: int) -> Vocabulary:
    found = list(SentencePieceVocab(folder).all_tokens())
    found += [
        (f"[PAD{number}]".encode(), -10000.0, TokenType.UNUSED)
        for number in range(len(found), size)
    ]
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=[text for text, _, _ in found],
        types=[int(kind) for _, _, kind in found],
        merges=[],
        scores=[score for _, score, _ in found],
    )


def _byte_level(tokenizer: Mapping[str, Any], size: int) -> Vocabulary:
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or tokenizer.get("normalizer"):
        raise _unsupported(
            f"its model is {model.get('type')} with a normalizer or byte fallback, and there is no tokenizer.model"
        )
    by_id = {number: (text, TokenType.NORMAL) for text, number in model["vocab"].items()}
    for one in tokenizer.get("added_tokens", ()):
        kind = TokenType.CONTROL if one.get("special") else TokenType.USER_DEFINED
        by_id[one["id"]] = (one["content"], kind)
    rows = [by_id.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(size)]
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    return Vocabulary(
        model="gpt2",
        pre=_pre(tokenizer.get("pre_tokenizer")),
        tokens=[text.encode() for text, _ in rows],
        types=[int(kind) for _, kind in rows],
        merges=merges,
        scores=[],
    )


def _pre(given: Mapping[str, Any] | None) -> str:
    """llama.cpp's name for what splits text before merging."""
    steps = (given or {}).get("pretokenizers") or ([given] if given else [])
    kinds = [step["type"] for step in steps]
    last = steps[-1] if steps else {}
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and last.get("use_regex", True):
        if steps[0].get("individual_digits"):
            return "smollm"
    elif kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        name = _PATTERNS.get(str(steps[0].get("pattern", {}).get("Regex")))
        if name:
            return name
    raise _unsupported(f"how it splits text ({', '.join(kinds) or 'not at all'}) has no name there")


def write_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, folder: Path) -> None:
    """Adds a vocabulary, special tokens and the chat template to a file that is being made."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    config, tokenizer = _json(folder / "config.json"), _json(folder / "tokenizer_config.json")
    texts = {text.decode("utf-8", "replace"): n for n, text in enumerate(vocabulary.tokens)}
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
        ("unk", writer.add_unk_token_id),
    ):
        number = _special(name, config, tokenizer, texts)
        if number is not None:
            add(number)
    for name, flag in (("bos", writer.add_add_bos_token), ("eos", writer.add_add_eos_token)):
        if isinstance(tokenizer.get(f"add_{name}_token"), bool):
            flag(tokenizer[f"add_{name}_token"])
    template = tokenizer.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text("utf-8")
    if isinstance(template, str):
        writer.add_chat_template(template)


def _special(
    name: str, config: Mapping[str, Any], tokenizer: Mapping[str, Any], texts: Mapping[str, int]
) -> int | None:
    """The tokenizer's special token; else the configuration's, of which the first one counts."""
    given = tokenizer.get(f"{name}_token")
    text = given.get("content") if isinstance(given, dict) else given
    if isinstance(text, str) and text in texts:
        return texts[text]
    number = config.get(f"{name}_token_id")
    if isinstance(number, list):
        number = number[0] if number else None
    return number if isinstance(number, int) and number >= 0 else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _unsupported(why: str) -> GraftError:
    return GraftError(
        Reason.NOT_SUPPORTED,
        f"The tokenizer cannot be written to GGUF so that llama.cpp reads it alike: {why}",
        next_step="Export a folder instead, and convert that with llama.cpp's own script.",
    )
