"""Going on from any checkpoint gives the bits of the run that was never stopped: objective by loading, and by method.

A run writes a checkpoint after every step. Another begins with one of them alone, and must report the same
figures and leave the same files. Everywhere there is dropout, more than one epoch, an evaluation in each, and a
report after every second step alone. docs/checkpoints.md has the table of what is exact and what is not.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from graft.digests import digest_file
from graft.errors import GraftError
from graft.spec_file import spec_from_dict

from services.trainer.run.progress import Progress
from services.trainer.run.stop import StopSignal
from services.trainer.spec import parse_spec
from tests.support.models import make_base
from tests.support.ports import kept_port
from tests.unit.trainer_worker.support import COLOURS, Event, Outcome, WorkerProcess, attempt, merge

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Change = dict[str, Any]
STEPS = 7
LORA: Change = {"lora": {"rank": 4, "dropout": 0.2}}
OBJECTIVES: dict[str, Change] = {
    "sft": {},
    "cpt": {},
    "dpo": {},
    "kto": {},
    "orpo": {},
    "reward": {},
    "distillation": {"beta": 0.5, "sft_weight": 0.5},
    "grpo": {
        "rewards": [{"regex": {"pattern": "e"}}],
        "generations": 4,
        "max_completion_tokens": 4,
        "beta": 0.1,
    },
}
LOADINGS: dict[str, Change] = {
    "in random order": {"hyperparameters": {"group_by_length": False}},
    "by length": {"hyperparameters": {"group_by_length": True}},
    "packed": {
        "hyperparameters": {"packing": True, "max_length_tokens": 96, "micro_batch_size": 2}
    },
    "accumulated": {
        "hyperparameters": {"micro_batch_size": 4, "gradient_accumulation_steps": 2},
    },
    "by two processes": {
        "dataset": {"loader_processes": 2},
        "hyperparameters": {"micro_batch_size": 4},
    },
    "streamed": {"dataset": {"streaming": True}},
    "streamed and packed": {
        "dataset": {"streaming": True},
        "hyperparameters": {"packing": True, "max_length_tokens": 96, "micro_batch_size": 2},
    },
}
METHODS: dict[str, Change] = {
    "lora_plus": {"method": {"lora_plus": {"rank": 4, "dropout": 0.2}}},
    "lora_plus in 8 bits": {
        "method": {"lora_plus": {"rank": 4}},
        "hyperparameters": {"optimizer": "adamw_8bit"},
    },
    "qlora": {
        "method": {"qlora": {"rank": 4, "dropout": 0.2}},
        "hyperparameters": {"optimizer": "paged_adamw_8bit", "gradient_checkpointing": True},
    },
    "dora": {"method": {"dora": {"rank": 4, "dropout": 0.2}}},
    "pissa": {"method": {"pissa": {"rank": 4, "dropout": 0.2, "svd_iterations": 4}}},
    "adalora": {
        "method": {"adalora": {"target_rank": 2, "initial_rank": 4, "dropout": 0.2}},
    },
    "ia3": {"method": {"ia3": {}}},
    "bottleneck": {"method": {"bottleneck": {"size": 8, "dropout": 0.2}}},
    "prompt_tuning": {"method": {"prompt_tuning": {"virtual_tokens": 4}}},
    "p_tuning": {"method": {"p_tuning": {"virtual_tokens": 4, "dropout": 0.2}}},
    "p_tuning_v2": {"method": {"p_tuning_v2": {"virtual_tokens": 4}}},
    "prefix_tuning": {"method": {"prefix_tuning": {"virtual_tokens": 4}}},
    "full": {"method": {"full": {}}, "output": {"adapter": "", "base": "made"}},
}


def row(objective: str, number: int) -> Change:
    """A row of that objective's data; rows have several lengths."""
    right, wrong = COLOURS[number % 4], COLOURS[(number + 1) % 4]
    prompt = f"{number} {right * (1 + number % 5)}"
    good, bad = f"I like {right}", f"No, {wrong} " * (1 + number % 3)
    if objective == "cpt":
        return {"text": f"{prompt}: {good}. " * (1 + number % 3)}
    if objective == "grpo":
        return {"prompt": prompt}
    if objective == "kto":
        label = number % 2 == 0
        return {"prompt": prompt, "completion": good if label else bad, "label": label}
    if objective in ("sft", "distillation"):
        return {"prompt": prompt, "completion": good}
    return {"prompt": prompt, "chosen": good, "rejected": bad}


