"""Which address wins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graft.endpoints import Endpoints
from graft.errors import GraftError


def test_an_argument_beats_the_environment_which_beats_the_file_which_beats_the_default(
    tmp_path: Path,
) -> None:
    (tmp_path / "endpoints.json").write_text(
        json.dumps({"registry": "f:1", "trainer": "f:2", "metrics": {"registry": "f:9"}})
    )
    environ = {"GRAFT_HOME": str(tmp_path), "GRAFT_REGISTRY": "e:1"}
    assert Endpoints.find(environ=environ) == Endpoints("e:1", "f:2", "127.0.0.1:7433")
    assert Endpoints.find(registry="a:1", environ=environ).registry == "a:1"


@pytest.mark.parametrize("address", ["localhost", "http://here:1", "here:port", ":1"])
def test_what_is_no_address_is_refused_by_name(address: str, tmp_path: Path) -> None:
    with pytest.raises(GraftError, match="not an address of the trainer"):
        Endpoints.find(trainer=address, environ={"GRAFT_HOME": str(tmp_path)})


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text("{")
    with pytest.raises(GraftError, match=r"endpoints\.json is not JSON"):
        Endpoints.find(environ={"GRAFT_HOME": str(tmp_path)})
