"""What every data format becomes, and what a format is: it recognizes a row and reads it.

No tokens here; how an example becomes tokens is the worker's business.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from graft.errors import GraftError, Reason

Row = dict[str, Any]
_EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands: its file's name and its number there, from 1 (in JSON lines: the line)."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of {role, content, tool_calls}, as chat templates take them; the assistant's are learned.

    Tools are {"type": "function", "function": {name, description, parameters}}. A tool call's
    arguments are a mapping.
    """

    messages: tuple[Row, ...]
    tools: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and what shall follow it; only the completion is learned."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text that is learned as a whole."""

    text: str


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to the same; both begin alike and differ in the last turn, or in the completion."""

    chosen: Conversation | Completion
    rejected: Conversation | Completion


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer, the last turn or the completion, and whether it is a good one."""

    answer: Conversation | Completion
    good: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """What shall be answered, turns or text, and the right answer where there is one."""

    prompt: Conversation | str
    answer: str | None


Content = Conversation | Completion | PlainText | Preference | Labelled | Prompt


@dataclass(frozen=True, slots=True)
class Example:
    """One row of the data."""

    place: Place
    content: Content


@dataclass(frozen=True, slots=True)
class Examples:
    """A data set: its rows, the format they were in, and the digest of its files' bytes.

    notes are sentences for people about what is odd in it, though no error.
    """

    rows: list[Example]
    format: str
    digest: str
    notes: tuple[str, ...] = ()


class Format(ABC):
    """One shape of rows.

    Attributes:
        name: as the contract's DataFormat calls it.
        fields: what its rows may have.
        compares: whether some of its answers are bad ones, which must not be learned as good ones.
    """

    name: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    compares: ClassVar[bool] = False

    @abstractmethod
    def fits(self, row: Row) -> bool:
        """Whether a row has the fields that tell this format from the others."""

    def takes(self, row: Row) -> bool:
        """Whether a row of a set that is said to be in this format may be read as such."""
        return self.fits(row)

    @abstractmethod
    def read(self, row: Row, place: Place) -> Example:
        """Reads one row.

        Raises:
            GraftError: BAD_DATA, naming the place and the field.
        """


def bad_row(
    place: Place, message: str, next_step: str, field: str = "", problem: str = ""
) -> GraftError:
    """The error of one row; problem is a word for programs."""
    metadata = {"problem": problem} if problem else {}
    return GraftError(
        Reason.BAD_DATA,
        f"{place}: {message}",
        next_step=next_step,
        file=place.file,
        row=place.row,
        field=field,
        **metadata,
    )


def empty_row(place: Place, field: str, what: str = "is empty") -> GraftError:
    """The error of a row with an empty field that must not be empty."""
    return bad_row(
        place,
        f'its field "{field}" {what}, so there is nothing to learn',
        "Fill it or remove the row; dataset.cleaning.drop_empty leaves out all such rows.",
        field,
        _EMPTY,
    )


def is_empty_row(error: GraftError) -> bool:
    """Whether an error is empty_row()'s."""
    return error.metadata.get("problem") == _EMPTY


def text_field(row: Row, field: str, place: Place, *, path: str = "", required: bool = True) -> str:
    """A field's text; "" where it is not required and absent or null.

    Args:
        path: how to name the field in an error, where it is inside another.

    Raises:
        GraftError: BAD_DATA, when it is absent, of another type, or holds half a character.
    """
    path = path or field
    value = row.get(field)
    if value is None:
        if not required:
            return ""
        if field in row:
            raise empty_row(place, path, "is null")
        has = ", ".join(f'"{name}"' for name in row) or "nothing"
        raise bad_row(
            place,
            f'it has no field "{path}" (it has {has})',
            f'Add "{path}", name the column that holds it in dataset.columns, or remove the row.',
            path,
        )
    if not isinstance(value, str):
        raise bad_row(
            place,
            f'its field "{path}" holds {kind_of(value)}, not text',
            "Write it as a string or remove the row.",
            path,
        )
    if not value.isascii():
        _check_characters(value, path, place)
    return value


def _check_characters(text: str, path: str, place: Place) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad_row(
            place,
            f'its field "{path}" holds half a character (a lone surrogate) at character {error.start + 1}',
            "Write the file again from its source with the right encoding.",
            path,
        ) from None


def list_field(row: Row, field: str, place: Place, *, required: bool = True) -> list[Any]:
    """A field's list; a string is read as JSON, because CSV and Parquet often hold it so.

    Raises:
        GraftError: BAD_DATA.
    """
    value = row.get(field)
    if isinstance(value, str):
        if not value.strip() and not required:
            return []
        value = json_value(value, field, place)
    if value is None and not required:
        return []
    if isinstance(value, list):
        return value
    what = (
        f'it has no field "{field}"'
        if value is None
        else f'its field "{field}" holds {kind_of(value)}, not a list'
    )
    raise bad_row(place, what, f'Write "{field}" as a list or remove the row.', field)


def json_value(text: str, path: str, place: Place) -> Any:
    """The value of JSON inside a field.

    Raises:
        GraftError: BAD_DATA.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise bad_row(
            place,
            f'its field "{path}" is not the JSON it should be ({error})',
            "Mend the JSON or remove the row.",
            path,
        ) from None


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")
