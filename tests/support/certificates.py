"""Certificates that a test makes for itself: good ones, and each kind of wrong one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from graft.authority import Authority
from graft.tls import Pair, Tls

LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Files:
    """Where a certificate and its key are."""

    certificate: Path
    key: Path


class TestAuthority:
    """A CA with a folder for what it issues."""

    __test__ = False

    def __init__(self, folder: Path, name: str = "test-ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.authority = folder, Authority.new(name, 2)
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(self.authority.pem.certificate)

    def issue(
        self, name: str, hosts: tuple[str, ...] = LOOPBACK, *, expired: bool = False
    ) -> Files:
        """A certificate in files; again under the same name, it is renewed."""
        begin = datetime.now(UTC) - timedelta(days=3) if expired else None
        return self.write(name, self.authority.issue(name, hosts, 1, begin))

    def write(self, name: str, pair: Pair) -> Files:
        """A pair in files, each exchanged as a whole."""
        files = Files(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        for path, content in ((files.key, pair.key), (files.certificate, pair.certificate)):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(content)
            fresh.replace(path)
        return files

    def client(self, files: Files | None = None) -> Tls:
        """A client that trusts this CA, and shows a certificate if it has one."""
        if files is None:
            return Tls(self.ca)
        return Tls(self.ca, files.certificate, files.key)
