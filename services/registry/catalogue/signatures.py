"""Signatures of versions in SQL: kept beside the version, each once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from graft.errors import GraftError, Reason
from graft.names import namespace_of, version_name
from sqlalchemy import update

from services.registry.catalogue import rows
from services.registry.catalogue.base import NewSignature
from services.registry.catalogue.change import Change
from services.registry.catalogue.commits import read_version
from services.registry.catalogue.tables import versions
from services.registry.domain import Action, Signature, Version
from services.registry.errors import deleted

_MOST = 64


async def sign_version(change: Change, parent: str, number: int, new: NewSignature) -> Version:
    """See Catalogue.sign_version."""
    version = await read_version(change.connection, parent, number)
    name = version_name(parent, number)
    if version.life.deleted:
        raise deleted("version", name, version.life)
    if new.manifest_digest != version.digest:
        raise GraftError(
            Reason.SIGNATURE_INVALID,
            f"The signature is of {new.manifest_digest}, and {name} has the digest {version.digest}",
            next_step="Sign the version's own digest: `graft adapters sign`.",
        )
    if any(one.envelope_json == new.envelope_json for one in version.signatures):
        return version
    if len(version.signatures) >= _MOST:
        raise GraftError(
            Reason.TOO_LARGE,
            f"{name} has {_MOST} signatures already",
            next_step="Use one of them, or push the adapter again as a new version.",
        )
    signature = Signature(new.key_id, new.envelope_json, change.caller.actor, change.now)
    signed = dataclasses.replace(version, signatures=(*version.signatures, signature))
    await change.connection.execute(
        update(versions)
        .where(versions.c.parent == parent, versions.c.number == number)
        .values(signatures=rows.dump(signed.signatures, Sequence[Signature]))
    )
    change.record(
        namespace_of(parent),
        signed,
        Action.UPDATED,
        detail={"signed_by": new.key_id, "digest": version.digest},
    )
    return signed
