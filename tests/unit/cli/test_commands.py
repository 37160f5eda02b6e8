"""Every command against running services, for people and for scripts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.stack import Stack
from tests.unit.cli.conftest import Graft


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"prompt": f"question {number}", "completion": "yes"} for number in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pushed(
    graft: Graft, tiny_base: Path, tiny_adapter: Path, request: pytest.FixtureRequest
) -> str:
    """An adapter of this test's own with one version."""
    name = str(request.node.name).replace("_", "-").removeprefix("test-")[:40].strip("-")
    result = graft("adapters", "push", name, tiny_adapter, "--base", tiny_base)
    assert result.code == 0, result.err
    return name


def test_training_prints_states_figures_a_curve_and_what_to_do_next(
    graft: Graft, rows: Path, tiny_base: Path
) -> None:
    result = graft("train", rows, "--base", tiny_base, "--adapter", "bot", "--rank", 8)
    assert result.code == 0, result.err
    assert "running: Attempt 1 starts" in result.out
    assert "step 5/5  loss 0.2000  1,000 tokens/s" in result.out
    assert "█" in result.out
    assert "made bot:1" in result.out


def test_training_for_a_script_prints_one_json_object_per_line(
    graft: Graft, rows: Path, tiny_base: Path
) -> None:
    # Without --base it is the one that is served.
    result = graft("train", rows, "-a", "bot", "--json")
    events = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 0
    assert [events[0]["event"], events[-1]["event"]] == ["created", "end"]
    assert [event["metrics"]["step"] for event in events if event["event"] == "metrics"][-1] == 5
    assert events[-1]["job"]["state"] == "SUCCEEDED"
    assert events[-1]["job"]["spec"]["base"]["source"] == str(tiny_base)


