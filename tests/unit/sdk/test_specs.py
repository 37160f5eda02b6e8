"""Job specs as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from graft.errors import GraftError, Reason
from graft.specs import TrainOptions, build_spec


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


def test_what_is_missing_is_named_with_its_option() -> None:
    with pytest.raises(GraftError, match=r"base.source \(base\) and output.adapter \(adapter\)"):
        build_spec(None, {"data": "/x"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: [", "neither YAML nor JSON"),
        ("- 1", "holds no job spec"),
        ("bas: {}", 'no field named "bas"'),
        ("output: {adapter: 3}", "adapter"),
        ("hyperparameters: {epochs: many}", "epochs"),
    ],
)
def test_a_file_that_is_no_spec_says_why(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(GraftError, match=said) as caught:
        build_spec(path, {})
    assert caught.value.reason is Reason.INVALID_SPEC


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraftError, match="No such file"):
        build_spec(tmp_path / "none.yaml", {})
