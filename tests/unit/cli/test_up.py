"""`graft up` as a process: order, clear failures, restarts and a clean end.

The services are stand-ins of twenty lines, so that they can be made to fail; test_commands.py runs the real ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from graft.cli.services import Service, ServiceState
from graft.cli.stack import stop_timeout_s

from services.common.config import ServiceSettings
from tests.support.models import REPOSITORY
from tests.support.trainer import until

DEADLINE_S = 120
_SERVICE = """
import json, os, pathlib, signal, sys, time
name = pathlib.Path(__file__).parent.name
prefix, home = f"GRAFT_{name.upper()}_", pathlib.Path(os.environ["GRAFT_HOME"])
def say(what):
    with (home / "told").open("a") as file:
        file.write(f"{what} {name}\\n")
def stop(*_):
    if os.environ.get("STUBBORN") == name:
        return say("ignores")
    say("stops")
    sys.exit(4 if os.environ.get("FAIL_AT_END") == name else 0)
signal.signal(signal.SIGTERM, stop)
if os.environ.get("BREAK") == name:
    print("cannot find the engine")
    sys.exit(3)
(home / name).write_text(str(os.getpid()))
settings = {key: value for key, value in os.environ.items() if key.startswith(prefix)}
(home / f"{name}.settings").write_text(json.dumps(settings))
# Last: who has heard it may read the files.
say("starts")
addresses = {"address": "127.0.0.1:1", "metrics_address": "127.0.0.1:2"}
if name == "inference":
    addresses["http_address"] = "http://127.0.0.1:3"
part = home / f"{name}.part"
part.write_text(json.dumps(addresses))
part.rename(os.environ[prefix + "READY_FILE"])
while True:
    # Not pause(): a signal that comes just before it would wait for the next one.
    time.sleep(0.05)
"""
Up = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package `services` whose services only say what happens to them."""
    root = tmp_path_factory.mktemp("stand-ins")
    (root / "services").mkdir()
    (root / "services/__init__.py").touch()
    for name in ("registry", "trainer", "inference"):
        folder = root / "services" / name
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "__main__.py").write_text(_SERVICE)
    return root


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def graft(stand_ins: Path, home: Path, tmp_path: Path) -> Iterator[Up]:
    """Starts `graft ARGUMENTS` with the stand-ins; what still runs at the end is killed."""
    started = []
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
    paths = os.pathsep.join([str(stand_ins), str(REPOSITORY / "sdk")])

    def start(*arguments: object, **extra: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "graft.cli", *map(str, arguments)],
            env={**kept, "PYTHONPATH": paths, "GRAFT_HOME": str(home), **extra},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=DEADLINE_S)


