"""What `make test-k8s` does to a cluster, and that it cleans up: with a kubectl that writes down its calls."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.installation import LABEL, ClusterError, Installation, Settings

# Says what is there, fails where it is told to, and renders as the real one does.
_STUB = """#!{python}
import json, os, sys
arguments = [one for one in sys.argv[1:] if not one.startswith("--namespace=")]
with open({log!r}, "a") as log:
    log.write(json.dumps(arguments) + "\\n")
if arguments[0] == "kustomize":
    os.execvp("kubectl", ["kubectl", *arguments])
if arguments[:1] == ["apply"]:
    open({applied!r}, "w").write(sys.stdin.read())
if arguments[:2] == ["get", "deployments,statefulsets"]:
    print("deployment.apps/graft-inference-default\\ndeployment.apps/graft-registry")
if arguments[:2] == ["get", "priorityclass"] and arguments[2] == "graft-control":
    print("priorityclass/graft-control")
if arguments[:2] == ["get", "namespace"] and arguments[2] == "taken":
    print("namespace/taken")
if arguments[:2] == ["rollout", "status"] and {fails!r} in arguments[2]:
    sys.exit("error: timed out waiting for the condition")
"""


class Stub:
    """A kubectl, and what it was asked to do."""

    def __init__(self, folder: Path, fails: str = "nothing") -> None:
        self.path, self._log, self._applied = folder / "kubectl", folder / "log", folder / "applied"
        self.path.write_text(
            _STUB.format(
                python=sys.executable, log=str(self._log), applied=str(self._applied), fails=fails
            )
        )
        self.path.chmod(0o755)

    def settings(self, **changes: Any) -> Settings:
        return Settings(**({"kubectl": str(self.path), "namespace": "graft-test-1"} | changes))

    @property
    def calls(self) -> list[str]:
        return self._log.read_text().splitlines()

    @property
    def applied(self) -> str:
        return self._applied.read_text()

    def deleted(self) -> list[str]:
        return [one.split('"')[5] for one in self.calls if one.startswith('["delete"')]


def test_everything_goes_into_its_own_namespace_with_the_images_that_were_named() -> None:
    settings = Settings(namespace="graft-test-1", images="host.example/mine", tag="pr-7")
    objects = Installation(settings).rendered()
    own = [one for one in objects if one["kind"] not in ("Namespace", "PriorityClass")]
    assert {one["metadata"]["namespace"] for one in own} == {"graft-test-1"}
    assert {one["metadata"]["labels"][LABEL] for one in objects} == {"first-path"}
    (space,) = [one for one in objects if one["kind"] == "Namespace"]
    assert space["metadata"]["name"] == "graft-test-1"
    text = str(objects)
    for image in ("registry", "trainer", "worker", "inference"):
        assert f"host.example/mine/{image}:pr-7" in text
    assert "ghcr.io/graft-dev" not in text


def test_what_it_made_is_removed_and_what_others_have_is_left(tmp_path: Path) -> None:
    stub = Stub(tmp_path)
    with Installation(stub.settings()):
        assert stub.deleted() == []
    assert stub.deleted() == ["graft-test-1", "graft-serving", "graft-training"]
    assert "name: graft-control" not in stub.applied


def test_after_a_failure_it_says_what_the_pods_do_and_removes_all(tmp_path: Path) -> None:
    stub = Stub(tmp_path, fails="registry")
    with (
        pytest.raises(ClusterError, match=r"graft-registry is not ready: .*\n--- pods"),
        Installation(stub.settings(timeout_s=1)),
    ):
        raise AssertionError("it is not ready")
    assert "graft-test-1" in stub.deleted()


def test_it_can_be_kept_to_look_at_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub = Stub(tmp_path)
    with Installation(stub.settings(keep=True)):
        pass
    assert stub.deleted() == []
    assert "kubectl delete namespace graft-test-1" in capsys.readouterr().out


def test_a_namespace_that_is_there_is_not_touched(tmp_path: Path) -> None:
    stub = Stub(tmp_path)
    with (
        pytest.raises(ClusterError, match="is there already"),
        Installation(stub.settings(namespace="taken")),
    ):
        raise AssertionError("it was taken")
    assert [one for one in stub.calls if not one.startswith('["get"')] == []


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "Name a cluster: KUBECONFIG="),
        ({"KUBECONFIG": "x", "GRAFT_TEST_K8S_KUBECTL": "no-such"}, "kubectl is not on the PATH"),
        ({"KUBECONFIG": "x", "GRAFT_TEST_K8S_OVERLAY": "none"}, "is no folder of deploy/k8s"),
    ],
)
def test_what_it_lacks_is_said_in_one_line(variables: dict[str, str], said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        Settings.from_environment(variables)


def test_each_run_has_a_namespace_of_its_own() -> None:
    here = {"KUBECONFIG": os.devnull}
    first, second = Settings.from_environment(here), Settings.from_environment(here)
    assert first.namespace != second.namespace
    assert first.namespace.startswith("graft-test-")
