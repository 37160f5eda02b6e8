"""Signatures: what a key stands for, whom a verdict names, and what is not taken for a signature."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from graft import keys
from graft.digests import digest_message
from graft.errors import GraftError, Reason
from graft.keys import PrivateKey, load_key, load_trusted, new_key
from graft.registry.v1 import registry_service_pb2 as pb
from graft.signatures import PAYLOAD_TYPE, SignaturePolicy, check, pae, parse_envelope, sign, verify
from hypothesis import given
from hypothesis import strategies as st

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    new_key(tmp_path / "key")
    return load_key(tmp_path / "key")


@pytest.fixture
def stranger(tmp_path: Path) -> PrivateKey:
    new_key(tmp_path / "stranger")
    return load_key(tmp_path / "stranger")


def _signed_version(key: PrivateKey | None) -> pb.Version:
    version = pb.Version(
        name="namespaces/default/adapters/bot/versions/7", manifest=pb.Manifest(base="tiny", rank=8)
    )
    version.digest = digest_message(version.manifest)
    if key is not None:
        version.signatures.add(envelope_json=sign(version.digest, key))
    return version


def test_the_pre_authentication_encoding_is_the_specifications() -> None:
    # The vector of DSSE's protocol.md.
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_signature_of_a_trusted_key_is_good_and_names_the_key(
    key: PrivateKey, stranger: PrivateKey
) -> None:
    verdict = verify([sign(DIGEST, key)], DIGEST, [stranger.public, key.public])
    assert (verdict.good, verdict.key_id) == (True, key.public.key_id)


def test_the_envelope_is_plain_dsse(key: PrivateKey) -> None:
    envelope = json.loads(sign(DIGEST, key))
    assert envelope["payloadType"] == PAYLOAD_TYPE
    assert json.loads(base64.b64decode(envelope["payload"])) == {"manifest_digest": DIGEST}
    assert envelope["signatures"][0]["keyid"] == key.public.key_id


def test_a_verdict_says_why_there_is_none(key: PrivateKey, stranger: PrivateKey) -> None:
    assert "no signature" in verify([], DIGEST, [key.public]).problem
    assert "not trusted" in verify([sign(DIGEST, stranger)], DIGEST, [key.public]).problem
    assert "not of this version" in verify([sign(OTHER, key)], DIGEST, [key.public]).problem
    assert not verify([sign(DIGEST, key)], DIGEST, []).good


def test_a_signature_moved_to_another_payload_is_worth_nothing(key: PrivateKey) -> None:
    envelope, other = json.loads(sign(DIGEST, key)), json.loads(sign(OTHER, key))
    envelope["payload"] = other["payload"]
    assert "not that key's" in verify([json.dumps(envelope)], OTHER, [key.public]).problem


def test_a_wrong_or_missing_key_id_is_only_a_hint(key: PrivateKey, stranger: PrivateKey) -> None:
    envelope = json.loads(sign(DIGEST, key))
    envelope["signatures"][0]["keyid"] = stranger.public.key_id
    assert verify([json.dumps(envelope)], DIGEST, [stranger.public, key.public]).good
    del envelope["signatures"][0]["keyid"]
    assert verify([json.dumps(envelope)], DIGEST, [key.public]).good


def test_one_bad_envelope_does_not_hide_a_good_one(key: PrivateKey) -> None:
    assert verify(["{", "[]", sign(OTHER, key), sign(DIGEST, key)], DIGEST, [key.public]).good


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"payloadType": "text/plain"}, "payloadType"),
        ({"payload": "!"}, "payload is not base64"),
        ({"payload": base64.b64encode(b"[]").decode()}, "its payload"),
        ({"payload": base64.b64encode(b'{"manifest_digest": "x"}').decode()}, "manifest_digest"),
        ({"signatures": []}, "1 to 16"),
        ({"signatures": [{"sig": "AAAA"}]}, "64"),
        ({"signatures": [{"sig": 3}]}, "sig is not base64"),
        ({"signatures": ["x"]}, "keyid and sig"),
        ({"signatures": [{"sig": "AAAA", "keyid": "../x"}]}, "keyid"),
        ({"padding": "x" * 20_000}, "16384 bytes"),
    ],
)
def test_a_malformed_envelope_is_refused_and_says_where(
    key: PrivateKey, change: dict[str, Any], word: str
) -> None:
    envelope = json.loads(sign(DIGEST, key)) | change
    with pytest.raises(GraftError, match=word) as caught:
        parse_envelope(json.dumps(envelope))
    assert caught.value.reason is Reason.SIGNATURE_INVALID


def test_a_payload_that_says_two_things_is_refused(key: PrivateKey) -> None:
    both = f'{{"manifest_digest":"{DIGEST}","manifest_digest":"{OTHER}"}}'.encode()
    envelope = json.loads(sign(DIGEST, key)) | {"payload": base64.b64encode(both).decode()}
    with pytest.raises(GraftError, match="payload"):
        parse_envelope(json.dumps(envelope))


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_nothing_breaks_the_parser(text: str) -> None:
    with pytest.raises(GraftError):
        parse_envelope(text)


def test_a_policy_of_off_does_not_look(stranger: PrivateKey) -> None:
    assert check(SignaturePolicy.OFF, _signed_version(None), []).problem == ""


def test_a_policy_of_warn_says_what_is_wrong_and_goes_on(key: PrivateKey) -> None:
    assert check(SignaturePolicy.WARN, _signed_version(key), [key.public]).good
    assert "no signature" in check(SignaturePolicy.WARN, _signed_version(None), []).problem


def test_a_policy_of_require_refuses_what_no_trusted_key_signed(
    key: PrivateKey, stranger: PrivateKey
) -> None:
    require = SignaturePolicy.REQUIRE
    assert check(require, _signed_version(key), [key.public]).key_id == key.public.key_id
    with pytest.raises(GraftError, match=r"bot/versions/7 .* no signature") as caught:
        check(require, _signed_version(None), [key.public])
    assert caught.value.reason is Reason.SIGNATURE_REQUIRED
    assert "graft adapters sign bot:7" in caught.value.next_step
    with pytest.raises(GraftError, match="not trusted") as caught:
        check(require, _signed_version(stranger), [key.public])
    assert caught.value.reason is Reason.SIGNATURE_INVALID


def test_a_registry_that_lies_about_the_digest_is_found_out(key: PrivateKey) -> None:
    version = _signed_version(key)
    version.manifest.files.add(path="adapter_model.safetensors", digest=OTHER, size_bytes=1)
    with pytest.raises(GraftError, match="not of this version"):
        check(SignaturePolicy.REQUIRE, version, [key.public])


def test_a_private_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    public = new_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert load_trusted([tmp_path / "key.pub"]) == load_trusted([tmp_path / "key.pub"] * 2)
    assert load_trusted([tmp_path / "key.pub"])[0].key_id == public.key_id
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(GraftError, match="exists already"):
        new_key(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


def test_an_encrypted_key_needs_its_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(keys.PASSPHRASE_VARIABLE, raising=False)
    public = new_key(tmp_path / "key", "secret")
    with pytest.raises(GraftError, match="is encrypted"):
        load_key(tmp_path / "key")
    with pytest.raises(GraftError, match="cannot be decrypted"):
        load_key(tmp_path / "key", "wrong")
    monkeypatch.setenv(keys.PASSPHRASE_VARIABLE, "secret")
    assert load_key(tmp_path / "key").public.key_id == public.key_id


def test_several_public_keys_may_lie_in_one_file(tmp_path: Path) -> None:
    ids = [new_key(tmp_path / name).key_id for name in ("a", "b")]
    both = tmp_path / "both.pub"
    both.write_bytes((tmp_path / "a.pub").read_bytes() + (tmp_path / "b.pub").read_bytes())
    assert [key.key_id for key in load_trusted([both])] == ids


def test_what_is_no_key_is_said_with_the_files_name(tmp_path: Path) -> None:
    new_key(tmp_path / "key")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(GraftError, match="is a private key"):
        load_trusted([tmp_path / "key"])
    with pytest.raises(GraftError, match=r"key\.pub is no private key"):
        load_key(tmp_path / "key.pub")
    with pytest.raises(GraftError, match="no public key"):
        load_trusted([tmp_path / "text"])
    with pytest.raises(GraftError, match="cannot be read"):
        load_key(tmp_path / "nothing")


def test_without_cryptography_form_is_checked_and_use_says_what_to_install(
    key: PrivateKey,
) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from pathlib import Path\n"
        "import graft, graft.signatures\n"
        "print(graft.signatures.parse_envelope(sys.argv[1]).manifest_digest)\n"
        "from graft.keys import load_key\n"
        "try: load_key(Path('x'))\n"
        "except graft.GraftError as error: print(error.reason, error.next_step)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, sign(DIGEST, key)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert DIGEST in done.stdout
    assert "NOT_INSTALLED" in done.stdout
    assert "graft-adapters[signing]" in done.stdout
