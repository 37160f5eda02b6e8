"""`graft verify`: what holds ends with 0, and what does not is named and ends with 4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from graft.attestation import sign
from graft.keys import load_key

from tests.unit.cli.conftest import Graft

Saved = dict[str, Any]


@pytest.fixture
def saved(graft: Graft, tiny_base: Path, tiny_adapter: Path) -> Saved:
    """An answer of an adapter, as `graft generate --json` prints it."""
    pushed = graft("adapters", "push", "verifying", tiny_adapter, "--base", tiny_base, "--json")
    assert pushed.code == 0, pushed.err
    model = f"verifying:{pushed.json()['number']}"
    answer = graft("generate", model, "Which colour?", "--max-tokens", "5", "--json")
    assert answer.code == 0, answer.err
    found: Saved = answer.json()
    return found


def write(folder: Path, saved: Saved) -> Path:
    path = folder / "answer.json"
    path.write_text(json.dumps(saved))
    return path


def signed(graft: Graft, folder: Path, saved: Saved) -> Saved:
    """The same answer of a service with a key, whose public half is key.pub."""
    assert graft("keys", "new", folder / "key").code == 0
    attestation = sign(saved["attestation"]["statement_json"], load_key(folder / "key"))
    (one,) = attestation.signatures
    fields = {"key_id": one.key_id, "signature": one.signature}
    return saved | {"attestation": saved["attestation"] | {"signatures": [fields]}}


def test_an_answer_is_verified_with_its_prompt_and_in_the_registry(
    graft: Graft, saved: Saved, tmp_path: Path
) -> None:
    path = write(tmp_path, signed(graft, tmp_path, saved))
    trust = ("--key", tmp_path / "key.pub", "--with-registry", "--prompt", "Which colour?")
    found = graft("verify", path, *trust)
    assert found.code == 0, found.out
    assert "Verified." in found.out
    assert saved["provenance"]["version"] in found.out
    found = graft("verify", path, *trust, "--json")
    assert found.json()["verified"] is True
    named = {one["what"] for one in found.json()["findings"]}
    assert {"signature", "prompt.text", "answers[0].text", "registry: adapter.digest"} <= named


def test_whatever_was_changed_is_named(graft: Graft, saved: Saved, tmp_path: Path) -> None:
    good = signed(graft, tmp_path, saved)
    trust = ("--key", tmp_path / "key.pub", "--json")
    path = write(tmp_path, good | {"text": "something else"})
    found = graft("verify", path, *trust, "--prompt", "Which one?")
    assert found.code == 4
    wrong = [one["what"] for one in found.json()["findings"] if not one["holds"]]
    assert wrong == ["prompt.text", "answers[0].text"]

    attestation = good["attestation"]
    digest = saved["provenance"]["version_digest"]
    other = attestation["statement_json"].replace(digest, "sha256:" + "0" * 64)
    path = write(tmp_path, good | {"attestation": attestation | {"statement_json": other}})
    found = graft("verify", path, *trust, "--with-registry")
    assert found.code == 4
    wrong = [one["what"] for one in found.json()["findings"] if not one["holds"]]
    assert wrong == ["signature", "adapter.digest", "registry: adapter.digest"]
    shown = graft("verify", path, "--key", tmp_path / "key.pub")
    assert "WRONG  signature: the statement was changed after" in shown.out
    assert "Not verified: signature, adapter.digest." in shown.out


def test_without_a_trusted_key_nothing_is_verified_unless_that_is_said(
    graft: Graft, saved: Saved, tmp_path: Path
) -> None:
    path = write(tmp_path, saved)
    found = graft("verify", path)
    assert found.code == 4
    assert "name one with --key, or say --unsigned" in found.out
    assert graft("verify", path, "--unsigned").code == 0
    assert graft("keys", "new", tmp_path / "key").code == 0
    found = graft("verify", path, "--key", tmp_path / "key.pub")
    assert (found.code, "the service that answered has no key" in found.out) == (4, True)


def test_an_attestation_alone_is_held_against_what_is_given_beside_it(
    graft: Graft, saved: Saved, tmp_path: Path
) -> None:
    alone = write(tmp_path, {"attestation": saved["attestation"]})
    answer = tmp_path / "answer.txt"
    answer.write_text(saved["text"])
    beside = ("--unsigned", "--answer", f"@{answer}")
    assert graft("verify", alone, *beside).code == 0
    found = graft("verify", alone, "--unsigned", "--answer", "no", "--prompt-tokens", "[1, 2]")
    assert (found.code, "prompt.tokens, answers[0].text" in found.out) == (4, True)
    assert graft("verify", "-", *beside, stdin=json.dumps(saved)).code == 0


def test_what_cannot_be_read_ends_with_2(graft: Graft, tmp_path: Path, saved: Saved) -> None:
    missing = graft("verify", tmp_path / "none.json")
    assert (missing.code, "none.json cannot be read" in missing.err) == (2, True)
    path = tmp_path / "other.json"
    path.write_text('{"text": "hello"}')
    other = graft("verify", path)
    assert (other.code, "no attestation and no answer with one" in other.err) == (2, True)
    ids = graft("verify", write(tmp_path, saved), "--prompt-tokens", "1, 2")
    assert (ids.code, "not a list of token ids" in ids.err) == (2, True)
