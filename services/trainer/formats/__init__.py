"""Training data from files, whatever its format, as examples of one kind."""

from services.trainer.formats.base import (
    Completion,
    Content,
    Conversation,
    Example,
    Examples,
    Labelled,
    Place,
    PlainText,
    Preference,
    Prompt,
)
from services.trainer.formats.cleaning import CleaningReport
from services.trainer.formats.load import ReadOptions, RowReader, iterate, load_examples

__all__ = [
    "CleaningReport",
    "Completion",
    "Content",
    "Conversation",
    "Example",
    "Examples",
    "Labelled",
    "Place",
    "PlainText",
    "Preference",
    "Prompt",
    "ReadOptions",
    "RowReader",
    "iterate",
    "load_examples",
]