class Table:
    """Jobs of a tiny base by their row and column.

    Args:
        folder: of data and work folders.
        base: the base model.
        teacher: of distillation.
    """

    def __init__(self, folder: Path, base: Path, teacher: Path) -> None:
        self._folder = folder
        self._base = base
        self._teacher = teacher
        self._whole: Outcome | None = None

    def whole(self) -> tuple[Change, Outcome]:
        """A job and its run that was never stopped; treat it as read-only."""
        spec = self.spec("sft")
        if self._whole is None:
            self._whole = attempt(spec, self._folder / "whole")
            assert self._whole.code == 0, self._whole.message
        return spec, self._whole

    def spec(self, objective: str, *changes: Change) -> Change:
        """The job of an objective with changes; 24 rows, a fourth of which is held out."""
        data = self._data(f"{objective}.jsonl", objective, 24)
        settings = dict(OBJECTIVES[objective])
        if objective == "distillation":
            settings["teacher"] = str(self._teacher)
        spec: Change = {
            "base": {"source": str(self._base)},
            "dataset": {"path": str(data), "eval_fraction": 0.25},
            "method": LORA,
            "objective": {objective: settings},
            "hyperparameters": {
                "max_steps": STEPS,
                "learning_rate": 0.005,
                "micro_batch_size": 8,
                "report_every_steps": 2,
                "warmup_ratio": 0.3,
                "schedule": "cosine",
                "packing": False,
            },
            "checkpointing": {"every_steps": 1, "keep": 1000},
            "resources": {"cpu_threads": 1},
            "output": {"adapter": "bot"},
            "seed": 7,
        }
        for change in changes:
            if "method" in change:
                spec = {**spec, "method": {}}
            if change.get("dataset", {}).get("streaming"):
                held_out = self._data(f"{objective}-held-out.jsonl", objective, 6)
                sources = [{"path": str(held_out)}]
                spec = merge(spec, {"dataset": {"eval_fraction": 0.0, "eval_sources": sources}})
            spec = merge(spec, change)
        return spec

    def _data(self, name: str, objective: str, count: int) -> Path:
        path = self._folder / name
        if not path.exists():
            lines = [json.dumps(row(objective, number)) for number in range(count)]
            path.write_text("\n".join(lines), "utf-8")
        return path

    def check(self, name: str, spec: Change, steps: list[int]) -> None:
        """Runs the job whole and from its checkpoints of some steps, and compares."""
        whole = attempt(spec, self._folder / name)
        assert whole.code == 0, whole.message
        for step in steps:
            work = self._folder / f"{name} from {step}"
            one = f"checkpoints/step-{step:09d}"
            shutil.copytree(whole.work_dir / one, work / one)
            resumed = attempt(spec, work)
            assert resumed.code == 0, resumed.message
            assert f"Going on from the checkpoint of step {step}." in resumed.log
            assert reports(resumed) == [r for r in reports(whole) if int(r["step"]) > step]
            assert files(resumed) == files(whole)
            shutil.rmtree(work)
        shutil.rmtree(whole.work_dir)


def reports(outcome: Outcome) -> list[Event]:
    """All that was reported, less what time it took."""
    timed = ("tokens_per_second", "remaining_s")
    return [
        {name: value for name, value in event["metrics"].items() if name not in timed}
        for event in outcome.events
        if "metrics" in event
    ]


