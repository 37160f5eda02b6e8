"""Finds out which format rows are in, and says what a row looks like that is in none or in another."""

from __future__ import annotations

from collections.abc import Sequence

from graft.errors import GraftError

from services.trainer.formats.alpaca import Alpaca
from services.trainer.formats.base import Format, Place, Row, bad_row
from services.trainer.formats.messages import Messages
from services.trainer.formats.prompt_completion import PromptCompletion
from services.trainer.formats.sharegpt import ShareGpt
from services.trainer.formats.text import Text

# In this order: Alpaca sets often carry a rendered "text" too, and chat sets a bare "prompt".
FORMATS: tuple[Format, ...] = (Messages(), ShareGpt(), Alpaca(), PromptCompletion(), Text())
FIRST_ROWS = 20


def format_named(name: str) -> Format:
    """The format of that name, for example "alpaca"."""
    return next(known for known in FORMATS if known.name == name)


def detect(rows: Sequence[tuple[Place, Row]]) -> Format:
    """The format of the first of the rows that is in one.

    Raises:
        GraftError: BAD_DATA, with the fields of the first row.
    """
    for place, row in rows:
        check_objective(row, place)
        for known in FORMATS:
            if known.fits(row):
                return known
    place, row = rows[0]
    names = ", ".join(f'"{name}"' for name in row) or "none"
    raise bad_row(
        place,
        f"its fields ({names}) are of no format that we know",
        "Use messages, conversations, instruction and output, prompt and completion, or text.",
    )


def check_objective(row: Row, place: Place) -> None:
    """Refuses rows that teach by comparison: their bad answers must not be learned as good ones.

    Raises:
        GraftError: BAD_DATA.
    """
    field = next((name for name in ("rejected", "chosen") if name in row), "")
    if not field and isinstance(row.get("label"), bool) and "text" not in row:
        field = "label"
    if field:
        raise bad_row(
            place,
            f'its field "{field}" marks it as preference data, which supervised training cannot use',
            "Keep only the good answers, as messages or conversations.",
            field,
        )


def mixed(row: Row, place: Place, chosen: Format) -> GraftError | None:
    """The error of a row that is in another format than its set; None where it is in the set's or in none."""
    if chosen.fits(row):
        return None
    other = next((known for known in FORMATS if known.fits(row)), None)
    if other is None:
        return None
    return bad_row(
        place,
        f"it looks like {other.name} but the set is {chosen.name}",
        "Bring all rows into one format, or train on separate files.",
    )
