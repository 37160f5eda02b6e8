"""Whose adapters are loaded: versions are held to the signature policy before anything of them is fetched."""

from __future__ import annotations

from collections.abc import Sequence

from graft.errors import GraftError, Reason
from graft.keys import PublicKey
from graft.signatures import SignaturePolicy, Verdict, check_digest

from services.common.logs import get_logger
from services.inference.domain import AdapterVersion
from services.inference.registry.base import Registry


class Trust:
    """The policy of one service.

    Args:
        registry: asked again for a version that has no good signature: it may be newer than what is known.
        policy: what a version without one means.
        trusted: the keys whose signatures count.
    """

    def __init__(
        self, registry: Registry, policy: SignaturePolicy, trusted: Sequence[PublicKey]
    ) -> None:
        self._registry, self._policy, self._trusted = registry, policy, tuple(trusted)

    async def check(self, version: AdapterVersion) -> None:
        """Returns when the version may be loaded.

        Raises:
            GraftError: SIGNATURE_REQUIRED, SIGNATURE_INVALID, where the policy is to require one.
        """
        if self._policy is SignaturePolicy.OFF:
            return
        if not self._verdict(SignaturePolicy.WARN, version, version.envelopes).good:
            newer = await self._registry.version(version.name)
            verdict = self._verdict(self._policy, version, newer.envelopes)
            if not verdict.good:
                get_logger().warning(
                    "version is not signed", version=version.name, problem=verdict.problem
                )

    def _verdict(
        self, policy: SignaturePolicy, version: AdapterVersion, envelopes: Sequence[str]
    ) -> Verdict:
        # The files are those of the manifest that this process has read, whatever the registry says
        # of its digest.
        if version.manifest_digest != version.digest:
            raise GraftError(
                Reason.SIGNATURE_INVALID,
                f"The registry says that {version.name} has the digest {version.digest}, and its "
                f"manifest has {version.manifest_digest}",
                next_step="Check with `graft version` that service and registry are of one version; "
                "else do not trust this registry.",
            )
        return check_digest(policy, version.name, version.manifest_digest, envelopes, self._trusted)
