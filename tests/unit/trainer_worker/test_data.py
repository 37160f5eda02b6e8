"""The rows that a job trains on: sets mixed by weight, cleaned by declared steps, some held out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from graft.digests import digest_file
from graft.errors import GraftError, Reason
from graft.trainer.v1 import job_spec_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.formats import (
    Completion,
    Content,
    Conversation,
    Example,
    Labelled,
    PlainText,
)
from services.trainer.formats.cleaning import content_key
from services.trainer.formats.mixing import mix, mixed_sizes
from services.trainer.objectives import OBJECTIVES
from services.trainer.run.data import Data, check_local_data, read_data
from services.trainer.sources import SetOpener
from services.trainer.sources.local import LocalSource
from services.trainer.spec.dataset import parse_dataset

Read = Callable[..., Data]
SFT = OBJECTIVES["sft"].info


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def read(tmp_path: Path, log: list[str]) -> Read:
    """Reads a spec's dataset, given as keyword arguments, as a worker does."""

    def run(seed: int = 7, **dataset: Any) -> Data:
        spec = parse_dataset(ParseDict(dataset, pb.DatasetSpec()))
        opener = SetOpener((LocalSource(),), tmp_path / "work")
        return read_data(spec, SFT, seed, opener, log.append)

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes texts as a set; returns its path."""

    def run(name: str, *texts: str | None) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        return str(path)

    return run


Write = Callable[..., str]


def texts(rows: list[Example]) -> list[str]:
    return [row.content.text for row in rows if isinstance(row.content, PlainText)]


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def refused(read: Read, **dataset: Any) -> GraftError:
    with pytest.raises(GraftError) as caught:
        read(**dataset)
    assert caught.value.next_step
    return caught.value


class TestMixing:
    def test_without_weights_every_row_is_used_once(self, read: Read, write: Write) -> None:
        data = read(sources=[{"path": write("a.jsonl", "a", "b")}, {"path": write("b.jsonl", "c")}])
        assert texts(data.training) == ["a", "b", "c"]

    def test_small_sets_are_repeated_until_the_shares_are_the_weights(
        self, read: Read, write: Write, log: list[str]
    ) -> None:
        large, small = write("a.jsonl", *numbered("a", 30)), write("b.jsonl", *numbered("b", 4))
        sources = [{"path": large, "weight": 3}, {"path": small, "weight": 1}]
        rows = Counter(texts(read(sources=sources).training))
        assert all(rows[text] == 1 for text in numbered("a", 30))
        assert sum(rows[text] for text in numbered("b", 4)) == 10
        assert {rows[text] for text in numbered("b", 4)} == {2, 3}
        assert "Mixed by weight: 40 rows of 34 different ones." in log

    def test_the_same_seed_repeats_the_same_rows(self, read: Read, write: Write) -> None:
        large, small = write("a.jsonl", *numbered("a", 30)), write("b.jsonl", *numbered("b", 20))
        sources = [{"path": large, "weight": 1}, {"path": small, "weight": 1}]
        mixes = [texts(read(seed=seed, sources=sources).training) for seed in (1, 1, 2)]
        assert mixes[0] == mixes[1]
        assert mixes[0] != mixes[2]

    @given(
        sizes=st.lists(st.integers(1, 500), min_size=1, max_size=5),
        weights=st.lists(st.floats(0.1, 10), min_size=5, max_size=5),
    )
    def test_each_share_is_right_within_one_row(
        self, sizes: list[int], weights: list[float]
    ) -> None:
        weights = weights[: len(sizes)]
        try:
            mixed = mixed_sizes(sizes, weights)
        except GraftError:
            return
        assert all(count >= size for count, size in zip(mixed, sizes, strict=True))
        unit = max(size / weight for size, weight in zip(sizes, weights, strict=True))
        for count, weight in zip(mixed, weights, strict=True):
            assert abs(count - unit * weight) < 1

    def test_a_weight_that_repeats_a_set_beyond_reason_is_refused(self) -> None:
        with pytest.raises(
            GraftError, match=r"sources\[1\]\.weight 1 repeats its 1 rows"
        ) as caught:
            mix([["a"] * 5, ["b"]], [0.001, 1], seed=0)
        assert caught.value.reason is Reason.INVALID_SPEC

    def test_a_row_that_is_held_out_is_in_no_repetition(self, read: Read, write: Write) -> None:
        large, small = write("a.jsonl", *numbered("a", 40)), write("b.jsonl", *numbered("b", 8))
        sources = [{"path": large, "weight": 1}, {"path": small, "weight": 1}]
        data = read(sources=sources, eval_fraction=0.25)
        assert len(data.held_out) == 12
        assert not set(texts(data.held_out)) & set(texts(data.training))

    def test_places_name_the_set_where_there_are_several(self, read: Read, write: Write) -> None:
        paths = [write("a/rows.jsonl", "x"), write("b/rows.jsonl", "y")]
        data = read(sources=[{"path": path} for path in paths])
        assert [str(row.place) for row in data.training] == [
            "sources[0] rows.jsonl, row 1",
            "sources[1] rows.jsonl, row 1",
        ]

    def test_sets_may_be_in_different_formats(
        self, read: Read, write: Write, tmp_path: Path
    ) -> None:
        other = tmp_path / "b.json"
        other.write_text('[{"prompt": "x", "completion": "y"}]')
        data = read(sources=[{"path": write("a.jsonl", "x")}, {"path": str(other)}])
        assert data.format == "text, prompt_completion"


class TestCleaning:
    def test_rows_that_say_the_same_are_left_out_across_sets(
        self, read: Read, write: Write, log: list[str]
    ) -> None:
        sources = [
            {"path": write("a.jsonl", "Hello  there", "x")},
            {"path": write("b.jsonl", " Hello\nthere ", "cafe\u0301", "caf\u00e9", "y")},
        ]
        data = read(sources=sources, cleaning={"dedupe": True})
        assert texts(data.training) == ["Hello  there", "x", "cafe\u0301", "y"]
        assert data.cleaning.figures() == {"rows_removed_dedupe": 2}
        assert "dedupe: 2 rows left out, because an earlier row says the same " in "\n".join(log)
        assert "sources[1] b.jsonl, row 1; sources[1] b.jsonl, row 3" in "\n".join(log)

    def test_empty_rows_are_an_error_or_left_out_as_declared(
        self, read: Read, write: Write
    ) -> None:
        path = write("a.jsonl", "x", " ", None, "y")
        error = refused(read, path=path)
        assert error.message.startswith('a.jsonl, row 2: its field "text" is empty')
        assert "dataset.cleaning.drop_empty" in error.next_step
        data = read(path=path, cleaning={"dropEmpty": True})
        assert texts(data.training) == ["x", "y"]
        assert data.cleaning.figures() == {"rows_removed_drop_empty": 2}

    def test_a_row_of_a_wrong_type_is_an_error_whatever_is_left_out(
        self, read: Read, tmp_path: Path
    ) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": 3}\n')
        error = refused(read, path=str(tmp_path / "a.jsonl"), cleaning={"dropEmpty": True})
        assert "row 2" in error.message

    def test_training_rows_that_are_evaluated_with_are_left_out(
        self, read: Read, write: Write
    ) -> None:
        data = read(
            path=write("a.jsonl", "x", "y", "z"),
            evalSources=[{"path": write("b.jsonl", "y ", "w")}],
            cleaning={"dropEvalOverlap": True},
        )
        assert texts(data.training) == ["x", "z"]
        assert texts(data.held_out) == ["y ", "w"]
        assert data.cleaning.figures() == {"rows_removed_drop_eval_overlap": 1}

    def test_a_step_that_finds_nothing_is_recorded_too(self, read: Read, write: Write) -> None:
        data = read(path=write("a.jsonl", "x"), cleaning={"dedupe": True, "dropEmpty": True})
        assert data.cleaning.figures() == {"rows_removed_dedupe": 0, "rows_removed_drop_empty": 0}

    def test_contents_of_different_kinds_or_roles_do_not_say_the_same(self) -> None:
        def turn(role: str, text: str, **more: Any) -> dict[str, Any]:
            return {"role": role, "content": text, **more}

        call = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
        different: list[Content] = [
            PlainText("a b"),
            Completion("a", "b"),
            Completion("a b", ""),
            Conversation((turn("user", "a"), turn("assistant", "b"))),
            Conversation((turn("assistant", "a"), turn("user", "b"))),
            Conversation((turn("user", "a"), turn("assistant", "b", tool_calls=call))),
            Labelled(Completion("a", "b"), True),
            Labelled(Completion("a", "b"), False),
        ]
        assert len({content_key(content) for content in different}) == len(different)


class TestHeldOut:
    def test_one_row_can_be_trained_on_but_not_split(self, read: Read, write: Write) -> None:
        path = write("a.jsonl", "only")
        assert texts(read(path=path).training) == ["only"]
        error = refused(read, path=path, eval_fraction=0.2)
        assert error.message == "eval_fraction 0.2 of 1 rows holds out 0"

    def test_an_evaluation_set_that_is_empty_after_its_filters_is_an_error(
        self, read: Read, write: Write
    ) -> None:
        error = refused(
            read,
            path=write("a.jsonl", "x"),
            evalSources=[{"path": write("b.jsonl", "", " ")}],
            cleaning={"dropEmpty": True},
        )
        assert error.message == (
            "No row of b.jsonl is left that could be evaluated with (drop_empty left out 2)"
        )

    def test_a_training_set_that_is_empty_after_its_filters_is_an_error(
        self, read: Read, write: Write
    ) -> None:
        error = refused(
            read,
            path=write("a.jsonl", "x"),
            evalSources=[{"path": write("b.jsonl", "x")}],
            cleaning={"dropEvalOverlap": True},
        )
        assert "No row of a.jsonl is left that could be trained on" in error.message

    def test_data_that_the_objective_cannot_use_is_named_with_its_format(
        self, read: Read, tmp_path: Path
    ) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"prompt": "x", "chosen": "a", "rejected": "b"}\n')
        message = refused(read, path=str(path)).message
        assert "a.jsonl, row 1: it is preference data, and supervised fine-tuning needs" in message


class TestDigest:
    def test_one_plain_file_has_its_own(self, read: Read, write: Write) -> None:
        path = write("a.jsonl", "x")
        assert read(path=path).digest == digest_file(Path(path))

    def test_everything_that_decides_which_rows_there_are_changes_it(
        self, read: Read, write: Write
    ) -> None:
        one, two = write("a.jsonl", "x", "y"), write("b.jsonl", "z")
        digests = [
            read(path=one).digest,
            read(path=one, max_rows=1).digest,
            read(path=one, placeholders={"name": "Ada"}).digest,
            read(path=one, columns={"text": "text"}).digest,
            read(sources=[{"path": one}, {"path": two}]).digest,
            read(sources=[{"path": two}, {"path": one}]).digest,
            read(sources=[{"path": one, "weight": 1}, {"path": two, "weight": 2}]).digest,
            read(path=one, evalSources=[{"path": two}]).digest,
        ]
        assert len(set(digests)) == len(digests)
        assert read(sources=[{"path": one}, {"path": two}]).digest == digests[4]


class TestStreaming:
    def test_rows_come_without_end_and_the_same_each_time(self, read: Read, write: Write) -> None:
        data = read(path=write("a.jsonl", "x", "y"), streaming=True)
        assert data.training == []
        assert data.stream is not None
        for _ in range(2):
            assert texts(list(islice(data.stream(), 5))) == ["x", "y", "x", "y", "x"]

    def test_sets_take_turns_by_their_weights(self, read: Read, write: Write) -> None:
        sources = [
            {"path": write("a.jsonl", *numbered("a", 9)), "weight": 2},
            {"path": write("b.jsonl", "b"), "weight": 1},
        ]
        data = read(sources=sources, streaming=True)
        assert data.stream is not None
        rows = texts(list(islice(data.stream(), 30)))
        assert all(rows[at : at + 3].count("b") == 1 for at in range(0, 30, 3))

    def test_declared_steps_are_taken_while_it_streams(self, read: Read, write: Write) -> None:
        data = read(
            path=write("a.jsonl", "x", "", "x", "y", "z"),
            evalSources=[{"path": write("b.jsonl", "y")}],
            cleaning={"dedupe": True, "dropEmpty": True, "dropEvalOverlap": True},
            streaming=True,
        )
        assert data.stream is not None
        assert texts(list(islice(data.stream(), 4))) == ["x", "z", "x", "z"]
        assert data.cleaning.figures() == {
            "rows_removed_dedupe": 1,
            "rows_removed_drop_empty": 1,
            "rows_removed_drop_eval_overlap": 1,
        }

    def test_a_stream_without_a_row_ends_with_an_error(self, read: Read, write: Write) -> None:
        data = read(path=write("a.jsonl", " "), cleaning={"dropEmpty": True}, streaming=True)
        assert data.stream is not None
        with pytest.raises(GraftError, match=r"No row of a\.jsonl is left"):
            next(data.stream())


@pytest.mark.parametrize(
    ("dataset", "field", "why"),
    [
        ({"sources": [{"path": "a", "weight": -1}]}, "sources[0].weight", "0 or above"),
        ({"sources": [{"path": "a", "weight": "NaN"}]}, "sources[0].weight", "0 or above"),
        (
            {"sources": [{"path": "a", "weight": 1}, {"path": "b"}]},
            "sources[1].weight",
            "because other sets have weights",
        ),
        (
            {"path": "a", "evalSources": [{"path": "b", "weight": 1}]},
            "eval_sources[0].weight",
            "every row is evaluated with once",
        ),
        (
            {"path": "a", "cleaning": {"dropEvalOverlap": True}},
            "cleaning.drop_eval_overlap",
            "no rows to evaluate with",
        ),
        (
            {"path": "a", "streaming": True, "evalFraction": 0.1},
            "eval_fraction",
            "left out with dataset.streaming",
        ),
        ({"path": "a", "sources": [{"path": "b"}]}, "path", "because dataset.sources are given"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_spec(
    dataset: dict[str, Any], field: str, why: str
) -> None:
    with pytest.raises(GraftError) as caught:
        parse_dataset(ParseDict(dataset, pb.DatasetSpec()))
    assert caught.value.reason is Reason.INVALID_SPEC
    assert caught.value.metadata["field"] == f"dataset.{field}"
    assert why in caught.value.message
    assert caught.value.next_step


def test_what_is_elsewhere_is_not_fetched_to_check_what_is_here(write: Write) -> None:
    bad = write("bad.jsonl", "x", "")
    spec = {"sources": [{"path": "hf://org/set"}, {"path": "s3://bucket/x"}, {"path": bad}]}
    with pytest.raises(GraftError, match=r"sources\[2\] bad\.jsonl, row 2"):
        check_local_data(parse_dataset(ParseDict(spec, pb.DatasetSpec())), SFT)


def test_a_path_that_is_nowhere_is_bad_data(read: Read) -> None:
    error = refused(read, path="/no/such.jsonl")
    assert (error.reason, error.message) == (
        Reason.BAD_DATA,
        "There is no file or folder /no/such.jsonl",
    )
