"""RPCs about signatures of versions."""

from __future__ import annotations

from graft.errors import GraftError, Reason
from graft.registry.v1 import registry_service_pb2 as pb
from graft.signatures import parse_envelope

from services.common.interceptors import Context
from services.registry.catalogue.base import NewSignature
from services.registry.convert import messages
from services.registry.convert.checks import version_number
from services.registry.rpcs.base import RpcGroup


class SignatureRpcs(RpcGroup):
    """Signatures. The registry holds no keys: whoever loads a version says whom it trusts."""

    async def SignVersion(self, request: pb.SignVersionRequest, context: Context) -> pb.Version:
        parent, number = version_number(request.name)
        new = _new_signature(request.envelope_json)
        version = await self.parts.catalogue.sign_version(parent, number, new)
        return messages.version_message(version)


def _new_signature(text: str) -> NewSignature:
    envelope = parse_envelope(text)
    if any(not one.key_id for one in envelope.signatures):
        raise GraftError(
            Reason.SIGNATURE_INVALID,
            "A signature of the envelope has no keyid",
            next_step="Write the SHA-256 of the public key's DER form, as `graft keys show` prints it.",
        )
    return NewSignature(envelope.signatures[0].key_id, text, envelope.manifest_digest)
