"""What a base is called that nobody named."""

from __future__ import annotations

import pytest
from graft.errors import GraftError
from graft.names import default_base_id
from graft.spec_file import spec_from_dict

from services.trainer.spec import parse_spec


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/models/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct"),
        ("org/Llama 3 (tuned)/", "llama-3-tuned"),
        ("tiny", "tiny"),
        ("/models/" + "a" * 80, "a" * 63),
    ],
)
def test_a_base_is_called_the_same_by_the_trainer_and_by_everybody_else(
    source: str, name: str
) -> None:
    spec = spec_from_dict(
        {"base": {"source": source}, "dataset": {"path": "x"}, "output": {"adapter": "bot"}}
    )
    assert default_base_id(source) == parse_spec(spec).base.name == name


def test_a_source_without_a_letter_or_digit_has_to_be_named() -> None:
    with pytest.raises(GraftError, match="cannot be the name of a base"):
        default_base_id("/models/...")
