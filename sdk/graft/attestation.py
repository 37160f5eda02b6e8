"""What a service attests of an answer (base, version, engine, sampling, digests of its tokens), and whether it is true.

A statement is JSON text; exactly its bytes are signed, in DSSE's form (signatures.py has the source). Neither
parsing nor comparing needs cryptography. The service makes statements (services/inference/attestation).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graft.digests import is_digest
from graft.errors import GraftError, Reason
from graft.signatures import MAX_SIGNATURES, pae

if TYPE_CHECKING:
    from graft.keys import PrivateKey, PublicKey

PAYLOAD_TYPE = "application/vnd.graft.attestation.v1+json"
MAX_STATEMENT_BYTES = 256 * 1024
_SIGNATURE_BYTES = 64
_ADAPTER = {"version": str, "digest": str}
_TOKENS = {"count": int, "tokens": str, "text": str}
# Every field of a statement, with its type; in lists and in objects of objects, those of each.
_FORM: Mapping[str, Any] = {
    "request_id": str,
    "time": str,
    "base": {"name": str, "fingerprint": str},
    "engine": {"name": str, "version": str},
    "sampling": dict,
    "prompt": _TOKENS,
    "answers": [{"index": int, "finish": str, **_TOKENS}],
}


def token_digest(token_ids: Iterable[int]) -> str:
    """SHA-256 of token ids: each as an unsigned number of 4 bytes, the lowest first, without gaps."""
    words = array("I", token_ids)
    if sys.byteorder != "little":
        words.byteswap()
    return "sha256:" + hashlib.sha256(words.tobytes()).hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a text's UTF-8; what has no UTF-8 is taken as "?"."""
    return "sha256:" + hashlib.sha256(text.encode(errors="replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class AttestationSignature:
    """A signature; key_id is a hint that nothing vouches for. Base64 of Ed25519's 64 bytes."""

    key_id: str
    signature: str


@dataclass(frozen=True, slots=True)
class Attestation:
    """A statement with its signatures; none where the service has no key."""

    statement_json: str
    signatures: tuple[AttestationSignature, ...] = ()

    @property
    def statement(self) -> dict[str, Any]:
        """The statement, whose form is checked; docs/attestation.md says what its fields mean.

        Raises:
            GraftError: ATTESTATION_INVALID, naming the field.
        """
        if len(self.statement_json) > MAX_STATEMENT_BYTES:
            raise _malformed(f"its statement has more than {MAX_STATEMENT_BYTES} characters")
        try:
            value = json.loads(self.statement_json, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise _malformed(f"its statement is not JSON ({error})") from None
        _check_form(value, _FORM, "")
        if value.get("adapter") is not None:
            _check_form(value["adapter"], _ADAPTER, "adapter")
        result: dict[str, Any] = value
        return result

    def envelope(self) -> dict[str, Any]:
        """The DSSE envelope, as an object of JSON."""
        payload = self.statement_json.encode(errors="replace")
        return {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": one.key_id, "sig": one.signature} for one in self.signatures],
        }

    @classmethod
    def of_envelope(cls, envelope: Any) -> Attestation:
        """From what envelope() makes.

        Raises:
            GraftError: ATTESTATION_INVALID, naming the field.
        """
        if not isinstance(envelope, dict):
            raise _malformed("it is not a JSON object")
        if envelope.get("payloadType") != PAYLOAD_TYPE:
            raise _malformed(f"its payloadType is {str(envelope.get('payloadType'))[:80]!r}")
        payload = _bytes(envelope.get("payload"), "payload")
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            raise _malformed("its payload is not UTF-8") from None
        signatures = envelope.get("signatures")
        if not isinstance(signatures, list) or len(signatures) > MAX_SIGNATURES:
            raise _malformed(f"signatures is not a list of at most {MAX_SIGNATURES}")
        return cls(text, tuple(_signature(one, "keyid", "sig") for one in signatures))

    @classmethod
    def of_fields(cls, fields: Any) -> Attestation:
        """From its own fields, as `graft generate --json` prints them.

        Raises:
            GraftError: ATTESTATION_INVALID, naming the field.
        """
        if not isinstance(fields, dict) or not isinstance(fields.get("statement_json"), str):
            raise _malformed("statement_json is not a text")
        signatures = fields.get("signatures") or []
        if not isinstance(signatures, list) or len(signatures) > MAX_SIGNATURES:
            raise _malformed(f"signatures is not a list of at most {MAX_SIGNATURES}")
        found = tuple(_signature(one, "key_id", "signature") for one in signatures)
        return cls(fields["statement_json"], found)


def sign(statement_json: str, key: PrivateKey | None) -> Attestation:
    """An attestation that the key's holder stands for; without a key one that nobody does."""
    if key is None:
        return Attestation(statement_json)
    signature = key.sign(pae(PAYLOAD_TYPE, statement_json.encode(errors="replace")))
    encoded = base64.b64encode(signature).decode()
    return Attestation(statement_json, (AttestationSignature(key.public.key_id, encoded),))


def check_signature(attestation: Attestation, trusted: Sequence[PublicKey]) -> tuple[str, str]:
    """The key that signed the statement, or why none of the trusted ones did: one of the two is empty."""
    if not attestation.signatures:
        return "", "it has no signature: the service that answered has no key"
    message = pae(PAYLOAD_TYPE, attestation.statement_json.encode(errors="replace"))
    for one in attestation.signatures:
        signature = _bytes(one.signature, "sig")
        for key in trusted:
            if key.verifies(signature, message):
                return key.key_id, ""
    known = {key.key_id for key in trusted}
    for one in attestation.signatures:
        if one.key_id in known:
            return "", f"the statement was changed after {one.key_id} signed it"
    named = ", ".join(one.key_id or "an unnamed key" for one in attestation.signatures)
    return "", f"it is signed by {named}, which is not trusted"


def _check_form(value: Any, form: Any, path: str) -> None:
    """Refuses a value that has not the types of a form, or lacks one of its fields."""
    if isinstance(form, list):
        if not isinstance(value, list) or not value:
            raise _malformed(f"{path} is not a list with an entry")
        for number, each in enumerate(value):
            _check_form(each, form[0], f"{path}[{number}]")
    elif isinstance(form, Mapping):
        if not isinstance(value, dict):
            raise _malformed(f"{path or 'its statement'} is not an object")
        for name, inner in form.items():
            at = f"{path}.{name}" if path else name
            if name not in value:
                raise _malformed(f"{at} is missing")
            _check_form(value[name], inner, at)
    elif type(value) is not form:
        raise _malformed(f"{path} is {str(value)[:80]!r}")
    elif path.rpartition(".")[2] in ("tokens", "digest", "fingerprint") and not is_digest(value):
        raise _malformed(f"{path} is {value[:80]!r}, which is no digest")


def _signature(value: Any, key_id: str, signature: str) -> AttestationSignature:
    if not isinstance(value, dict) or not isinstance(value.get(key_id, ""), str):
        raise _malformed(f"a signature is not an object of {key_id} and {signature}")
    if len(_bytes(value.get(signature), signature)) != _SIGNATURE_BYTES:
        raise _malformed(f"a signature has not the {_SIGNATURE_BYTES} bytes of Ed25519's")
    return AttestationSignature(value.get(key_id, ""), value[signature])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _bytes(value: Any, field: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise _malformed(f"its {field} is not base64") from None


def _malformed(why: str) -> GraftError:
    return GraftError(
        Reason.ATTESTATION_INVALID,
        f"The attestation is malformed: {why}",
        next_step="Take it whole from an answer: its field attestation, or graft.attestation over HTTP.",
    )
