"""An attestation that holds, and every way in which one does not, named by its place."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from graft.attestation import (
    PAYLOAD_TYPE,
    Attestation,
    check_signature,
    sign,
    text_digest,
    token_digest,
)
from graft.attested import compare, read_saved
from graft.errors import GraftError, Reason
from graft.keys import PrivateKey, load_key, new_key

IDS, ANSWER_IDS = [1, 17, 70_000], [5, 6]
PROMPT, ANSWER = "Which colour?", "blue é"
DIGEST = "sha256:" + "a" * 64
STATEMENT: dict[str, Any] = {
    "request_id": "r1",
    "time": "2026-01-02T03:04:05.678Z",
    "base": {"name": "namespaces/default/bases/tiny", "fingerprint": DIGEST},
    "adapter": {"version": "namespaces/default/adapters/bot/versions/7", "digest": DIGEST},
    "engine": {"name": "vllm", "version": "0.32.0"},
    "sampling": {"temperature": 0.5, "max_tokens": 9},
    "prompt": {"count": 3, "tokens": token_digest(IDS), "text": text_digest(PROMPT)},
    "answers": [
        {
            "index": 0,
            "finish": "stop",
            "count": 2,
            "tokens": token_digest(ANSWER_IDS),
            "text": text_digest(ANSWER),
        }
    ],
}
SAVED: dict[str, Any] = {
    "text": ANSWER,
    "token_ids": ANSWER_IDS,
    "finish_reason": "STOP",
    "provenance": {
        "version": "namespaces/default/adapters/bot/versions/7",
        "version_digest": DIGEST,
        "base": "namespaces/default/bases/tiny",
        "base_fingerprint": DIGEST,
        "engine": "vllm",
    },
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every text and number."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        if isinstance(each, dict | list):
            yield from leaves(each, (*path, key))
        else:
            yield (*path, key)


def changed(value: Any, path: tuple[Any, ...]) -> Any:
    """A copy with another text or number at a path."""
    result = copy.deepcopy(value)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    old = inner[path[-1]]
    inner[path[-1]] = old + 1 if isinstance(old, int | float) else old[:-1] + "b"
    return result


def text_of(statement: dict[str, Any]) -> str:
    return json.dumps(statement, sort_keys=True, separators=(",", ":"))


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    new_key(tmp_path / "key")
    return load_key(tmp_path / "key")


def test_the_digests_are_what_the_page_says_so_that_anybody_can_compute_them() -> None:
    raw = b"".join(one.to_bytes(4, "little") for one in IDS)
    assert token_digest(IDS) == "sha256:" + hashlib.sha256(raw).hexdigest()
    assert text_digest(ANSWER) == "sha256:" + hashlib.sha256(ANSWER.encode()).hexdigest()


def test_an_envelope_is_dsse_and_comes_back_whole(key: PrivateKey) -> None:
    attestation = sign(text_of(STATEMENT), key)
    envelope = attestation.envelope()
    payload = base64.b64decode(envelope["payload"])
    assert json.loads(payload) == STATEMENT
    signed = b"DSSEv1 %d %s %d %s" % (
        len(PAYLOAD_TYPE),
        PAYLOAD_TYPE.encode(),
        len(payload),
        payload,
    )
    (signature,) = envelope["signatures"]
    assert key.public.verifies(base64.b64decode(signature["sig"]), signed)
    assert Attestation.of_envelope(envelope) == attestation
    assert attestation.statement == STATEMENT


@pytest.mark.parametrize("path", list(leaves(STATEMENT)), ids=lambda path: ".".join(map(str, path)))
def test_a_statement_with_any_field_changed_is_not_what_the_key_signed(
    key: PrivateKey, path: tuple[Any, ...]
) -> None:
    good = sign(text_of(STATEMENT), key)
    assert check_signature(good, [key.public]) == (key.public.key_id, "")
    bad = Attestation(text_of(changed(STATEMENT, path)), good.signatures)
    found, problem = check_signature(bad, [key.public])
    assert (found, problem) == (
        "",
        f"the statement was changed after {key.public.key_id} signed it",
    )


@pytest.mark.parametrize(
    ("path", "named"),
    {
        ("text",): "answers[0].text",
        ("token_ids", 1): "answers[0].tokens",
        ("finish_reason",): "answers[0].finish",
        ("provenance", "version"): "adapter.version",
        ("provenance", "version_digest"): "adapter.digest",
        ("provenance", "base"): "base.name",
        ("provenance", "base_fingerprint"): "base.fingerprint",
        ("provenance", "engine"): "engine.name",
        ("usage", "prompt_tokens"): "prompt.count",
        ("usage", "completion_tokens"): "usage.completion_tokens",
    }.items(),
)
def test_an_answer_with_any_field_changed_is_named_by_that_field(
    path: tuple[Any, ...], named: str
) -> None:
    attestation = {"statement_json": text_of(STATEMENT), "signatures": []}
    for saved, wrong in ((SAVED, []), (changed(SAVED, path), [named])):
        found, said = read_saved(json.dumps(saved | {"attestation": attestation}))
        findings = compare(found.statement, said)
        assert [one.what for one in findings if not one.holds] == wrong


def test_an_answer_of_the_openai_door_is_held_against_it(key: PrivateKey) -> None:
    envelope = sign(text_of(STATEMENT), key).envelope()
    choice = {"index": 0, "message": {"content": ANSWER}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    graft = SAVED["provenance"] | {"attestation": envelope}
    answer = {"choices": [choice], "usage": usage, "graft": graft}
    found, said = read_saved(json.dumps(answer))
    findings = compare(found.statement, said)
    assert len(findings) == 9
    assert all(one.holds for one in findings)
    graft["version_digest"] = "sha256:" + "0" * 64
    found, said = read_saved(json.dumps(answer))
    wrong = [one.what for one in compare(found.statement, said) if not one.holds]
    assert wrong == ["adapter.digest"]
    graft["version_digest"] = DIGEST
    choice["message"] = {"content": "red"}
    found, said = read_saved(json.dumps(answer))
    wrong = [one.what for one in compare(found.statement, said) if not one.holds]
    assert wrong == ["answers[0].text"]
    choice["index"] = 1
    found, said = read_saved(json.dumps(answer))
    wrong = [one.what for one in compare(found.statement, said) if not one.holds]
    assert wrong == ["answers[1]"]


def test_a_prompt_is_held_against_it_by_its_text_and_by_its_tokens() -> None:
    _, said = read_saved(json.dumps(Attestation(text_of(STATEMENT)).envelope()))
    said.prompt, said.prompt_token_ids = PROMPT, IDS
    assert all(one.holds for one in compare(STATEMENT, said))
    said.prompt, said.prompt_token_ids = PROMPT + " ", IDS[:2]
    assert [one.what for one in compare(STATEMENT, said) if not one.holds] == [
        "prompt.text",
        "prompt.tokens",
    ]


def test_signatures_that_are_none_or_strangers_are_told_apart(
    key: PrivateKey, tmp_path: Path
) -> None:
    stranger = new_key(tmp_path / "stranger")
    assert "has no signature" in check_signature(sign(text_of(STATEMENT), None), [stranger])[1]
    attestation = sign(text_of(STATEMENT), key)
    assert "which is not trusted" in check_signature(attestation, [stranger])[1]


def without(field: str) -> Callable[[dict[str, Any]], Any]:
    def remove(statement: dict[str, Any]) -> Any:
        return {name: value for name, value in statement.items() if name != field}

    return remove


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        *((without(field), f"{field} is missing") for field in STATEMENT if field != "adapter"),
        (lambda s: s | {"prompt": []}, "prompt is not an object"),
        (lambda s: s | {"answers": []}, "answers is not a list with an entry"),
        (lambda s: changed(s, ("prompt", "tokens")) | {"time": 3}, "time is '3'"),
        (lambda s: s | {"adapter": {"version": "x"}}, "adapter.digest is missing"),
        (lambda s: s | {"base": {"name": "x", "fingerprint": "y"}}, "base.fingerprint is 'y'"),
        (lambda s: [s], "its statement is not an object"),
    ],
)
def test_a_statement_of_another_form_is_malformed_and_its_field_named(
    spoil: Callable[[dict[str, Any]], Any], words: str
) -> None:
    with pytest.raises(GraftError) as caught:
        _ = Attestation(json.dumps(spoil(STATEMENT))).statement
    assert caught.value.reason is Reason.ATTESTATION_INVALID
    assert words in caught.value.message
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "it is not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "neither attestation"),
        ("[" * 100_000, "it is not JSON"),
        ('{"payload": "", "payloadType": "x"}', "its payloadType is 'x'"),
        (json.dumps({"payload": "%", "payloadType": PAYLOAD_TYPE}), "payload is not base64"),
        (
            json.dumps(
                {"payload": "", "payloadType": PAYLOAD_TYPE, "signatures": [{"sig": "AA=="}]}
            ),
            "64 bytes",
        ),
        ('{"attestation": {"statement_json": 3}}', "statement_json is not a text"),
        (
            '{"attestation": {"statement_json": "{}", "signatures": [3]}}',
            "is not an object of key_id",
        ),
    ],
)
def test_a_file_that_is_no_attestation_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(GraftError) as caught:
        read_saved(text)
    assert caught.value.reason is Reason.ATTESTATION_INVALID
    assert words in caught.value.message
