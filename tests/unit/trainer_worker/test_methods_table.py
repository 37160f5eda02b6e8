"""The page about methods is what the code says."""

from __future__ import annotations

from pathlib import Path

from services.trainer.methods import METHODS
from services.trainer.methods.table import DOCUMENT, document

ROOT = Path(__file__).parents[3]


def test_the_page_is_what_the_code_says() -> None:
    written = (ROOT / DOCUMENT).read_text(encoding="utf-8")
    assert written == document(), "docs/methods.md is out of date: run `make docs` and commit it"


def test_the_page_has_each_method_and_why_it_refuses_a_quantized_base() -> None:
    page = document()
    for method in METHODS.values():
        assert f"(`{method.info.kind}`)" in page
        assert method.info.quantization_note in page