def _ready(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    ready: dict[str, str] = json.loads(line)
    return ready


def _shown_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    shown = ""
    while words not in shown:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        shown += line
    return shown


def _told(home: Path) -> list[str]:
    return (home / "told").read_text().splitlines()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_services_start_from_the_registry_up_and_drain_in_the_opposite_order(
    graft: Up, home: Path, base: Path, number: signal.Signals
) -> None:
    process = graft("up", "--port", 0, "--base", base, "--slots", 3, "--max-adapters", 5, "--json")
    ready = _ready(process)
    assert json.loads((home / "endpoints.json").read_text()) == {
        name: ready[name]
        for name in ("base", "registry", "trainer", "inference", "http", "metrics")
    }
    assert ready["http"] == "http://127.0.0.1:3"
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0
    told = _told(home)
    assert (told[0], told[3:]) == (
        "starts registry",
        ["stops inference", "stops trainer", "stops registry"],
    )
    assert not (home / "endpoints.json").exists()
    trainer = json.loads((home / "trainer.settings").read_text())
    assert (trainer["GRAFT_TRAINER_SLOTS"], trainer["GRAFT_TRAINER_REGISTRY_ADDRESS"]) == (
        "3",
        "127.0.0.1:1",
    )
    inference = json.loads((home / "inference.settings").read_text())
    assert (inference["GRAFT_INFERENCE_BASE"], inference["GRAFT_INFERENCE_MAX_ADAPTERS"]) == (
        str(base),
        "5",
    )


def test_without_a_base_nothing_is_served_and_that_is_said(graft: Up, home: Path) -> None:
    process = graft("up", "--port", 0)
    assert "No base" in _shown_until(process, "Ctrl-C stops everything")
    process.terminate()
    assert process.wait(DEADLINE_S) == 0
    assert _told(home) == ["starts registry", "starts trainer", "stops trainer", "stops registry"]


def test_a_service_that_dies_at_its_start_shows_its_log_and_takes_the_others_down(
    graft: Up, home: Path
) -> None:
    out, err = graft("up", "--port", 0, BREAK="trainer").communicate(timeout=DEADLINE_S)
    assert "trainer service ended with exit code 3" in err
    assert "cannot find the engine" in err
    assert "graft doctor" in err
    assert _told(home) == ["starts registry", "stops registry"]
    assert "Traceback" not in out + err


async def test_a_service_that_dies_later_is_started_again_where_it_was(
    graft: Up, home: Path, base: Path
) -> None:
    process = graft("up", "--port", 0, "--base", base, "--json")
    _ready(process)
    os.kill(int((home / "inference").read_text()), signal.SIGKILL)
    ready = home / "run/inference.ready.json"
    await until(lambda: _told(home).count("starts inference") == 2 and ready.exists())
    settings = json.loads((home / "inference.settings").read_text())
    assert settings["GRAFT_INFERENCE_LISTEN"] == "127.0.0.1:1"
    assert settings["GRAFT_INFERENCE_HTTP_LISTEN"] == "127.0.0.1:3"
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


async def test_asking_twice_ends_at_once_what_will_not_drain(graft: Up, home: Path) -> None:
    process = graft("up", "--port", 0, "--json", STUBBORN="trainer")
    _ready(process)
    process.terminate()
    await until(lambda: "ignores trainer" in _told(home))
    process.terminate()
    assert "trainer with signal SIGKILL" in process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == 1
    for name in ("registry", "trainer"):
        assert not Path("/proc", (home / name).read_text()).exists()


async def test_a_service_that_outlives_its_limit_is_killed_and_keeps_how_it_ended(
    tmp_path: Path,
) -> None:
    service = Service("trainer", {}, tmp_path, tmp_path / "log", 1.0, ServiceState.SERVING)
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    service.process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", deaf, stdout=subprocess.PIPE, start_new_session=True
    )
    assert service.process.stdout is not None
    await service.process.stdout.readline()
    await service.stop(timeout_s=0.1)
    assert (service.state, service.exit_code) == (ServiceState.STOPPED, -signal.SIGKILL)
    assert service.ill_end() == "trainer with signal SIGKILL"


def test_a_service_that_fails_at_its_end_is_no_clean_end_for_the_script_either(graft: Up) -> None:
    process = graft("up", "--port", 0, "--json", FAIL_AT_END="registry")
    _ready(process)
    process.terminate()
    out, err = process.communicate(timeout=DEADLINE_S)
    assert "registry with exit code 4" in json.loads(err)["error"]["message"]
    assert (process.returncode, "stopped" in out) == (1, False)


def test_a_service_may_take_longer_to_stop_than_its_two_drains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GRAFT_TRAINER_DRAIN_TIMEOUT_S", raising=False)
    assert stop_timeout_s("trainer") > 2 * ServiceSettings().drain_timeout_s
    monkeypatch.setenv("GRAFT_TRAINER_DRAIN_TIMEOUT_S", "100")
    assert stop_timeout_s("trainer") > 200


async def test_services_end_when_graft_up_is_killed(graft: Up, home: Path) -> None:
    process = graft("up", "--port", 0, "--json")
    _ready(process)
    process.kill()
    await until(lambda: {"stops trainer", "stops registry"} <= set(_told(home)))


def test_a_port_in_use_is_named_with_the_way_out(graft: Up) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        if port > 63000:
            pytest.skip("the free port is too high to be the first of three")
        process = graft("up", "--port", port)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 5
    assert f"Port {port} on 127.0.0.1, for the registry" in err
    assert "--port" in err


def test_only_one_runs_in_a_home_and_graft_down_ends_it(graft: Up, home: Path) -> None:
    first = graft("up", "--port", 0, "--detach", "--json")
    assert "registry" in _ready(first)
    assert first.wait(DEADLINE_S) == 0
    second = graft("up", "--port", 0)
    assert "runs already" in second.communicate(timeout=DEADLINE_S)[1]
    assert second.returncode == 4
    assert graft("down").wait(DEADLINE_S) == 0
    assert _told(home)[-1] == "stops registry"
    third = graft("down")
    assert "No `graft up` runs" in third.communicate(timeout=DEADLINE_S)[1]
    assert third.returncode == 5


def test_a_folder_that_is_no_model_is_refused_before_anything_starts(
    graft: Up, home: Path, tmp_path: Path
) -> None:
    process = graft("up", "--port", 0, "--base", tmp_path)
    assert "has no config.json" in process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == 2
    assert not (home / "told").exists()
