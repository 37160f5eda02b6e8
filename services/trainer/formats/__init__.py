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
from services.trainer.formats.load import load_examples

__all__ = [
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
    "load_examples",
]
