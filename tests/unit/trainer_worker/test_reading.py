"""How a set is read: kinds of files, folders, columns, placeholders, and all the public sets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from graft.errors import GraftError, Reason
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from services.trainer.formats import (
    Completion,
    Conversation,
    PlainText,
    ReadOptions,
    RowReader,
    iterate,
    json_list,
    load_examples,
)
from services.trainer.formats.opening import DataFile

SHARED = Path(__file__).parents[4] / "shared/data"
TEXTS = [{"text": "one"}, {"text": "two"}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def texts(path: Path) -> list[str]:
    contents = [example.content for example in load_examples(path).rows]
    return [content.text for content in contents if isinstance(content, PlainText)]


def refused(path: Path, options: ReadOptions | None = None) -> GraftError:
    with pytest.raises(GraftError) as caught:
        list(RowReader(path, options or ReadOptions()))
    assert caught.value.next_step
    return caught.value


class TestFiles:
    @pytest.mark.parametrize("kind", ["stream", "file"])
    def test_arrow_is_read_as_the_datasets_library_writes_it(
        self, tmp_path: Path, kind: str
    ) -> None:
        table = arrow.Table.from_pylist(TEXTS)
        path = tmp_path / "data-00000-of-00001.arrow"
        new = arrow.ipc.new_stream if kind == "stream" else arrow.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
        (tmp_path / "dataset_info.json").write_text("{}")
        (tmp_path / "state.json").write_text("{}")
        assert texts(tmp_path) == ["one", "two"]

    def test_a_cut_off_arrow_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.arrow"
        with arrow.ipc.new_stream(
            str(path), (table := arrow.Table.from_pylist(TEXTS * 90)).schema
        ) as out:
            out.write_table(table)
        path.write_bytes(path.read_bytes()[:-300])
        assert "a.arrow is not a whole Arrow file" in refused(path).message

    def test_what_is_compressed_is_read_as_it_is(self, tmp_path: Path) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in TEXTS)
        for name, text in (
            ("a.jsonl.gz", lines),
            ("b.json.gz", json.dumps(TEXTS)),
            ("c.csv.gz", "text\none\ntwo\n"),
        ):
            (tmp_path / name).write_bytes(gzip.compress(text.encode()))
            assert texts(tmp_path / name) == ["one", "two"]
        whole = (tmp_path / "a.jsonl.gz").read_bytes()
        (tmp_path / "a.jsonl.gz").write_bytes(whole[:-9])
        assert "a.jsonl.gz is not a whole gzip file" in refused(tmp_path / "a.jsonl.gz").message

    def test_a_list_in_a_file_of_lines_is_read_as_a_list(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(json.dumps(TEXTS, indent=1))
        assert texts(tmp_path / "a.jsonl") == ["one", "two"]

    def test_a_column_that_is_there_twice_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("text,text\na,b\n")
        table = arrow.table([["a"], ["b"]], names=["text", "text"])
        parquet.write_table(table, tmp_path / "a.parquet")
        for name in ("a.csv", "a.parquet"):
            message = refused(tmp_path / name).message
            assert message == f'{name} has more than one column "text"'

    def test_utf16_is_called_by_its_name(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes('{"text": "ä"}\n'.encode("utf-16"))
        assert "(it looks like UTF-16)" in refused(tmp_path / "a.jsonl").message

    def test_json_that_is_nested_too_deeply_is_named(self, tmp_path: Path) -> None:
        deep = '{"text": ' + "[" * 100_000
        (tmp_path / "a.jsonl").write_text(f'{{"text": "x"}}\n{deep}\n')
        (tmp_path / "a.json").write_text(f'[{{"text": "x"}},\n{deep}')
        for name in ("a.jsonl", "a.json"):
            message = refused(tmp_path / name).message
            assert message.startswith(f"{name}, row 2: ")
            assert "nested too deeply" in message

    @settings(max_examples=60, deadline=None)
    @given(
        rows=st.lists(
            st.dictionaries(st.text(max_size=4), st.text() | st.integers() | st.none(), max_size=3)
        ),
        indent=st.sampled_from([None, 1]),
        ascii_only=st.booleans(),
        size=st.integers(1, 40),
    )
    def test_a_list_is_the_same_however_little_of_it_is_in_memory(
        self,
        rows: list[dict[str, Any]],
        indent: int | None,
        ascii_only: bool,
        size: int,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        path = tmp_path_factory.mktemp("lists") / "a.json"
        path.write_text(
            json.dumps(rows, indent=indent, ensure_ascii=ascii_only), "utf-8", "surrogatepass"
        )
        try:
            path.read_text("utf-8")
        except UnicodeDecodeError:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_list, "_READ_BYTES", size)
            read = list(json_list.read_json_list(DataFile(path, "a.json")))
        assert [row for _, row in read] == rows
        assert [place.row for place, _ in read] == list(range(1, len(rows) + 1))

    @pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
    def test_a_broken_list_is_named_the_same_however_little_is_in_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        monkeypatch.setattr(json_list, "_READ_BYTES", size)
        path = tmp_path / "a.json"
        path.write_text('[\n {"text": "ü\\n"},\n {"text": tru}\n]', "utf-8")
        assert "row 2: it is not JSON at line 3, column 11" in refused(path).message
        path.write_bytes('[\n {"text": "ü"},\n {"text": "'.encode() + b'\xe4"}]')
        assert "row 2: it is not UTF-8 at byte 30 of the file" in refused(path).message


class TestFolders:
    def test_a_folder_with_splits_stands_for_its_train_split(self, tmp_path: Path) -> None:
        (tmp_path / "test").mkdir()
        write(tmp_path / "train.jsonl", TEXTS[:1])
        write(tmp_path / "test/rows.jsonl", TEXTS[1:])
        examples = load_examples(tmp_path)
        assert len(examples.rows) == 1
        assert "test/rows.jsonl were left out" in examples.notes[0]
        assert texts(tmp_path / "test") == ["two"]

    def test_hidden_files_are_no_data(self, tmp_path: Path) -> None:
        (tmp_path / ".cache").mkdir()
        write(tmp_path / ".cache/rows.jsonl", TEXTS)
        write(tmp_path / "rows.jsonl", TEXTS[:1])
        assert texts(tmp_path) == ["one"]

    def test_a_file_of_another_format_in_a_folder_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        write(tmp_path / "a.jsonl", TEXTS)
        write(tmp_path / "b/c.jsonl", [{"prompt": "x", "completion": "y"}])
        message = refused(tmp_path).message
        assert message == "b/c.jsonl, row 1: it looks like prompt_completion but the set is text"


class TestColumns:
    def test_columns_are_read_under_the_format_s_names(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"question": "2+2?", "reply": "4", "text": "no"}])
        columns = {"prompt": "question", "completion": "reply"}
        (example,) = load_examples(path, columns=columns).rows
        assert example.content == Completion("2+2?", "4")

    def test_a_column_is_no_longer_what_the_file_calls_it(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"text": "2+2?"}])
        assert load_examples(path, columns={"prompt": "text"}).format == "prompt"

    def test_two_columns_may_change_places(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [{"prompt": "4", "completion": "2+2?"}])
        swapped = {"prompt": "completion", "completion": "prompt"}
        (example,) = load_examples(path, columns=swapped).rows
        assert example.content == Completion("2+2?", "4")

    def test_a_column_that_is_not_there_is_an_error_with_those_that_are(
        self, tmp_path: Path
    ) -> None:
        path = write(tmp_path / "a.jsonl", [{"question": "q", "reply": "r"}])
        options = ReadOptions(columns={"prompt": "frage"}, where="dataset.sources[1]")
        error = refused(path, options)
        assert error.reason is Reason.BAD_DATA
        assert 'dataset.sources[1].columns reads "prompt" from a column "frage"' in error.message
        assert '(it has "question", "reply")' in error.message

    @pytest.mark.parametrize(("format_name", "whose"), [(None, "any format"), ("text", "text")])
    def test_a_field_that_the_format_does_not_have_is_an_error_with_its_fields(
        self, tmp_path: Path, format_name: str | None, whose: str
    ) -> None:
        field = "promt" if format_name is None else "prompt"
        path = write(tmp_path / "a.jsonl", [{"text": "t"}])
        error = refused(path, ReadOptions(format_name, columns={field: "text"}))
        assert error.reason is Reason.INVALID_SPEC
        assert f'dataset.columns names "{field}", which is no field of {whose}' in error.message
        assert "text" in error.next_step


class TestPlaceholders:
    def test_they_are_filled_in_nested_texts_too(self, tmp_path: Path) -> None:
        call = {"name": "f", "arguments": {"who": ["{{name}}"]}}
        messages = [
            {"role": "user", "content": "{{name}}? {{ name }} {{other}}"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": call}]},
        ]
        path = write(tmp_path / "a.jsonl", [{"messages": messages}])
        (example,) = load_examples(path, placeholders={"name": 'Ada "the first"'}).rows
        assert isinstance(example.content, Conversation)
        user, assistant = example.content.messages
        assert user["content"] == 'Ada "the first"? {{ name }} {{other}}'
        assert assistant["tool_calls"][0]["function"]["arguments"] == {"who": ['Ada "the first"']}

    def test_one_that_nobody_filled_in_is_noted_where_it_is_in_many_rows(
        self, tmp_path: Path
    ) -> None:
        rows = [{"text": f"{number} {{{{name}}}}"} for number in range(5)]
        path = write(tmp_path / "a.jsonl", [*rows, {"text": "{{once}}"}])
        (note,) = load_examples(path).notes
        assert note.startswith(
            "{{name}} stands in 5 of 6 rows as it is: say in dataset.placeholders"
        )
        assert load_examples(path, placeholders={"name": "Ada"}).notes == ()


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*TEXTS * 20, {"text": 3}])
    rows = iterate(path)
    assert [next(rows).place.row for _ in range(3)] == [1, 2, 3]
    with pytest.raises(GraftError, match="row 41"):
        list(rows)


def test_a_set_can_be_read_again_and_again(tmp_path: Path) -> None:
    reader = RowReader(write(tmp_path / "a.jsonl", TEXTS))
    assert list(reader) == list(reader)


@pytest.mark.parametrize(
    ("name", "rows", "format_name"),
    [
        ("alpaca_en_demo.json", 999, "alpaca"),
        ("alpaca_zh_demo.json", 1000, "alpaca"),
        ("identity.json", 91, "alpaca"),
        ("glaive_toolcall_en_demo.json", 300, "sharegpt"),
        ("dpo_en_demo.json", 300, "preference"),
        ("kto_en_demo.json", 300, "kto"),
        ("c4_demo.jsonl", 300, "text"),
    ],
)
def test_the_public_sets_are_read_as_they_are(name: str, rows: int, format_name: str) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here")
    examples = load_examples(SHARED / name)
    assert (len(examples.rows), examples.format) == (rows, format_name)
    assert bool(examples.notes) is (name == "identity.json")
