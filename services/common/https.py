"""A server's certificates for asyncio, which takes them as an SSLContext; see tls.py for gRPC's."""

from __future__ import annotations

import os
import ssl

from graft.tls import Pair

from services.common.tls import ServerCertificates


class HttpsCertificates:
    """An SSLContext that shows in every handshake what the files hold by then."""

    def __init__(self, certificates: ServerCertificates) -> None:
        self._certificates = certificates
        self._newest, self._generation = self._make()
        # Every handshake begins with the first one, and is moved to the newest.
        self.context, _ = self._make()
        self.context.sni_callback = self._move

    def _make(self) -> tuple[ssl.SSLContext, int]:
        pair, client_ca, generation = self._certificates.now()
        return _context(pair, client_ca), generation

    def _move(
        self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _first: ssl.SSLContext
    ) -> None:
        # A renewal costs two reads of the files, and happens once in weeks.
        if self._certificates.now()[2] != self._generation:
            self._newest, self._generation = self._make()
        connection.context = self._newest


def _context(pair: Pair, client_ca: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, pair)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=client_ca.decode("ascii"))
    return context


def _load(context: ssl.SSLContext, pair: Pair) -> None:
    """OpenSSL reads files alone; the key, which was checked, must not lie on a disk for that."""
    descriptor = os.memfd_create("graft-certificate")
    try:
        os.write(descriptor, pair.key.rstrip() + b"\n" + pair.certificate)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
