"""A server's certificates: whom it shows itself as, and whom it lets in. Renewed files need no restart.

gRPC asks for the certificate before every handshake. Connections that stand are not touched by a new one.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import grpc
from graft.errors import GraftError
from graft.renewed import Renewed
from graft.tls import Pair, read_ca, read_pair, valid_between

from services.common.config import ServiceSettings
from services.common.logs import get_logger

_Content = tuple[Pair, bytes | None]


class ServerCertificates:
    """What a server is started with, and what each later handshake takes.

    Args:
        certificate, key: PEM files.
        client_ca: PEM file; clients then have to show a certificate that it signed.

    Raises:
        GraftError: INVALID_REQUEST, naming the file that cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        files = (certificate, key) if client_ca is None else (certificate, key, client_ca)
        self._files = Renewed(files, self._read, self._tell)
        self._given = 0

    def _read(self) -> _Content:
        pair = read_pair(self._certificate, self._key)
        return pair, None if self._client_ca is None else read_ca(self._client_ca)

    def _tell(self, error: GraftError | None) -> None:
        if error is None:
            get_logger().info("certificate renewed", file=str(self._certificate))
        else:
            get_logger().warning("renewed certificate not usable, the old stays", error=str(error))

    def credentials(self) -> grpc.ServerCredentials:
        """For add_secure_port(), of grpc.aio as well."""
        content, self._given = self._files.now()
        return grpc.dynamic_ssl_server_credentials(
            _configuration(content),
            self._fetch,  # type: ignore[arg-type]  # None means unchanged, which the stubs do not know
            self._client_ca is not None,
        )

    def now(self) -> tuple[Pair, bytes | None, int]:
        """What is in the files, the clients' CA last, and how often it was renewed."""
        (pair, client_ca), generation = self._files.now()
        return pair, client_ca, generation

    def ends(self) -> datetime | None:
        """Until when the certificate that is in the file is valid."""
        (pair, _), _ = self._files.now()
        between = valid_between(pair.certificate)
        return between[1] if between is not None else None

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called in a thread of gRPC's before each handshake; None: as before."""
        content, generation = self._files.now()
        if generation == self._given:
            return None
        self._given = generation
        return _configuration(content)


def certificates_of(settings: ServiceSettings) -> ServerCertificates | None:
    """Those that the settings name; None for plaintext.

    Raises:
        GraftError: INVALID_REQUEST, naming the file that cannot be used.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return ServerCertificates(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def _configuration(content: _Content) -> grpc.ServerCertificateConfiguration:
    pair, client_ca = content
    return grpc.ssl_server_certificate_configuration(
        [(pair.key, pair.certificate)], root_certificates=client_ca
    )