def files(outcome: Outcome) -> dict[str, str]:
    """Digests of the result's files."""
    result = outcome.work_dir / "result"
    paths = [path for path in result.iterdir() if path.name != "commit_request.json"]
    return {path.name: digest_file(path) for path in paths}


def is_possible(spec: Change) -> bool:
    """Whether there is such a job."""
    try:
        parse_spec(spec_from_dict(spec))
    except GraftError:
        return False
    return True


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Table]:
    folder = tmp_path_factory.mktemp("resume")
    yield Table(folder, tiny_base, make_base(folder / "teacher", layers=1, seed=5))
    shutil.rmtree(folder)


def some_step(name: str) -> int:
    """A step before the last, which the name alone decides."""
    return 1 + crc32(name.encode()) % (STEPS - 1)


# Every objective and every loading at least once: the short form.
SHORT = [
    ("sft", "packed"),
    ("sft", "streamed"),
    ("cpt", "streamed and packed"),
    ("dpo", "by two processes"),
    ("kto", "in random order"),
    ("orpo", "by length"),
    ("reward", "accumulated"),
    ("distillation", "packed"),
    ("grpo", "accumulated"),
]


@pytest.mark.parametrize(("objective", "loading"), SHORT)
def test_an_objective_goes_on_exactly(table: Table, objective: str, loading: str) -> None:
    name = f"{objective}, {loading}"
    table.check(name, table.spec(objective, LOADINGS[loading]), [some_step(name)])


