"""Signatures of versions: Ed25519 over the manifest's digest, in a DSSE envelope, and the policy at load.

What is signed is content: the manifest names every file by its digest. Where an alias points is not signed.
Source: DSSE protocol 1.0.2, https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from graft.digests import digest_message, is_digest
from graft.errors import GraftError, Reason

if TYPE_CHECKING:
    from graft.keys import PrivateKey, PublicKey
    from graft.registry.v1.registry_service_pb2 import Version

PAYLOAD_TYPE = "application/vnd.graft.manifest.v1+json"
MAX_ENVELOPE_BYTES = 16 * 1024
MAX_SIGNATURES = 16
_SIGNATURE_BYTES = 64
_FIELD = "manifest_digest"


class SignaturePolicy(StrEnum):
    """What a version without a good signature of a trusted key means to whoever loads it."""

    OFF = "off"
    WARN = "warn"
    REQUIRE = "require"


@dataclass(frozen=True, slots=True)
class EnvelopeSignature:
    """A signature of an envelope; key_id is a hint that nothing vouches for."""

    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A well-formed envelope: not yet verified."""

    manifest_digest: str
    payload: bytes
    signatures: tuple[EnvelopeSignature, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found; key_id is the trusted key's that signed, problem says why there is none."""

    key_id: str = ""
    problem: str = ""

    @property
    def good(self) -> bool:
        """Whether a trusted key signed it."""
        return bool(self.key_id)


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that a signature is made over."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(manifest_digest: str, key: PrivateKey) -> str:
    """An envelope, as JSON, that says: the holder of key stands for the version of this digest.

    Raises:
        GraftError: INVALID_REQUEST when manifest_digest is not a digest.
    """
    if not is_digest(manifest_digest):
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{manifest_digest[:80]!r} is not the digest of a version",
            next_step="Take it from `graft adapters show NAME:NUMBER`.",
        )
    payload = json.dumps({_FIELD: manifest_digest}, separators=(",", ":")).encode()
    signature = key.sign(pae(PAYLOAD_TYPE, payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key.public.key_id, "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope, separators=(",", ":"))


def parse_envelope(text: str) -> Envelope:
    """An envelope whose form is right, in bounded time; needs no cryptography.

    Raises:
        GraftError: SIGNATURE_INVALID, naming the field.
    """
    if len(text.encode(errors="replace")) > MAX_ENVELOPE_BYTES:
        raise _malformed(f"it has more than {MAX_ENVELOPE_BYTES} bytes")
    fields = _object(text, "it", ("payload", "payloadType", "signatures"))
    if fields["payloadType"] != PAYLOAD_TYPE:
        raise _malformed(f"its payloadType is {str(fields['payloadType'])[:80]!r}")
    payload = _bytes(fields["payload"], "payload")
    body = _object(payload.decode(errors="replace"), "its payload", (_FIELD,))
    digest = body[_FIELD]
    if len(body) > 1 or not isinstance(digest, str) or not is_digest(digest):
        raise _malformed(f"its payload is not exactly one {_FIELD}")
    found = fields["signatures"]
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_SIGNATURES:
        raise _malformed(f"it does not have 1 to {MAX_SIGNATURES} signatures")
    return Envelope(digest, payload, tuple(_signature(one) for one in found))


def verify(envelopes: Iterable[str], manifest_digest: str, trusted: Sequence[PublicKey]) -> Verdict:
    """Whether a trusted key signed a manifest's digest; names the key or says why there is none."""
    problems, count = [], 0
    for text in envelopes:
        count += 1
        try:
            envelope = parse_envelope(text)
        except GraftError as error:
            problems.append(error.message)
            continue
        if envelope.manifest_digest != manifest_digest:
            problems.append(f"a signature is of {envelope.manifest_digest}, not of this version")
            continue
        problem = _verify_one(envelope, trusted)
        if isinstance(problem, Verdict):
            return problem
        problems.append(problem)
    if not count:
        return Verdict(problem="it has no signature")
    return Verdict(problem="; ".join(dict.fromkeys(problems)))


def check(policy: SignaturePolicy, version: Version, trusted: Sequence[PublicKey]) -> Verdict:
    """Holds a version of the registry to a policy before anything of it is used.

    The manifest's digest is computed here: neither the registry's word for it nor its transport
    has to be trusted.

    Args:
        policy: off answers at once; warn and require look; only require raises.
        version: with manifest, digest and signatures.
        trusted: the keys that count.

    Returns:
        The verdict; with warn it is the caller's to say what its problem is.

    Raises:
        GraftError: SIGNATURE_REQUIRED when there is no signature, SIGNATURE_INVALID when there is
            none that a trusted key made of this content.
    """
    if policy is SignaturePolicy.OFF:
        return Verdict()
    envelopes = [one.envelope_json for one in version.signatures]
    return check_digest(policy, version.name, digest_message(version.manifest), envelopes, trusted)


def check_digest(
    policy: SignaturePolicy,
    name: str,
    manifest_digest: str,
    envelopes: Sequence[str],
    trusted: Sequence[PublicKey],
) -> Verdict:
    """check() for who has computed the manifest's digest already; name is for the error."""
    if policy is SignaturePolicy.OFF:
        return Verdict()
    verdict = verify(envelopes, manifest_digest, trusted)
    if verdict.good or policy is SignaturePolicy.WARN:
        return verdict
    reason = Reason.SIGNATURE_INVALID if envelopes else Reason.SIGNATURE_REQUIRED
    raise GraftError(
        reason,
        f"{name} is not signed by a trusted key: {verdict.problem}",
        next_step=f"Sign it with `graft adapters sign {_short(name)} --key FILE`, or add the "
        "signer's public key to the trusted ones.",
        version=name,
        digest=manifest_digest,
    )


def _verify_one(envelope: Envelope, trusted: Sequence[PublicKey]) -> Verdict | str:
    message = pae(PAYLOAD_TYPE, envelope.payload)
    for one in envelope.signatures:
        # The key id is a hint: a key that it names is tried first, the others all the same.
        for key in sorted(trusted, key=lambda key: key.key_id != one.key_id):
            if key.verifies(one.signature, message):
                return Verdict(key_id=key.key_id)
    known = {key.key_id for key in trusted}
    for one in envelope.signatures:
        if one.key_id in known:
            return f"the signature that names the trusted key {one.key_id} is not that key's"
    named = ", ".join(one.key_id or "an unnamed key" for one in envelope.signatures)
    return f"it is signed by {named}, which is not trusted"


def _signature(value: Any) -> EnvelopeSignature:
    if not isinstance(value, dict) or not set(value) <= {"keyid", "sig"}:
        raise _malformed("a signature is not an object of keyid and sig")
    key_id = value.get("keyid", "")
    if not isinstance(key_id, str) or (key_id and not is_digest(key_id)):
        raise _malformed(f"a keyid is {str(key_id)[:80]!r}, not a digest of a public key")
    signature = _bytes(value.get("sig"), "sig")
    if len(signature) != _SIGNATURE_BYTES:
        raise _malformed(f"a signature has {len(signature)} bytes, Ed25519's have 64")
    return EnvelopeSignature(key_id, signature)


def _object(text: str, what: str, fields: tuple[str, ...]) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not set(fields) <= set(value):
        raise _malformed(f"{what} is not a JSON object with {', '.join(fields)}")
    return value


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


def _short(name: str) -> str:
    adapter, _, number = name.partition("/versions/")
    return f"{adapter.rpartition('/')[2]}:{number}"


def _malformed(why: str) -> GraftError:
    return GraftError(
        Reason.SIGNATURE_INVALID,
        f"A signature's envelope is malformed: {why}",
        next_step="Make it with `graft adapters sign`, or graft.signatures.sign().",
    )
