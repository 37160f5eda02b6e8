"""Which files a version of a base may consist of. Looks at names and sizes, not yet at bytes."""

from __future__ import annotations

from collections.abc import Sequence

from graft.bases import is_weights

from services.registry.admission import files as adapter_files
from services.registry.admission import paths
from services.registry.admission.limits import Limits
from services.registry.admission.paths import CHECK
from services.registry.domain import File
from services.registry.errors import refused

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_JSON = (
    CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "quantize_config.json",
    "quant_config.json",
)
_TEXT = ("chat_template.jinja", "LICENSE", "NOTICE", "USE_POLICY.md")
# SentencePiece's own format: neither text nor code.
BINARY = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def check_base_files(files: Sequence[File], limits: Limits) -> dict[str, File]:
    """The files by path.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    for file in files:
        paths.check_path(file.path)
        if not _belongs(file.path):
            raise paths.does_not_belong(
                file.path,
                f"{CONFIG}, the tokenizer's files, {WEIGHTS} or its shards with {INDEX}, and text",
            )
    by_path = adapter_files.check_listing(files, limits, limits.max_base_bytes, INDEX)
    if CONFIG not in by_path:
        raise _missing(CONFIG, f"{CONFIG} is missing")
    shards = [path for path in by_path if is_weights(path)]
    if not shards:
        raise _missing(WEIGHTS, f"{WEIGHTS} is missing, and there are no shards")
    if INDEX not in by_path and shards != [WEIGHTS]:
        raise _missing(
            INDEX, f"{INDEX} is missing: without it the only file of weights is {WEIGHTS}"
        )
    return by_path


def is_json(path: str) -> bool:
    """Whether a file is configuration, which is read."""
    return path in _JSON


def _belongs(path: str) -> bool:
    return (
        path in (INDEX, *_JSON, *_TEXT, *BINARY, *adapter_files.TOKENIZER)
        or is_weights(path)
        or adapter_files.TEXT.fullmatch(path) is not None
    )


def _missing(path: str, message: str) -> Exception:
    return refused(
        CHECK, message, "Commit the folder that save_pretrained writes, as safetensors.", path=path
    )
