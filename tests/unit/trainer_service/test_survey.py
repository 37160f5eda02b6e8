"""Preflight's report: what is wrong with a data set, with rows and what to do, and what the model will see of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graft.errors import GraftError, Reason
from graft.spec_file import spec_from_dict
from huggingface_hub import constants

from services.trainer.preflight.report import Finding, Report, Severity
from services.trainer.preflight.survey import Survey, survey
from services.trainer.spec import parse_spec
from tests.support.hub import Repository, running_hub

Look = Callable[..., Report]
Row = dict[str, Any]


def good(number: int) -> Row:
    return {"instruction": f"What is {number} and {number}?", "output": f"It is {2 * number}."}


GOOD = [good(number) for number in range(40)]


@pytest.fixture
def look(tiny_base: Path, tmp_path: Path) -> Look:
    """The report of rows; dataset and hyperparameters change the spec's."""

    def run(
        rows: list[Row] | str, objective: str = "sft", examples: int = 0, **changes: Any
    ) -> Report:
        path = tmp_path / "rows.jsonl"
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, "utf-8")
        spec = {
            "base": {"source": str(tiny_base)},
            "dataset": {"path": str(path), **changes.get("dataset", {})},
            "objective": {objective: {}},
            "method": changes.get("method", {}),
            "hyperparameters": changes.get("hyperparameters", {}),
            "resources": changes.get("resources", {}),
            "output": {"adapter": "bot"},
        }
        return Survey(parse_spec(spec_from_dict(spec)), examples, lambda _: None).run()

    return run


def finding(report: Report, code: str) -> Finding:
    found = [one for one in report.findings if one.code == code]
    assert found, [one.code for one in report.findings]
    assert found[0].next_step
    return found[0]


def test_good_data_scores_full_and_says_what_will_be_trained(look: Look) -> None:
    report = look(GOOD, hyperparameters={"micro_batch_size": 4, "epochs": 2})
    assert (report.score, report.passed, report.format) == (100, True, "alpaca")
    assert (report.rows, report.kept_rows, report.eval_rows) == (40, 40, 0)
    assert report.total_steps == 2 * 10
    # Each of six processes takes a batch in every step.
    several = look(
        GOOD,
        hyperparameters={"micro_batch_size": 4, "epochs": 2},
        resources={"nodes": 3, "processes_per_node": 2},
    )
    assert several.total_steps == 2 * 2
    assert report.lengths is not None
    assert report.lengths.total == report.tokens
    assert sum(one.rows for one in report.lengths.histogram) == 40
    assert 0 < report.learned_tokens < report.tokens
    assert [one.code for one in report.findings] == ["no_evaluation"]


def test_examples_show_the_tokens_that_are_learned(look: Look) -> None:
    (shown,) = look(GOOD, examples=1).examples
    learned = "".join(one.text for one in shown.segments if one.learned)
    before = "".join(one.text for one in shown.segments if not one.learned)
    assert "It is 0." in learned
    assert "What is 0 and 0?" in before
    assert "What is" not in learned
    assert shown.place == "rows.jsonl, row 1"


def test_every_bad_row_is_named_and_not_only_the_first(look: Look) -> None:
    bad = [{"instruction": "?", "output": 3}, {"messages": [{"role": "user", "content": "a"}]}]
    report = look([*GOOD, *bad])
    assert (report.score, report.passed) == (0, False)
    found = finding(report, "bad_rows")
    assert (found.severity, found.rows) == (Severity.ERROR, 2)
    assert "row 41" in found.places[0]
    assert "row 42: it looks like messages but the set is alpaca" in found.places[1]


def test_rows_that_are_cut_say_how_long_would_be_enough(look: Look) -> None:
    long = {"instruction": "Tell", "output": "word " * 300}
    report = look([*GOOD, long], hyperparameters={"max_length_tokens": 64})
    found = finding(report, "truncated")
    assert (found.rows, found.places) == (1, ("rows.jsonl, row 41",))
    assert "99 of 100 rows" in found.next_step
    hidden = {"instruction": "word " * 300, "output": "yes"}
    report = look([*GOOD, hidden], hyperparameters={"max_length_tokens": 64})
    assert finding(report, "answer_cut_off").rows == 1
    assert report.kept_rows == 40


def test_duplicates_are_found_and_dedupe_leaves_them_out(look: Look) -> None:
    rows = [*GOOD, good(3), good(4)]
    found = finding(look(rows), "duplicates")
    assert found.places == ("rows.jsonl, row 41", "rows.jsonl, row 42")
    report = look(rows, dataset={"cleaning": {"dedupe": True}})
    assert report.cleaned_rows["dedupe"] == 2
    assert report.kept_rows == 40
    assert "duplicates" not in [one.code for one in report.findings]


def test_the_same_row_in_training_and_evaluation_is_found(look: Look, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in (good(5), good(500))))
    report = look(GOOD, dataset={"eval_sources": [{"path": str(held_out)}]})
    assert report.eval_rows == 2
    assert finding(report, "eval_overlap").places == ("eval_sources[0] held_out.jsonl, row 1",)


