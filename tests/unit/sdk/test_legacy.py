"""Old .bin weights: tensors come through, code does not, and the process that reads them has nothing."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graft.errors import GraftError, Reason
from graft.legacy import bin_file
from safetensors.numpy import load_file, save_file

# torch only in processes of their own, as in the product.
_MAKE = """
import sys, torch
from safetensors.torch import load_file
weights, folder = sys.argv[1:]
torch.save(load_file(weights), f"{folder}/tensors.bin")
torch.save({"w": torch.zeros(1).expand(10**12)}, f"{folder}/bomb.bin")
torch.save(torch.nn.Linear(2, 2), f"{folder}/module.bin")
torch.save({"step": 3, "w": torch.zeros(2)}, f"{folder}/nested.bin")
"""


def _python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)


@pytest.fixture(scope="module")
def made(tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds what torch saves; nothing may be changed in it."""
    folder = tmp_path_factory.mktemp("made")
    _python(_MAKE, tiny_adapter / "adapter_model.safetensors", folder)
    return folder


class _Command:
    """Runs a program when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.marker}",))


class _Code(_Command):
    """Runs Python when it is unpickled, which no denied system call is needed for."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, (f"open({str(self.marker)!r}, 'w').close()",))


async def test_tensors_come_through_unchanged(
    made: Path, tmp_path: Path, tiny_adapter: Path
) -> None:
    count = await bin_file.convert(made / "tensors.bin", tmp_path / "new.safetensors")
    before = load_file(tiny_adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "new.safetensors")
    assert count == len(before) == len(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("evil_class", [_Command, _Code])
async def test_a_pickle_that_runs_something_runs_nothing(
    tmp_path: Path, evil_class: type[_Command]
) -> None:
    marker = tmp_path / "was-here"
    evil = tmp_path / "adapter_model.bin"
    evil.write_bytes(pickle.dumps({"w": evil_class(marker)}, protocol=2))
    with pytest.raises(GraftError, match="was not converted") as caught:
        await bin_file.convert(evil, tmp_path / "out")
    assert caught.value.reason is Reason.ADAPTER_UNUSABLE
    assert "who made it" in caught.value.next_step
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    # The file is what it is said to be.
    pickle.loads(evil.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("name", ["module.bin", "nested.bin"])
async def test_what_is_not_tensors_by_name_is_refused(
    made: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(GraftError) as caught:
        await bin_file.convert(made / name, tmp_path / "out")
    assert caught.value.metadata["problem"] == "not_plain"


async def test_a_tensor_of_terabytes_in_a_small_file_is_refused(made: Path, tmp_path: Path) -> None:
    assert (made / "bomb.bin").stat().st_size < 10_000
    with pytest.raises(GraftError) as caught:
        await bin_file.convert(made / "bomb.bin", tmp_path / "out")
    assert caught.value.metadata["problem"] == "too_large"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", marks=pytest.mark.soak),
        b"not a pickle",
        pytest.param(b"\x80\x02." * 1000, marks=pytest.mark.soak),
        b"PK\x03\x04" * 9,
    ],
)
async def test_rubbish_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(GraftError, match="was not converted"):
        await bin_file.convert(tmp_path / "x.bin", tmp_path / "out")


async def test_a_conversion_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(GraftError, match=r"more than 0\.01 s"):
        await bin_file.convert(tmp_path / "x.bin", tmp_path / "out", timeout_s=0.01)


async def test_without_torch_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError(name='torch')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(GraftError, match="torch is not installed") as caught:
        await bin_file.convert(tmp_path / "x.bin", tmp_path / "out")
    assert caught.value.reason is Reason.NOT_INSTALLED
    assert "pip install" in caught.value.next_step


_TRY = """
import os, socket, sys
from graft.legacy import sandbox
done = getattr(sandbox, sys.argv[1])()
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=5).close()
    reached = True
except OSError:
    reached = False
try:
    os.posix_spawn("/bin/true", ["true"], {})
    ran = True
except OSError:
    ran = False
print(done, reached, ran)
"""


@pytest.mark.parametrize("wall", ["leave_network", "deny_calls"])
def test_each_wall_alone_keeps_a_socket_from_connecting(wall: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done, reached, ran = _python(_TRY, wall, port).stdout.split()
    if done == "False":
        pytest.skip(f"this kernel does not allow {wall}")
    assert reached == "False"
    assert ran == str(wall == "leave_network")


async def test_where_no_wall_can_be_had_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = "import graft.legacy.sandbox as s\ns.leave_network = s.deny_calls = lambda: False\n"
    (tmp_path / "sitecustomize.py").write_text(hook)
    monkeypatch.syspath_prepend(str(tmp_path))
    save_file({"w": np.zeros(2)}, tmp_path / "x.bin")
    with pytest.raises(GraftError, match="neither a network namespace nor seccomp"):
        await bin_file.convert(tmp_path / "x.bin", tmp_path / "out")


async def test_the_process_that_reads_inherits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    hook = f"import os\nopen({str(seen)!r}, 'w').write(repr(dict(os.environ)))\n"
    (tmp_path / "sitecustomize.py").write_text(hook)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret")
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(GraftError):
        await bin_file.convert(tmp_path / "x.bin", tmp_path / "out")
    assert "PYTHONPATH" in seen.read_text()
    assert "secret" not in seen.read_text()
