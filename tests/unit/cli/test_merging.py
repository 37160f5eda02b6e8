"""Merging, converting and exporting as commands, done by a worker process on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from graft.blends import Combining
from graft.digests import digest_file

from services.combining.folders import combine_folders
from services.combining.plain import Source
from tests.support.models import make_adapter
from tests.unit.cli.conftest import Graft

SPACE = ("--namespace", "merging")


@pytest.fixture
def bot(graft: Graft, tiny_base: Path, tiny_adapter: Path) -> str:
    """A version."""
    pushed = graft(*SPACE, "adapters", "push", "bot", tiny_adapter, "--base", tiny_base)
    assert pushed.code == 0, pushed.err
    return "bot:1"


@pytest.mark.training
def test_a_version_is_merged_proven_and_shown(graft: Graft, bot: str) -> None:
    made = graft(*SPACE, "merge", bot, "--into", "bot-merged", "--dtype", "float16", "--tokens", 32)
    assert made.code == 0, made.err
    assert "Stage 2: merging into the base" in made.out
    assert "A fresh process computes the same" in made.out
    assert "graft bases show bot-merged 1" in made.out
    shown = graft(*SPACE, "bases", "show", "bot-merged", 1)
    assert (shown.code, "logits_difference 0.0" in shown.out) == (0, True), shown.err
    assert "adapters/bot/versions/1" in shown.out
    assert "MERGE_REPORT.md" in shown.out


@pytest.mark.soak
@pytest.mark.training
def test_an_export_beyond_the_limit_is_refused_with_the_number_and_else_written(
    graft: Graft, bot: str, tmp_path: Path
) -> None:
    limit = ("--dtype", "bfloat16", "--max-error", 1e-6, "--tokens", 32)
    refused = graft(*SPACE, "export", bot, tmp_path / "out" / "model", *limit)
    assert (refused.code, "of their spread, and 1e-06 is the limit" in refused.err) == (4, True)
    assert not any((tmp_path / "out").iterdir())

    loose = ("--skip-check", "--json")
    exported = graft(*SPACE, "export", bot, tmp_path / "whole", *loose)
    assert exported.code == 0, exported.err
    last = json.loads(exported.out.splitlines()[-1])
    assert (last["path"], last["version"]) == (str(tmp_path / "whole"), "")
    assert {"config.json", "model.safetensors", "tokenizer.json", "MERGE_REPORT.md"} <= {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_what_is_wrong_is_said_before_a_worker_starts(
    graft: Graft, bot: str, tmp_path: Path
) -> None:
    missing = graft(*SPACE, "merge", "nobody:3", "--into", "x")
    assert (missing.code, "nobody" in missing.err) == (3, True)
    assert graft(*SPACE, "merge", f"{bot}=heavy", "--into", "x").code == 2
    unknown = graft(*SPACE, "merge", bot, "--into", "x", "--by", "stirring")
    assert (unknown.code, "ties_svd" in unknown.err) == (2, True)
    assert graft(*SPACE, "export", bot, tmp_path / "x", "--format", "zip").code == 2


def test_a_spec_is_written_for_whoever_does_it_elsewhere(
    graft: Graft, bot: str, tiny_base: Path, tmp_path: Path
) -> None:
    make_adapter(tmp_path / "other", tiny_base, seed=4)
    spec = tmp_path / "merge.yaml"
    written = graft(
        *SPACE, "merge", "bot:1=0.7", "poet:2=-0.3", "--adapter", "both", "--by", "ties",
        "--density", 0.4, "--write-spec", spec,
    )  # fmt: skip
    assert (written.code, "graft jobs submit" in written.out) == (0, True), written.err
    given = yaml.safe_load(spec.read_text())
    assert given["versions"] == [
        {"version": "bot:1", "weight": 0.7},
        {"version": "poet:2", "weight": -0.3},
    ]
    assert given["combination"] == {"kind": "COMBINATION_KIND_TIES", "density": 0.4}
    assert graft("convert", "bot:1", "-a", "plain", "--rank", 32, "--write-spec", spec).code == 0
    assert yaml.safe_load(spec.read_text())["plain_lora"] == {"rank": 32}


@pytest.mark.training
def test_a_blend_is_registered_as_a_version_with_what_it_is_made_of(
    graft: Graft, bot: str, tiny_base: Path, tmp_path: Path
) -> None:
    tone = make_adapter(tmp_path / "tone", tiny_base, seed=4, targets=("q_proj", "up_proj"))
    assert graft(*SPACE, "adapters", "push", "tone", tone, "--base", tiny_base).code == 0
    blended = graft(
        *SPACE, "adapters", "blend", "calm", "0.3*tone+0.7*bot~ties~density=0.6", "--skip-check"
    )
    assert blended.code == 0, blended.err
    assert "graft adapters show calm:1" in blended.out
    shown = graft(*SPACE, "adapters", "show", "calm:1", "--json")
    version = json.loads(shown.out)
    parents = version["lineage"]["parent_versions"]
    assert [name.split("/")[-3] for name in parents] == ["bot", "tone"]
    assert version["rank"] == 8
    sources = [Source(name, folder, weight) for name, folder, weight in (
        ("bot", tmp_path / "bot", 0.7), ("tone", tone, 0.3))]  # fmt: skip
    assert graft(*SPACE, "adapters", "pull", "bot:1", tmp_path / "bot").code == 0
    combine_folders(sources, Combining("ties", density=0.6), tmp_path / "served")
    served = digest_file(tmp_path / "served" / "adapter_model.safetensors")
    assert served in {file["digest"] for file in version["files"]}


def test_a_blend_is_named_as_requests_name_it_or_part_by_part(
    graft: Graft, bot: str, tmp_path: Path
) -> None:
    spec = tmp_path / "blend.yaml"
    parts = ("--part", "poet:2=0.3", "--part", "bot:1=0.7", "--method", "dare", "--seed", 4)
    made = []
    for how in (("0.7*bot:1+0.3*poet:2~dare~seed=4",), parts):
        written = graft(*SPACE, "adapters", "blend", "both", *how, "--write-spec", spec)
        assert written.code == 0, written.err
        made.append(yaml.safe_load(spec.read_text()))
    assert made[0] == made[1]
    assert made[0]["combination"] == {
        "kind": "COMBINATION_KIND_DARE_LINEAR", "density": 0.5, "seed": "4",
    }  # fmt: skip
    assert [one["weight"] for one in made[0]["versions"]] == [0.7, 0.3]
    for wrong, words in (
        ((), "Neither BLEND nor --part"),
        (("bot+poet", *parts), "Both BLEND and --part"),
        (("bot+poet", "--method", "ties"), "go with --part"),
        (("nan*bot+poet",), "weight of bot is 'nan'"),
        (("--part", "bot=heavy"), "'heavy' is no number"),
    ):
        refused = graft(*SPACE, "adapters", "blend", "both", *wrong)
        said = " ".join(refused.err.replace("│", " ").split())
        assert (refused.code, words in said) == (2, True), refused.err
