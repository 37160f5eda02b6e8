"""Keys, signatures and what must be signed, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Graft


@pytest.fixture
def version(graft: Graft, tiny_base: Path, tiny_adapter: Path) -> str:
    pushed = graft("adapters", "push", "signing", tiny_adapter, "--base", tiny_base, "--json")
    assert pushed.code == 0, pushed.err
    return f"signing:{pushed.json()['number']}"


@pytest.fixture
def key(graft: Graft, tmp_path: Path) -> Path:
    made = graft("keys", "new", tmp_path / "key", "--json")
    assert made.code == 0, made.err
    return tmp_path / "key"


def test_a_version_is_signed_verified_and_pulled(
    graft: Graft, version: str, key: Path, tmp_path: Path
) -> None:
    public = f"{key}.pub"
    before = graft("adapters", "verify", version, "--trusted", public)
    assert (before.code, "not signed by a trusted key" in before.out) == (4, True)
    refused = graft(
        "adapters", "pull", version, tmp_path / "new", "--require-signature", "--trusted", public
    )
    assert refused.code != 0
    assert "graft adapters sign signing:1" in refused.err
    assert not (tmp_path / "new").exists()

    signed = graft("adapters", "sign", version, "--key", key, "--json")
    assert signed.code == 0, signed.err
    shown = graft("keys", "show", public, "--json").json()
    verified = graft("adapters", "verify", version, "--trusted", public, "--json")
    assert verified.code == 0
    assert verified.json()["key_id"] == shown[0]["key_id"] == signed.json()["key_id"]
    pulled = graft(
        "adapters", "pull", version, tmp_path / "new", "--require-signature", "--trusted", public
    )
    assert (pulled.code, (tmp_path / "new").is_dir()) == (0, True)


def test_a_pull_that_names_keys_warns_when_none_of_them_signed(
    graft: Graft, version: str, tmp_path: Path
) -> None:
    assert graft("keys", "new", tmp_path / "other").code == 0
    pulled = graft(
        *("adapters", "pull", version, tmp_path / "new"),
        *("--trusted", tmp_path / "other.pub", "--json"),
    )
    assert pulled.code == 0
    assert json.loads(pulled.out)["name"].endswith("/versions/1")
    assert pulled.err.startswith("Warning:")


def test_a_key_is_not_overwritten_and_not_taken_for_a_public_one(
    run: Graft, key: Path, tmp_path: Path
) -> None:
    again = run("keys", "new", key)
    assert (again.code, "exists already" in again.err) == (4, True)
    shown = run("keys", "show", key)
    assert (shown.code, "private key" in shown.err) == (2, True)
