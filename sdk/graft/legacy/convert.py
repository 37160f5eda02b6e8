"""`python -m graft.legacy.convert SOURCE TARGET PARENT`: tensors from a .bin to a .safetensors file.

Runs in a process that bin_file.py starts and that holds nothing worth having. It prints one line of
JSON: {"tensors": n}, or {"problem": kind, "detail": text}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, Any

from graft.legacy import sandbox

_MIB = 1024 * 1024
_OLDEST_TORCH = (2, 6)  # Before it, weights_only could be tricked (CVE-2025-32434).
_MAX_TENSORS = 100_000


class _Unfit(Exception):
    """Why it cannot be converted: a kind that bin_file.py knows, and words."""


def main() -> None:
    """Converts, prints what came of it, and never raises."""
    source, target, parent = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    try:
        answer: dict[str, Any] = {"tensors": _convert(source, target, parent)}
    except _Unfit as unfit:
        answer = {"problem": unfit.args[0], "detail": unfit.args[1]}
    except (MemoryError, RecursionError) as error:
        answer = {"problem": "too_large", "detail": type(error).__name__}
    except Exception as error:
        # weights_only's own refusals are of many types; their first line says which global it met.
        detail = f"{type(error).__name__}: {str(error).strip().splitlines()[0:1]}"
        kind = "too_large" if "memory" in str(error) or isinstance(error, OSError) else "not_plain"
        answer = {"problem": kind, "detail": detail[:300]}
    sys.stdout.write(json.dumps(answer) + "\n")


def _convert(source: Path, target: Path, parent: int) -> int:
    sandbox.die_with_parent(parent)
    # Opened first: in a user namespace of its own even root has only its own files.
    with source.open("rb") as file:
        size_bytes = source.stat().st_size
        away = sandbox.leave_network()
        torch, save_file = _libraries()
        if not sandbox.deny_calls() and not away:
            raise _Unfit("no_sandbox", "neither a network namespace nor seccomp is to be had here")
        sandbox.limit(
            cpu_s=120 + size_bytes // (10 * _MIB),
            file_bytes=2 * size_bytes + 16 * _MIB,
            memory_bytes=4 * size_bytes + 512 * _MIB,
        )
        tensors = _read(file, torch)
    save_file(tensors, str(target), metadata={"format": "pt"})
    return len(tensors)


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise _Unfit("no_torch", f"{error.name or error} is not installed") from None
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _OLDEST_TORCH:
        raise _Unfit("no_torch", f"torch {torch.__version__} is installed, 2.6 or newer is needed")
    torch.set_num_threads(1)
    return torch, save_file


def _read(file: IO[bytes], torch: Any) -> dict[str, Any]:
    loaded = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict) or not loaded:
        raise _Unfit("not_plain", f"it holds a {type(loaded).__name__}, not tensors by name")
    if len(loaded) > _MAX_TENSORS:
        raise _Unfit("too_large", f"it holds {len(loaded)} tensors, {_MAX_TENSORS} are allowed")
    return {_name(name): _plain(name, value, torch) for name, value in loaded.items()}


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise _Unfit("not_plain", f"it has a key that is not a name: {name!r:.80}")
    return name


def _plain(name: str, value: Any, torch: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        raise _Unfit("not_plain", f"{name[:120]!r} is a {type(value).__name__}, not a tensor")
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        raise _Unfit("not_plain", f"{name[:120]!r} is not a dense, unquantized tensor")
    # A copy of its own: safetensors takes neither views nor shared storage.
    return value.detach().clone(memory_format=torch.contiguous_format)


if __name__ == "__main__":
    main()
