"""An adapter covers the layers that its configuration says; what PEFT makes is admitted."""

from __future__ import annotations

import numpy as np
import pytest

from services.registry.domain import BaseContent, Fingerprint, Module
from tests.support.admission import FINGERPRINT, Folder, admit_to, refusal_of

LAYERS = 4
SHAPES = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (64, 32), "mlp.up_proj": (64, 128)}


def base(prefix: str = "model.") -> BaseContent:
    """Four layers; only the odd ones have experts."""
    modules = [
        Module(f"{prefix}layers.{layer}.{name}", *shape)
        for layer in range(LAYERS)
        for name, shape in SHAPES.items()
    ]
    modules += [
        Module(f"{prefix}layers.{layer}.mlp.experts.{expert}.w1", 64, 96)
        for layer in (1, 3)
        for expert in range(2)
    ]
    return BaseContent(
        "namespaces/default/bases/deep", Fingerprint(FINGERPRINT, "", "", ""), "{}",
        [*modules, Module(f"{prefix}embed_tokens", 64, 1024)],
    )  # fmt: skip


def adapter(*paths: str, **config: object) -> Folder:
    """A right adapter of these modules of base(), by their paths after "model.layers."."""
    shapes = {module.path: module for module in base().modules}
    tensors = {}
    for path in paths:
        module = shapes[f"model.layers.{path}"]
        name = f"base_model.model.{module.path}"
        tensors[f"{name}.lora_A.weight"] = np.ones((4, module.in_features))
        tensors[f"{name}.lora_B.weight"] = np.ones((module.out_features, 4))
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    return Folder(tensors, said)


def in_layers(*layers: int, name: str = "self_attn.q_proj") -> list[str]:
    """That module in these layers."""
    return [f"{layer}.{name}" for layer in layers]


async def test_a_target_in_every_layer_is_reported_as_such() -> None:
    report = (await admit_to(base(), adapter(*in_layers(0, 1, 2, 3)))).report
    assert {check.name: check.detail for check in report.checks}[
        "layer-coverage"
    ] == "layers 0-3: 4 of 4"


@pytest.mark.parametrize("missing", range(LAYERS))
async def test_a_layer_that_is_missing_is_named(missing: int) -> None:
    folder = adapter(*in_layers(*(layer for layer in range(LAYERS) if layer != missing)))
    error = await refusal_of(base(), folder)
    assert error.metadata["check"] == "layer-coverage"
    assert error.metadata["layer"] == str(missing)
    assert (
        error.metadata["tensor"]
        == f"base_model.model.model.layers.{missing}.self_attn.q_proj.lora_A.weight"
    )
    assert f"layer {missing} of the base" in error.message


async def test_one_of_two_targets_cut_short_is_found() -> None:
    folder = adapter(
        *in_layers(0, 1, 2, 3), *in_layers(0, 1, 2, name="mlp.up_proj"),
        target_modules=["q_proj", "up_proj"],
    )  # fmt: skip
    error = await refusal_of(base(), folder)
    assert "model.layers.3.mlp.up_proj.lora_A" in error.metadata["tensor"]


@pytest.mark.parametrize("pattern", [None, "layers", ["layers"], "model.layers"])
async def test_layers_that_are_chosen_need_to_be_there_and_no_others(pattern: object) -> None:
    chosen = {"layers_to_transform": [1, 2], "layers_pattern": pattern}
    report = (await admit_to(base(), adapter(*in_layers(1, 2), **chosen))).report
    details = {check.name: check.detail for check in report.checks}
    assert details["layer-coverage"] == "layers 1-2: 2 of 4, as layers_to_transform says"
    error = await refusal_of(base(), adapter(*in_layers(1), **chosen))
    assert (error.metadata["check"], error.metadata["layer"]) == ("layer-coverage", "2")
    error = await refusal_of(base(), adapter(*in_layers(1, 2, 3), **chosen))
    assert (error.metadata["check"], "layers.3" in error.metadata["tensor"]) == ("targets", True)


async def test_a_layer_that_the_base_does_not_have_is_not_covered() -> None:
    error = await refusal_of(base(), adapter(*in_layers(0), layers_to_transform=[0, 99]))
    assert "says layer 99" in error.message