@pytest.mark.soak
@pytest.mark.parametrize("loading", LOADINGS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_goes_on_exactly_from_first_last_and_some_step(
    table: Table, objective: str, loading: str
) -> None:
    spec = table.spec(objective, LOADINGS[loading])
    if not is_possible(spec):
        pytest.skip("there is no such job")
    name = f"{objective}, {loading}"
    table.check(name, spec, sorted({1, some_step(name), STEPS - 1}))


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_every_method_goes_on_exactly_from_every_step(
    table: Table, objective: str, method: str
) -> None:
    spec = table.spec(objective, METHODS[method], LOADINGS["accumulated"])
    if not is_possible(spec):
        pytest.skip("there is no such job")
    table.check(f"{objective}, {method}", spec, list(range(1, STEPS)))


@pytest.mark.soak
def test_batches_are_the_same_whatever_process_makes_them(table: Table, tmp_path: Path) -> None:
    one = table.spec("dpo", LOADINGS["by two processes"])
    runs = [
        attempt(merge(one, {"dataset": {"loader_processes": count}}), tmp_path / str(count))
        for count in (0, 2)
    ]
    assert reports(runs[0]) == reports(runs[1])
    assert files(runs[0]) == files(runs[1])


@pytest.mark.soak
def test_a_run_that_is_stopped_again_and_again_ends_in_the_same_bits(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = table.spec("sft", LOADINGS["accumulated"])
    whole = attempt(spec, tmp_path / "whole")
    draw = random.Random(7)
    stopped = 0
    with monkeypatch.context() as stopping:
        stopping.setattr(StopSignal, "preempted", property(lambda _: draw.random() < 0.4))
        while (last := attempt(spec, tmp_path / "stopped")).code == 75:
            stopped += 1
    assert stopped > 0
    assert last.code == 0, last.message
    assert files(last) == files(whole)


def flip(path: Path) -> None:
    """Changes one bit of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_one_before_a_damaged_checkpoint_is_used_and_with_none_it_begins_anew(
    table: Table, tmp_path: Path
) -> None:
    spec, whole = table.whole()
    both = tmp_path / "one/checkpoints"
    for name in ("step-000000005", "step-000000006"):
        shutil.copytree(whole.work_dir / "checkpoints" / name, both / name)
    flip(both / "step-000000006/optimizer.pt")
    none = shutil.copytree(both, tmp_path / "none/checkpoints")
    (none / "step-000000005/rng_state.pth").unlink()

    one = attempt(spec, tmp_path / "one")
    assert "step 6 is not used: its file optimizer.pt is damaged." in one.log
    assert "Going on from the checkpoint of step 5." in one.log
    anew = attempt(spec, tmp_path / "none")
    assert "step 5 is not used: its file rng_state.pth is missing." in anew.log
    assert "No checkpoint can be used: the training begins anew." in anew.log
    assert files(one) == files(anew) == files(whole)


def test_a_full_disk_pauses_the_job_and_with_room_it_goes_on_exactly(
    table: Table, tmp_path: Path
) -> None:
    spec, whole = table.whole()
    first = "checkpoints/step-000000001"
    shutil.copytree(whole.work_dir / first, tmp_path / "full" / first)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file of this process may be larger: the system itself refuses what checkpoints write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    try:
        paused = attempt(spec, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert paused.code == 74
    assert paused.finished["paused"] is True
    assert paused.message.startswith("The checkpoint of step 2 cannot be written to ")
    for words in ("(File too large)", "bytes are free there", "step 1 is kept", "Make room there"):
        assert words in paused.message
    assert not (tmp_path / "full/checkpoints/partial").exists()
    last = attempt(spec, tmp_path / "full")
    assert "Going on from the checkpoint of step 1." in last.log
    assert files(last) == files(whole)


def test_the_result_is_the_best_checkpoints_where_that_is_wanted(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = table.spec(
        "sft",
        # What is learned by heart makes other rows less likely.
        {"hyperparameters": {"max_steps": 12, "learning_rate": 0.1, "schedule": "constant"}},
        {"checkpointing": {"every_steps": 5, "keep": 1, "use_best": True}},
    )
    whole = attempt(spec, tmp_path / "whole")
    assert whole.code == 0, whole.message
    losses = {int(r["step"]): r["eval_loss"] for r in reports(whole) if "eval_loss" in r}
    best = min(losses, key=lambda step: losses[step])
    assert best < 12, "the task must get worse"
    assert f"The result is the checkpoint of step {best}: its eval_loss is " in whole.log
    checkpoint = whole.work_dir / f"checkpoints/step-{best:09d}"
    assert (checkpoint / "adapter_model.safetensors").read_bytes() == (
        whole.work_dir / "result/adapter_model.safetensors"
    ).read_bytes()
    request = json.loads((whole.work_dir / "result/commit_request.json").read_text())
    assert request["lineage"]["metrics"]["eval_loss"] == losses[best]
    assert request["lineage"]["metrics"]["result_step"] == best

    with monkeypatch.context() as stopping:
        stopping.setattr(Progress, "told_to_stop", property(lambda one: one.last.step > best))
        assert attempt(spec, tmp_path / "stopped").code == 75
    assert files(attempt(spec, tmp_path / "stopped")) == files(whole)


@pytest.mark.soak
def test_two_processes_with_dropout_go_on_exactly(table: Table, tmp_path: Path) -> None:
    spec = table.spec("sft", LOADINGS["accumulated"])

    def both(folder: str) -> Outcome:
        port = str(kept_port())
        here = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        pair = [
            WorkerProcess(spec, tmp_path / f"{folder}-{rank}", {**here, "RANK": str(rank)})
            for rank in range(2)
        ]
        outcomes = [one.outcome() for one in pair]
        for one in pair:
            one.close()
        # Without torchrun the other one may find the first one gone at the very end.
        assert outcomes[0].code == 0, pair[0].errors()
        return outcomes[0]

    whole = both("whole")
    for step in (1, 4):
        name = f"checkpoints/step-{step:09d}"
        shutil.copytree(whole.work_dir / name, tmp_path / f"from {step}-0" / name)
        resumed = both(f"from {step}")
        assert f"Going on from the checkpoint of step {step}." in resumed.log
        assert reports(resumed) == [one for one in reports(whole) if int(one["step"]) > step]
        assert files(resumed) == files(whole)
