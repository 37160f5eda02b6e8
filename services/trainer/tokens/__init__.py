"""Examples as tokens: chat templates, what is learned of a row, prompts and answers. Imports no torch."""

from services.trainer.tokens.examples import ExampleTokenizer
from services.trainer.tokens.pairs import LabelledRow, PairTokenizer, PreferenceRow
from services.trainer.tokens.report import Noted, TokenReport
from services.trainer.tokens.rows import IGNORED, TokenRow
from services.trainer.tokens.tokenizer import end_token_ids, load_tokenizer

__all__ = [
    "IGNORED",
    "ExampleTokenizer",
    "LabelledRow",
    "Noted",
    "PairTokenizer",
    "PreferenceRow",
    "TokenReport",
    "TokenRow",
    "end_token_ids",
    "load_tokenizer",
]
