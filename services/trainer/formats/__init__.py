"""Training data from files, whatever its format, as examples of one kind."""

from services.trainer.formats.base import (
    Completion,
    Conversation,
    Example,
    Examples,
    Place,
    PlainText,
)
from services.trainer.formats.load import load_examples

__all__ = [
    "Completion",
    "Conversation",
    "Example",
    "Examples",
    "Place",
    "PlainText",
    "load_examples",
]