async def test_one_layer_may_be_written_as_a_number() -> None:
    await admit_to(base(), adapter(*in_layers(3), layers_to_transform=3))


async def test_targets_named_by_their_whole_path_need_no_other_layer() -> None:
    paths = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 2)]
    await admit_to(base(), adapter(*in_layers(0, 2), target_modules=paths))


async def test_excluded_modules_need_no_tensors_and_may_have_none() -> None:
    excluded = {"exclude_modules": ["layers.1.self_attn.q_proj"]}
    await admit_to(base(), adapter(*in_layers(0, 2, 3), **excluded))
    error = await refusal_of(base(), adapter(*in_layers(0, 1, 2, 3), **excluded))
    assert "exclude_modules" in error.message


async def test_a_module_that_only_some_layers_have_is_wanted_in_those() -> None:
    experts = [f"{layer}.mlp.experts.{expert}.w1" for layer in (1, 3) for expert in (0, 1)]
    await admit_to(base(), adapter(*experts, target_modules=["w1"]))
    error = await refusal_of(base(), adapter(*experts[:-1], target_modules=["w1"]))
    assert "layers.3.mlp.experts.1.w1" in error.metadata["tensor"]


async def test_a_pattern_chooses_layers_and_the_report_says_so() -> None:
    folder = adapter(*in_layers(0, 3), target_modules=r".*layers\.(0|3)\..*q_proj")
    report = (await admit_to(base(), folder)).report
    details = {check.name: check.detail for check in report.checks}
    assert details["layer-coverage"] == "layers 0, 3: 2 of 4; a pattern chose them"


async def test_all_linear_means_every_layer() -> None:
    error = await refusal_of(base(), adapter(*in_layers(0, 1, 2), target_modules="all-linear"))
    assert error.metadata["layer"] == "3"


async def test_a_base_stored_without_its_models_prefix_is_the_same_base() -> None:
    await admit_to(base(prefix=""), adapter(*in_layers(0, 1, 2, 3)))
    error = await refusal_of(base(prefix=""), adapter(*in_layers(0, 1, 3)))
    assert "model.layers.2.self_attn.q_proj" in error.metadata["tensor"]


async def test_a_target_that_the_base_does_not_have_is_told_from_one_without_tensors() -> None:
    folder = adapter(*in_layers(0, 1, 2, 3), target_modules=["q_proj", "w9"])
    assert "bases/deep has no such module" in (await refusal_of(base(), folder)).message
    folder = adapter(*in_layers(0, 1, 2, 3), target_modules=["q_proj", "v_proj"])
    assert "no tensor is of such a module" in (await refusal_of(base(), folder)).message


async def test_zero_matrices_and_patterns_of_nothing_are_noted() -> None:
    folder = adapter(*in_layers(0, 1, 2, 3), alpha_pattern={"k_proj": 4})
    folder.tensors["base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight"][:] = 0
    notes = (await admit_to(base(), folder)).report.checks[-1]
    assert notes.name == "notes"
    assert "1 lora_B matrices are zero" in notes.detail
    assert "model.layers.2.self_attn.q_proj" in notes.detail
    assert "alpha_pattern names modules that are not adapted: k_proj" in notes.detail


async def test_the_report_names_ranks_and_the_largest_value() -> None:
    folder = adapter(
        *in_layers(0, 1, 2, 3), rank_pattern={"layers.3.self_attn.q_proj": 2}, use_rslora=True
    )
    name = "base_model.model.model.layers.3.self_attn.q_proj"
    folder.tensors[f"{name}.lora_A.weight"] = np.full((2, 64), -7.5)
    folder.tensors[f"{name}.lora_B.weight"] = np.ones((64, 2))
    details = {c.name: c.detail for c in (await admit_to(base(), folder)).report.checks}
    assert details["ranks"].startswith("rank 2 in q_proj (1 modules), rank 4 in q_proj (3 modules)")
    assert details["finite-values"].endswith(f"the largest is 7.5, in {name}.lora_A.weight")
    assert "alpha / sqrt(r)" in details["adapter-config"]


async def test_thirty_thousand_names_in_a_pattern_cost_little() -> None:
    many = {f"layers.{number}.nothing": 3 for number in range(30_000)}
    await admit_to(base(), adapter(*in_layers(0, 1, 2, 3), rank_pattern=many))
