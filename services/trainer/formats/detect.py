"""Finds out which format rows are in, and says what a row looks like that is in none or in another."""

from __future__ import annotations

from collections.abc import Sequence

from services.trainer.formats.alpaca import Alpaca
from services.trainer.formats.base import Format, Place, Row, bad_row
from services.trainer.formats.kto import Kto
from services.trainer.formats.messages import Messages
from services.trainer.formats.preference import Preferences
from services.trainer.formats.prompt import Prompts
from services.trainer.formats.prompt_completion import PromptCompletion
from services.trainer.formats.sharegpt import ShareGpt
from services.trainer.formats.text import Text

# In this order: those that compare are written as other formats are and must not be taken for them,
# Alpaca sets often carry a rendered "text" too, and chat sets a bare "prompt".
FORMATS: tuple[Format, ...] = (
    Preferences(),
    Kto(),
    Messages(),
    ShareGpt(),
    Alpaca(),
    PromptCompletion(),
    Prompts(),
    Text(),
)
FIRST_ROWS = 20


def format_named(name: str) -> Format:
    """The format of that name, for example "alpaca"."""
    return next(known for known in FORMATS if known.name == name)


def format_of(row: Row) -> Format | None:
    """The format that a row looks like; None for none."""
    return next((known for known in FORMATS if known.fits(row)), None)


def detect(rows: Sequence[tuple[Place, Row]]) -> Format:
    """The format of the first of the rows that is in one.

    Raises:
        GraftError: BAD_DATA, with the fields of the first row.
    """
    for _, row in rows:
        found = format_of(row)
        if found is not None:
            return found
    place, row = rows[0]
    names = ", ".join(f'"{name}"' for name in row) or "none"
    raise bad_row(
        place,
        f"its fields ({names}) are of no format that we know",
        "Say in dataset.columns what they are, for example "
        '{"prompt": "question", "completion": "answer"}, or use messages, conversations, instruction and '
        "output, prompt and completion, chosen and rejected, or text.",
    )


class Membership:
    """Whether rows are of the format that their set is in.

    Args:
        chosen: the set's.
        declared: whether the spec names it; otherwise it was found out, and less is let pass.
    """

    def __init__(self, chosen: Format, *, declared: bool) -> None:
        self._chosen = chosen
        self._fits = chosen.takes if declared else chosen.fits
        self._comparing = [known for known in FORMATS if known.compares and known is not chosen]
        if chosen.compares:
            self._comparing = []

    def check(self, row: Row, place: Place) -> None:
        """Lets a row pass that is of the format, or of none: then reading it says what it lacks.

        Raises:
            GraftError: BAD_DATA, for a row of another format.
        """
        other = next((known for known in self._comparing if known.fits(row)), None)
        if other is not None:
            raise bad_row(
                place,
                f"it looks like {other.name} data but the set is {self._chosen.name}: its bad answers "
                "would be learned as good ones",
                f"Set dataset.format to {other.name} and train with an objective for it, or keep only "
                "the good answers.",
            )
        if self._fits(row):
            return
        other = format_of(row)
        if other is not None and other is not self._chosen:
            raise bad_row(
                place,
                f"it looks like {other.name} but the set is {self._chosen.name}",
                "Bring all rows into one format, or give each its own file in dataset.sources.",
            )
