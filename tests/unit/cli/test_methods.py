"""`graft methods` as people and scripts see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.trainer.chat_templates import template_names
from services.trainer.methods import METHODS
from services.trainer.objectives import OBJECTIVES
from tests.support.stack import Result

Graft = Callable[..., Result]


def row(seen: Result, name: str) -> str:
    return next(line for line in seen.out.splitlines() if line.split()[:1] == [name])


def test_people_see_every_method_with_what_it_combines_with(graft: Graft) -> None:
    seen = graft("methods")
    assert seen.code == 0, seen.err
    assert all(row(seen, kind) for kind in METHODS)
    assert "0.0002" in row(seen, "lora")
    assert "hot-swapped" in row(seen, "lora")
    assert row(seen, "adalora").split()[-3:] == ["dpo,", "kto,", "reward"]
    assert "served as a base" in row(seen, "full")


def test_people_see_every_objective_and_every_template(graft: Graft) -> None:
    objectives = graft("methods", "--objectives")
    assert all(row(objectives, kind) for kind in OBJECTIVES)
    assert "by default" in row(objectives, "cpt")
    templates = graft("methods", "--templates")
    assert all(row(templates, name) for name in template_names())


def test_one_method_is_shown_whole(graft: Graft) -> None:
    seen = graft("methods", "adalora").out
    assert "LoRA that takes rank from modules" in seen
    assert "arXiv:2303.10512" in seen
    assert "not with dpo: " in seen
    setting = next(line for line in seen.splitlines() if "method.adalora.target_rank" in line)
    assert setting.split() == ["method.adalora.target_rank", "8"]
    bottleneck = graft("methods", "bottleneck").out
    assert METHODS["bottleneck"].info.quantization_note in bottleneck


def test_one_objective_is_shown_whole(graft: Graft) -> None:
    seen = graft("methods", "grpo").out
    assert "1e-05 with an adapter, 1e-06 with all parameters" in seen
    assert any(line.split() == ["objective.grpo.rewards", "required"] for line in seen.splitlines())
    assert "https://" in graft("methods", "chatml").out


def test_scripts_get_all_of_it_typed(graft: Graft) -> None:
    found = graft("methods", "--json").json()
    assert [one["kind"] for one in found["methods"]] == list(METHODS)
    assert [one["kind"] for one in found["objectives"]] == list(OBJECTIVES)
    assert [one["name"] for one in found["chat_templates"]] == list(template_names())
    lora = graft("methods", "lora", "--json").json()
    assert lora["learning_rate"] == 0.0002
    assert {"name": "rank", "default": "16", "required": False} in lora["settings"]
    assert [one["adapter_learning_rate"] for one in found["objectives"]][:2] == [None, None]


@pytest.mark.parametrize(
    ("name", "words"), [("lora-pluss", "Did you mean lora_plus?"), ("xyz", "Use one of lora, ")]
)
def test_a_name_that_is_none_is_answered_with_one_that_is(
    graft: Graft, name: str, words: str
) -> None:
    seen = graft("methods", name)
    assert seen.code != 0
    assert name in seen.err
    assert words in seen.err
