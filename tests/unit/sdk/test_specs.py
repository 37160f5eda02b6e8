"""Job specs as people write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
from google.protobuf.json_format import MessageToDict
from graft.errors import GraftError, Reason
from graft.specs import TrainOptions, build_spec
from graft.trainer.v1 import job_spec_pb2 as pb

import services.trainer.run.__main__ as worker
from services.trainer.run.settings import read_settings


def test_options_reach_their_fields_and_relative_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    spec = build_spec(
        None,
        TrainOptions(
            data="rows.jsonl",
            base="base",
            adapter="bot",
            alias="production",
            format="prompt-completion",
            qlora=True,
            rank=8,
            target_modules=["q_proj"],
            epochs=2,
            learning_rate=1e-3,
            packing=True,
            checkpoint_every_steps=5,
            slots=2,
            seed=7,
        ),
    )
    assert MessageToDict(spec, preserving_proto_field_name=True) == {
        "base": {"source": str(tmp_path / "base"), "quantization": "QUANTIZATION_NF4"},
        "dataset": {
            "path": str(tmp_path / "rows.jsonl"),
            "format": "DATA_FORMAT_PROMPT_COMPLETION",
        },
        "method": {"lora": {"rank": 8, "target_modules": ["q_proj"]}},
        "hyperparameters": {"epochs": 2.0, "learning_rate": 1e-3, "packing": True},
        "resources": {"slots": 2},
        "checkpointing": {"every_steps": 5},
        "output": {"adapter": "bot", "alias": "production"},
        "seed": "7",
    }


def test_a_hub_id_stays_a_hub_id() -> None:
    spec = build_spec(None, {"data": "/x", "base": "org/model", "adapter": "bot"})
    assert spec.base.source == "org/model"


@pytest.mark.parametrize("name", ["spec.yaml", "spec.json"])
def test_options_override_a_file(tmp_path: Path, name: str) -> None:
    body = (
        '{"base": {"source": "org/model"}, "dataset": {"path": "/x"}, "output": {"adapter": "bot"},'
        ' "method": {"lora": {"rank": 4, "targetModules": ["q_proj", "v_proj"]}}}'
    )
    (tmp_path / name).write_text(body)
    spec = build_spec(tmp_path / name, {"adapter": "other", "target_modules": ["k_proj"]})
    assert spec.output.adapter == "other"
    assert spec.method.lora.rank == 4
    assert list(spec.method.lora.target_modules) == ["k_proj"]


_FULL = {
    "base": {"source": "org/model", "quantization": "nf4"},
    "dataset": {"path": "/x", "format": "text", "eval_fraction": 0.1, "max_rows": 9},
    "method": {"lora": {"dropout": 0.1, "target_modules": ["q_proj"]}},
    "hyperparameters": {"packing": True, "warmup_ratio": 0.1, "gradient_checkpointing": True},
    "output": {"adapter": "bot", "alias": "production"},
    "seed": 7,
}


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (TrainOptions(seed=0), "seed", 0),
        (TrainOptions(dropout=0.0), "method.lora.dropout", 0.0),
        (TrainOptions(target_modules=[]), "method.lora.target_modules", []),
        (TrainOptions(eval_fraction=0), "dataset.eval_fraction", 0.0),
        (TrainOptions(max_rows=0), "dataset.max_rows", 0),
        (TrainOptions(format=""), "dataset.format", pb.DATA_FORMAT_UNSPECIFIED),
        (TrainOptions(packing=False), "hyperparameters.packing", False),
        (TrainOptions(warmup_ratio=0), "hyperparameters.warmup_ratio", 0.0),
        (TrainOptions(qlora=False), "base.quantization", pb.QUANTIZATION_NONE),
        (TrainOptions(alias=""), "output.alias", ""),
    ],
)
def test_an_option_of_zero_false_or_nothing_overrides_the_file_and_nothing_else(
    options: TrainOptions, field: str, value: object
) -> None:
    before, spec = build_spec(_FULL, {}), build_spec(_FULL, options)
    assert _at(before, field) != value
    assert _at(spec, field) == value
    path, _, name = field.rpartition(".")
    for message in (before, spec):
        _at(message, path).ClearField(name)
    assert spec == before


def test_data_replaces_data_that_was_uploaded() -> None:
    uploaded = {"blob_digest": "sha256:" + "0" * 64, "blob_name": "rows.jsonl"}
    spec = build_spec({**_FULL, "dataset": uploaded}, {"data": "/y"})
    assert spec.dataset == pb.DatasetSpec(path="/y")


def test_an_option_of_the_wrong_type_names_its_field() -> None:
    with pytest.raises(GraftError, match=r"target_modules is 'q_proj'; it must be a list of text"):
        build_spec(_FULL, {"target_modules": "q_proj"})
    with pytest.raises(GraftError, match=r"epochs is 'many'; it must be a number"):
        build_spec(_FULL, {"epochs": "many"})  # type: ignore[typeddict-item]
    with pytest.raises(GraftError, match=r"no option max_step\. Did you mean max_steps"):
        build_spec(_FULL, {"max_step": 1})  # type: ignore[typeddict-unknown-key]


def _at(spec: pb.JobSpec, field: str) -> Any:
    found: Any = spec
    for part in field.split(".") if field else ():
        found = getattr(found, part)
    return found


def test_what_is_missing_is_named_with_its_option() -> None:
    with pytest.raises(GraftError, match=r"base.source and output.adapter") as caught:
        build_spec(None, {"data": "/x"})
    assert "--base FOLDER and --adapter NAME" in caught.value.next_step


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("spec.yaml", "base: {source: org/model, quantization: nf4}", None),
        ("spec.yaml", "dataset: {path: /x, format: prompt-completion}", None),
        ("spec.json", '{"method": {"lora": {"targetModules": ["q_proj"]}}}', None),
        ("spec.yaml", "base: [", "is not YAML at line 1"),
        ("spec.json", "{", "is not JSON at line 1"),
        ("spec.yaml", "- 1", "holds a list, not fields"),
        ("spec.yaml", "bas: {}", "no field bas. Did you mean base"),
        ("spec.yaml", "base: {quantization: nf5}", "Did you mean nf4"),
        ("spec.yaml", "output: {adapter: 3}", "output.adapter is 3; it must be a text"),
        ("spec.yaml", "hyperparameters: {epochs: many}", "hyperparameters.epochs is 'many'"),
    ],
)
def test_a_file_says_the_same_to_the_client_and_to_the_worker(
    tmp_path: Path, name: str, text: str, said: str | None
) -> None:
    path = tmp_path / name
    path.write_text(text)
    by_client, by_worker = _client_reads(path), _worker_reads(path)
    assert by_client == by_worker
    if said is None:
        assert isinstance(by_client, pb.JobSpec)
    else:
        assert said in str(by_client)


def _client_reads(path: Path) -> pb.JobSpec | str:
    with patch("graft.specs._check"):
        try:
            return build_spec(path, {})
        except GraftError as error:
            return str(error)


def _worker_reads(path: Path) -> pb.JobSpec | str:
    """What `python -m services.trainer.run` takes from the file, or what it says is wrong."""
    read: list[pb.JobSpec] = []

    def keep(spec: pb.JobSpec) -> None:
        read.append(spec)
        raise GraftError(Reason.INVALID_SPEC, "read", next_step="Stop here.")

    with patch.object(worker, "parse_spec", keep):
        settings = read_settings({}, path)
        _, finished = worker.attempt(path, settings, Mock(), Mock(), Mock())
    return read[0] if read else finished.message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraftError, match="There is no spec file"):
        build_spec(tmp_path / "none.yaml", {})
    with pytest.raises(GraftError, match=r"cannot be read \(Is a directory\)"):
        build_spec(tmp_path, {})
