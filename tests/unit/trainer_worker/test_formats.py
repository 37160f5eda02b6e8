"""Data files in every format become examples; every bad row is named with its file, number and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from graft.digests import digest_file
from graft.errors import GraftError, Reason
from pyarrow import parquet

from services.trainer.formats import Completion, Conversation, PlainText, load_examples

ALPACA = {"instruction": "Add", "input": "1 2", "output": "3"}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Bonn"}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "It rains."},
    ],
    "tools": '[{"name": "weather", "description": "d", "parameters": {}}]',
}
MESSAGES = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "content": "ok", "tool_call_id": "1"},
        {"role": "assistant", "content": "Done"},
    ]
}
PROMPT = {"prompt": "Once", "completion": " upon"}
TEXT = {"text": "All of it."}


def write(folder: Path, name: str, rows: Any) -> Path:
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    else:
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    return path


def refused(path: Path, format_name: str | None = None) -> GraftError:
    with pytest.raises(GraftError) as caught:
        load_examples(path, format_name)
    assert caught.value.reason is Reason.BAD_DATA
    assert caught.value.next_step
    return caught.value


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("row", "name_of_format"),
    [
        (ALPACA, "alpaca"),
        (SHAREGPT, "sharegpt"),
        (MESSAGES, "messages"),
        (PROMPT, "prompt_completion"),
        (TEXT, "text"),
    ],
)
def test_the_format_is_found_out_from_the_rows(
    tmp_path: Path, name: str, row: dict[str, Any], name_of_format: str
) -> None:
    examples = load_examples(write(tmp_path, name, [row, row]))
    assert examples.format == name_of_format
    assert [example.place.row for example in examples.rows] == [1, 2]


def test_an_alpaca_row_is_a_question_and_an_answer(tmp_path: Path) -> None:
    row = {**ALPACA, "system": "Be brief.", "history": [["a", "b"]]}
    content = load_examples(write(tmp_path, "a.json", [row])).rows[0].content
    assert isinstance(content, Conversation)
    assert [(turn["role"], turn["content"]) for turn in content.messages] == [
        ("system", "Be brief."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "Add\n1 2"),
        ("assistant", "3"),
    ]


def test_a_sharegpt_row_keeps_its_tools_calls_and_observations(tmp_path: Path) -> None:
    content = load_examples(write(tmp_path, "a.json", [SHAREGPT])).rows[0].content
    assert isinstance(content, Conversation)
    assert [turn["role"] for turn in content.messages] == ["user", "assistant", "tool", "assistant"]
    assert content.messages[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    ]
    assert content.tools[0]["function"]["name"] == "weather"


def test_openai_messages_keep_parts_and_calls(tmp_path: Path) -> None:
    content = load_examples(write(tmp_path, "a.jsonl", [MESSAGES])).rows[0].content
    assert isinstance(content, Conversation)
    assert content.messages[0] == {"role": "user", "content": "Hi"}
    assert content.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert content.messages[2]["tool_call_id"] == "1"


def test_turns_may_be_written_either_way_under_either_name(tmp_path: Path) -> None:
    by_role = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    by_speaker = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    rows = [{"conversations": by_role}, {"conversations": by_speaker}]
    for name, content in (("a.json", rows), ("b.json", [{"messages": by_speaker}])):
        for example in load_examples(write(tmp_path, name, content)).rows:
            assert example.content == Conversation(tuple(by_role))


def test_prompts_and_texts_are_kept_as_they_are(tmp_path: Path) -> None:
    prompt = load_examples(write(tmp_path, "p.json", [PROMPT])).rows[0].content
    text = load_examples(write(tmp_path, "t.json", [TEXT])).rows[0].content
    assert prompt == Completion("Once", " upon")
    assert text == PlainText("All of it.")


def test_csv_and_parquet_hold_rows_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,completion\n"a, b","c\nd"\nx,y\n', "utf-8")
    from_csv = load_examples(tmp_path / "a.csv")
    assert [row.content for row in from_csv.rows] == [
        Completion("a, b", "c\nd"),
        Completion("x", "y"),
    ]
    parquet.write_table(
        arrow.Table.from_pylist([{"messages": MESSAGES["messages"][1:]}]), tmp_path / "a.parquet"
    )
    assert load_examples(tmp_path / "a.parquet").format == "messages"


def test_a_folder_is_all_its_files_by_name(tmp_path: Path) -> None:
    write(tmp_path, "b.json", [TEXT])
    write(tmp_path, "a.jsonl", [{"text": "first"}])
    (tmp_path / "README.md").write_text("not data")
    examples = load_examples(tmp_path)
    assert [row.place.file for row in examples.rows] == ["a.jsonl", "b.json"]


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", [TEXT])
    assert load_examples(path).digest == digest_file(path)


def test_only_the_first_rows_are_read_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", [TEXT, TEXT, {"text": 3}])
    assert len(load_examples(path, max_rows=2).rows) == 2


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", '{"text": "x"}\n'), ("a.json", '[{"text": "x"}]')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert load_examples(tmp_path / name).rows[0].content == PlainText("x")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.parquet"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert f"{name} is empty" in refused(tmp_path / name).message


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "[]"), ("a.jsonl", "\n\n"), ("a.csv", "text\n")]
)
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert "holds no rows" in refused(tmp_path / name).message


def test_a_cut_off_list_names_row_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n {"text": "one"},\n {"text": "tw')
    message = refused(tmp_path / "a.json").message
    assert message.startswith("a.json, row 2: the file is cut off at line 3")


def test_a_cut_off_line_names_row_and_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "tw')
    message = refused(tmp_path / "a.jsonl").message
    assert message.startswith("a.jsonl, row 2: line 2 is cut off or not JSON at column")


def test_a_cut_off_csv_and_parquet_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,completion\na,b\n"c,d')
    assert "row 2: it is not CSV" in refused(tmp_path / "a.csv").message
    parquet.write_table(arrow.Table.from_pylist([TEXT] * 50), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    assert "not a whole Parquet file" in refused(tmp_path / "a.parquet").message


def test_a_csv_row_with_other_fields_than_the_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion\na,b\na,b,c\n")
    assert "row 2: it has 3 fields but the header names 2" in refused(tmp_path / "a.csv").message


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_text_that_is_not_utf8_names_row_and_byte(tmp_path: Path, name: str) -> None:
    texts = {
        "a.json": b'[{"text": "one"},\n{"text": "\xe4"}]',
        "a.jsonl": b'{"text": "one"}\n{"text": "\xe4"}\n',
        "a.csv": b"text\n\xe4\n",
    }
    (tmp_path / name).write_bytes(texts[name])
    error = refused(tmp_path / name)
    assert f"row 2: it is not UTF-8 at byte {texts[name].index(0xE4)} of the file" in error.message


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "ab\\ud83d"}\n')
    assert (
        "half a character (a lone surrogate) at character 3"
        in refused(tmp_path / "a.jsonl").message
    )


def test_a_row_of_another_format_is_named(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "a.jsonl", [ALPACA, ALPACA, MESSAGES]))
    assert error.message == "a.jsonl, row 3: it looks like messages but the set is alpaca"


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"instruction": "x"}, "output"),
        ({"instruction": "x", "output": None}, "output"),
        ({"instruction": "x", "output": "  "}, "output"),
        ({"instruction": 3, "output": "x"}, "instruction"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "history[0]"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": "x"},
                    {"role": "system", "content": "y"},
                ]
            },
            "",
        ),
        ({"conversations": [{"from": "human"}]}, "conversations[0].value"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "conversations[0].from"),
        ({"conversations": [{"from": "function_call", "value": "f()"}]}, "conversations[0].value"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "conversations"),
        ({"conversations": [{"from": "gpt", "value": "x"}], "tools": [{}]}, "tools[0]"),
        ({"prompt": "x", "completion": ""}, "completion"),
        ({"text": ["x"]}, "text"),
        ({"text": " "}, "text"),
    ],
)
def test_a_bad_row_names_its_number_and_field(
    tmp_path: Path, row: dict[str, Any], field: str
) -> None:
    good = {
        "instruction": ALPACA,
        "messages": MESSAGES,
        "conversations": SHAREGPT,
        "prompt": PROMPT,
        "text": TEXT,
    }[next(iter(row))]
    error = refused(write(tmp_path, "a.jsonl", [good, row]))
    assert error.message.startswith("a.jsonl, row 2: ")
    assert field in error.message
    assert error.metadata["row"] == "2"


@pytest.mark.parametrize(
    ("format_name", "row"),
    [
        ("sharegpt", {**SHAREGPT, "chosen": {}, "rejected": {}}),
        ("prompt_completion", {**PROMPT, "chosen": "a", "rejected": "b"}),
        ("messages", {**MESSAGES, "label": False}),
        ("alpaca", {**ALPACA, "label": True}),
    ],
)
def test_bad_answers_are_not_learned_as_good_ones_whatever_the_spec_says(
    tmp_path: Path, format_name: str, row: dict[str, Any]
) -> None:
    message = refused(write(tmp_path, "a.jsonl", [row]), format_name).message
    assert f"but the set is {format_name}: its bad answers would be learned" in message


def test_rows_of_no_known_format_are_refused_with_their_fields(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "a.jsonl", [{"question": "a", "answer": "b"}]))
    assert '"question", "answer"' in error.message


def test_a_row_that_is_no_object_is_named(tmp_path: Path) -> None:
    assert "row 1: it holds text" in refused(write(tmp_path, "a.json", ["x"])).message


def test_an_object_around_the_rows_is_refused(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "a.json", {"data": [TEXT]}))
    assert 'one object with the fields "data"' in error.message


def test_a_path_without_data_is_refused(tmp_path: Path) -> None:
    assert "no file or folder" in refused(tmp_path / "none.jsonl").message
    (tmp_path / "a.txt").write_text("x")
    assert "ending that is not read" in refused(tmp_path / "a.txt").message
    assert "holds no data file" in refused(tmp_path).message


def test_the_given_format_is_held_against_every_row(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", [TEXT])
    assert "looks like text but the set is alpaca" in refused(path, "alpaca").message