def test_the_same_row_on_both_sides_of_a_split_is_found(look: Look) -> None:
    report = look([good(1)] * 40, dataset={"eval_fraction": 0.25})
    assert report.eval_rows == 10
    assert finding(report, "eval_overlap").rows == 10


@pytest.mark.parametrize(
    "text", ["na\\u00c3\\u00afve", "half \\ufffd", "bell \\u0007", "it\\u00e2\\u20ac\\u2122s"]
)
def test_broken_encodings_are_named(look: Look, text: str) -> None:
    bad = f'{{"instruction": "Say", "output": "{text}"}}\n'
    report = look("".join(json.dumps(row) + "\n" for row in GOOD) + bad)
    assert finding(report, "broken_encoding").places[0].startswith("rows.jsonl, row 41")


def test_ordinary_text_of_many_languages_is_not_taken_for_broken(look: Look) -> None:
    texts = ["naïve café – „Grüße“", "Ça va? Être, Ângela, São", "日本語", "привет", "👍🏽 it’s"]
    rows = [{"instruction": f"Say {text}", "output": text} for text in texts]
    assert "broken_encoding" not in [one.code for one in look([*GOOD, *rows]).findings]


def test_unfilled_placeholders_are_named_and_filled_ones_are_not(look: Look) -> None:
    row = {"instruction": "Who are you?", "output": "I am {{name}}."}
    assert "{{name}}" in finding(look([*GOOD, row]), "unfilled_placeholders").places[0]
    report = look([*GOOD, row], dataset={"placeholders": {"name": "Ada"}})
    assert "unfilled_placeholders" not in [one.code for one in report.findings]


def test_one_question_with_two_answers_is_worth_a_word(look: Look) -> None:
    other = {"instruction": "What is 7 and 7?", "output": "Who knows."}
    assert finding(look([*GOOD, other]), "other_answers").rows == 1


def test_data_of_another_kind_than_the_objective_needs_fails(look: Look) -> None:
    report = look([{"text": "once upon a time"}] * 3 + [{"text": "the end"}], objective="dpo")
    assert not report.passed
    assert "direct preference" in finding(report, "wrong_kind").message.lower() or finding(
        report, "wrong_kind"
    )


def test_no_rows_at_all_fails(look: Look) -> None:
    report = look("")
    assert not report.passed
    assert report.rows == 0


def test_an_evaluation_that_would_be_empty_fails(look: Look) -> None:
    report = look(GOOD[:3], dataset={"eval_fraction": 0.1})
    assert not report.passed
    assert "holds out 0" in finding(report, "empty_evaluation").message


def test_a_target_that_the_base_does_not_have_fails(look: Look) -> None:
    report = look(GOOD, method={"lora": {"target_modules": ["query_key_value"]}})
    assert "query_key_value" in finding(report, "base").message


def test_few_rows_are_said_to_be_few(look: Look) -> None:
    assert finding(look(GOOD[:1]), "few_rows").severity is Severity.WARNING


def test_a_base_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    spec = {
        "base": {"source": str(tmp_path / "base"), "name": "b"},
        "dataset": {"path": str(tmp_path / "rows.jsonl")},
        "output": {"adapter": "bot"},
    }
    with pytest.raises(GraftError) as error:
        Survey(parse_spec(spec_from_dict(spec)), 0, lambda _: None).run()
    assert error.value.reason is Reason.NOT_A_MODEL


def test_packing_wastes_little_and_plain_batches_more(look: Look) -> None:
    rows = [
        {"instruction": f"Say {number}", "output": "word " * (1 + 7 * (number % 9))}
        for number in range(64)
    ]
    hyper = {"max_length_tokens": 256, "micro_batch_size": 8}
    plain = look(rows, hyperparameters={**hyper, "group_by_length": False})
    grouped = look(rows, hyperparameters=hyper)
    packed = look(rows, hyperparameters={**hyper, "packing": True, "micro_batch_size": 1})
    assert packed.padding_fraction == 0.0
    assert grouped.padding_fraction < plain.padding_fraction


def test_texts_of_pre_training_are_split_and_not_cut(look: Look) -> None:
    texts = [{"text": f"{number} " + "word " * 100} for number in range(8)]
    report = look(texts, "cpt", examples=1, hyperparameters={"max_length_tokens": 64})
    assert "truncated" not in [one.code for one in report.findings]
    assert report.lengths is not None
    assert report.lengths.max == 64
    assert not any(segment.cut for segment in report.examples[0].segments)


def test_data_that_is_elsewhere_is_fetched_to_be_looked_at(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    spec = {
        "base": {"source": str(tiny_base)},
        "dataset": {"path": "hf://org/set"},
        "output": {"adapter": "bot"},
    }
    said: list[dict[str, Any]] = []
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        hub.repositories["datasets/org/set"] = Repository()
        rows = "".join(json.dumps(row) + "\n" for row in GOOD)
        hub.repositories["datasets/org/set"].commit({"rows.jsonl": rows.encode()})
        report = survey(parse_spec(spec_from_dict(spec)), 0, said.append, "")
    assert report["rows"] == "40"
    assert said[0]["stage"].startswith("Fetching 1 file ")
