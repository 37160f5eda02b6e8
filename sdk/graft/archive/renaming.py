"""Names of one namespace as those of another."""

from __future__ import annotations

from graft.errors import GraftError, Reason
from graft.names import namespace_name
from graft.registry.v1.registry_service_pb2 import Manifest


class Renaming:
    """From the namespace of an archive to the one that takes it in, which may be the same."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = f"{namespace_name(old)}/", f"{namespace_name(new)}/"

    @property
    def changes(self) -> bool:
        """Whether names change at all."""
        return self._old != self._new

    def name(self, name: str) -> str:
        """A resource's name there."""
        if not name.startswith(self._old):
            raise GraftError(
                Reason.ARCHIVE_REFUSED,
                f"The archive is not taken: {name[:120]!r} is not a name in {self._old}",
                next_step="Export the namespace again with `graft export`.",
            )
        return self._new + name.removeprefix(self._old)

    def manifest(self, manifest: Manifest, digest: str) -> Manifest:
        """What the manifest of a version is there; where names change, it tells its old digest."""
        if not self.changes:
            return manifest
        renamed = Manifest()
        renamed.CopyFrom(manifest)
        if renamed.base:
            renamed.base = self.name(renamed.base)
        del renamed.lineage.parent_versions[:]
        # What a version was made from may lie in a third namespace.
        renamed.lineage.parent_versions.extend(
            self.name(name) if name.startswith(self._old) else name
            for name in manifest.lineage.parent_versions
        )
        renamed.lineage.sources.append(f"graft://{self._old.removeprefix('namespaces/')}@{digest}")
        return renamed