def test_data_that_cannot_be_used_ends_with_65_and_names_the_row(
    graft: Graft, tmp_path: Path, tiny_base: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n')
    result = graft("train", bad, "--base", tiny_base, "--adapter", "bot")
    assert result.code == 65
    assert "row 2" in result.out
    assert "completion" in result.out
    assert "graft jobs logs" in result.out


def test_a_job_file_and_a_detached_job_that_is_watched_later(
    graft: Graft, rows: Path, tiny_base: Path, tmp_path: Path
) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(f"base: {{source: {tiny_base}}}\ndataset: {{path: {rows}}}\n")
    created = graft("train", "-f", spec, "-a", "detached", "--detach", "--json")
    job = json.loads(created.out)["job"].rpartition("/")[2]
    assert graft("jobs", "watch", job).code == 0
    shown = json.loads(graft("jobs", "get", job, "--json").out)
    assert (shown["state"], shown["spec"]["output"]["adapter"]) == ("SUCCEEDED", "detached")
    assert "succeeded" in graft("jobs", "get", job).out
    assert job in graft("jobs", "list").out
    assert job in [one["name"].rpartition("/")[2] for one in graft("jobs", "list", "--json").json()]
    assert "checkpoint at step 5" in graft("jobs", "logs", job).out
    assert "loss over 5 reports" in graft("jobs", "curve", job).out
    assert graft("jobs", "curve", job, "-o", tmp_path / "loss.png").code == 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    again = graft("jobs", "cancel", job)
    assert again.code == 4
    assert "Error:" in again.err


def test_options_of_zero_and_no_override_a_job_file(
    graft: Graft, rows: Path, tiny_base: Path, tmp_path: Path
) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(
        f"base: {{source: {tiny_base}, quantization: nf4}}\n"
        f"dataset: {{path: {rows}, eval_fraction: 0.2}}\n"
        "hyperparameters: {packing: true, epochs: 2}\n"
        "output: {adapter: zero, alias: production}\nseed: 7\n"
    )
    options = ("--seed", 0, "--eval-fraction", 0, "--alias", "", "--no-packing", "--no-qlora")
    created = graft("train", "-f", spec, *options, "--detach", "--json")
    assert created.code == 0, created.err
    stored = graft("jobs", "get", json.loads(created.out)["job"], "--json").json()["spec"]
    assert stored["base"]["quantization"] == "QUANTIZATION_NONE"
    assert stored["hyperparameters"] == {"epochs": 2.0, "packing": False}
    assert stored["output"] == {"adapter": "zero"}
    assert "eval_fraction" not in stored["dataset"]
    assert "seed" not in stored


def test_adapters_are_listed_shown_and_pulled(graft: Graft, pushed: str, tmp_path: Path) -> None:
    assert pushed in graft("adapters", "list").out
    assert pushed in graft("adapters", "list", "--json").out
    assert "rank 8" in graft("adapters", "show", pushed).out
    assert graft("adapters", "show", f"{pushed}:1", "--json").json()["number"] == 1
    assert "pushed" in graft("adapters", "versions", pushed).out
    pulled = graft("adapters", "pull", pushed, tmp_path / "new")
    assert (pulled.code, (tmp_path / "new/adapter_model.safetensors").is_file()) == (0, True)
    assert graft("adapters", "pull", pushed, tmp_path / "new").code == 4


def test_an_alias_moves_only_from_where_it_is_expected(
    graft: Graft, pushed: str, tiny_adapter: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    shutil.copytree(tiny_adapter, second)
    (second / "README.md").write_text("another")
    assert graft("adapters", "push", pushed, second, "--json").json()["number"] == 2
    first = graft("adapters", "promote", f"{pushed}:1", "--expect", 0, "--reason", "start")
    assert (first.code, "names version 1" in first.out) == (0, True)
    moved = graft("adapters", "promote", pushed, 2, "--expect", 2)
    assert (moved.code, "Next:" in moved.err) == (4, True)
    assert graft("adapters", "promote", pushed, 2, "--expect", 1).code == 0
    assert "names version 1 (before: 2)" in graft("adapters", "rollback", pushed).out
    assert "start" in graft("adapters", "history", pushed).out
    assert len(graft("adapters", "history", pushed, "--json").json()) == 3


def test_promoting_without_a_version_says_where_to_find_one(graft: Graft) -> None:
    result = graft("adapters", "promote", "bot")
    assert (result.code, "graft adapters versions bot" in result.err) == (2, True)


def test_bases_are_added_and_listed(graft: Graft, tiny_base: Path) -> None:
    assert graft("bases", "add", tiny_base, "--name", "other").code == 0
    assert "other" in graft("bases", "list").out
    assert "other" in graft("bases", "list", "--json").out


def test_models_and_what_the_engine_holds(graft: Graft, tiny_base: Path) -> None:
    assert "tiny" in graft("models").out
    assert graft("models", "--json").json()[0]["reference"] == "tiny"
    assert graft("models", "--json").json()[0]["engine"] == "fake"
    assert "ENGINE" in graft("models").out
    assert "ENGINE" in graft("residency").out
    assert "base" in graft("residency").out
    assert "adapters" in graft("residency", "--json").json()


def test_text_from_a_prompt_a_message_and_standard_input(graft: Graft) -> None:
    prompt = graft("generate", "tiny", "one two", "--max-tokens", 4, "--seed", 1)
    assert (prompt.code, len(prompt.out.strip()) > 0) == (0, True)
    answer = graft("chat", "tiny", "-m", "hello", "--max-tokens", 4, "--json").json()
    assert answer["usage"]["completion_tokens"] == 4
    piped = graft("chat", "tiny", "--max-tokens", 4, "--show-version", stdin="hello\n")
    assert (piped.code, "no adapter" in piped.err) == (0, True)


def test_an_answer_has_the_form_that_an_option_says(graft: Graft, tmp_path: Path) -> None:
    choice = graft("generate", "tiny", "Is it?", "--choice", "yes", "--choice", "no")
    assert choice.out.strip() in ("yes", "no")
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [11, 22]}')
    assert graft("chat", "tiny", "-m", "x", "--schema", schema).out.strip() in ("11", "22")
    tool = tmp_path / "tool.json"
    tool.write_text('{"type": "function", "function": {"name": "stop"}}')
    call = graft("chat", "tiny", "-m", "x", "--tool", tool, "--tool-choice", "stop")
    assert call.out.strip() == "stop {}"
    schema.write_text('{"enum": []}')
    wrong = graft("generate", "tiny", "x", "--schema", schema)
    assert wrong.code != 0
    assert "structure.json_schema" in wrong.err


def test_what_does_not_exist_ends_with_3_and_a_next_step(graft: Graft) -> None:
    for command in (
        ("adapters", "show", "nobody"),
        ("jobs", "get", "nothing"),
        ("jobs", "watch", "nothing"),
        ("chat", "nobody", "-m", "hi"),
    ):
        result = graft(*command)
        assert result.code == 3, command
        assert result.err.startswith("Error:")
        assert "Traceback" not in result.err


def test_doctor_finds_the_running_services(graft: Graft, stack: Stack) -> None:
    result = graft("doctor", "--no-imports", "--json")
    findings = {one["name"]: one for one in result.json()["findings"]}
    assert result.code == 0
    assert findings["registry"]["detail"] == f"serves at {stack.registry}"
    assert findings["inference"]["verdict"] == "ok"
