"""Examples as tokens: chat templates, what is learned of a row, prompts and answers. Imports no torch."""

from services.trainer.tokens.examples import ExampleTokenizer, end_token_ids
from services.trainer.tokens.report import TokenReport
from services.trainer.tokens.rows import IGNORED, TokenRow
from services.trainer.tokens.tokenizer import load_tokenizer

__all__ = [
    "IGNORED",
    "ExampleTokenizer",
    "TokenReport",
    "TokenRow",
    "end_token_ids",
    "load_tokenizer",
]
