"""What the doctor sees of a real machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from graft.cli.machine import Accelerator, LocalMachine


def test_packages_and_imports_that_are_there_and_that_are_not() -> None:
    machine = LocalMachine()
    assert machine.package_version("grpcio")
    assert machine.package_version("no-such-package") is None
    assert machine.import_error("json") is None
    error = machine.import_error("no_such_module")
    assert error == "ModuleNotFoundError: No module named 'no_such_module'"


def test_cards_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA H100, 81559 MiB, 570.1"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert LocalMachine().accelerators() == [Accelerator("NVIDIA H100", "81559 MiB", "570.1")]


def test_a_driver_that_fails_is_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho broken\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert LocalMachine().accelerators() == []


def test_room_is_more_than_nothing(tmp_path: Path) -> None:
    machine = LocalMachine()
    available, total = machine.memory_bytes()
    assert 0 < available <= total
    assert machine.disk_free_bytes(tmp_path / "not" / "yet") > 0
    assert machine.cores() >= 1


async def test_nobody_is_a_silent_service() -> None:
    assert await LocalMachine().health("127.0.0.1:1", 5.0) == "nothing answers there"
