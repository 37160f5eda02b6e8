"""Certificates in files: which a client uses, read, and checked before they are used.

For both ends of a connection. What a handshake says about the other end's is in handshakes.py.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from graft.errors import GraftError, Reason
from graft.handshakes import CA, CERTIFICATE, KEY, SERVER_NAME

# Instead of a file: the roots that gRPC brings, for certificates of a public authority.
SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Tls:
    """How a client speaks TLS to the services of one installation.

    Args:
        ca: PEM file of those who may sign a service's certificate; None for public authorities.
        certificate, key: PEM files with which the client shows who it is, where services want to know.
        server_name: what certificates have to be for, where that is not the address's own name.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            there, missing = (CERTIFICATE, KEY) if self.key is None else (KEY, CERTIFICATE)
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"{there} is set and {missing} is not",
                next_step="A client's certificate and its key belong together: name both or none.",
            )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Self | None:
        """GRAFT_TLS_CA, _CERTIFICATE, _KEY and _SERVER_NAME; None, which is plaintext, without any.

        Raises:
            GraftError: INVALID_REQUEST when others are set and the CA is not.
        """
        return cls.of(*(environ.get(name) for name in (CA, CERTIFICATE, KEY, SERVER_NAME)))

    @classmethod
    def of(
        cls,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        server_name: str | None = None,
    ) -> Self | None:
        """The same of single values; "system" as CA means public authorities.

        Raises:
            GraftError: INVALID_REQUEST when others are set and the CA is not.
        """
        if not ca:
            for name, value in ((CERTIFICATE, certificate), (KEY, key), (SERVER_NAME, server_name)):
                if value:
                    raise GraftError(
                        Reason.INVALID_REQUEST,
                        f"{name} is set, and {CA} is not: nothing says whom to trust",
                        next_step=f"Set {CA} to the file of the services' CA, or to {SYSTEM}.",
                    )
            return None
        return cls(
            None if ca == SYSTEM else Path(ca).expanduser(),
            Path(certificate).expanduser() if certificate else None,
            Path(key).expanduser() if key else None,
            server_name or "",
        )

    def has_expired(self) -> bool:
        """Whether the client's certificate has, as far as that can be told here."""
        if self.certificate is None:
            return False
        between = valid_between(_read(self.certificate, "certificate"))
        return between is not None and datetime.now(UTC) > between[1]

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that are read."""
        return tuple(one for one in (self.ca, self.certificate, self.key) if one is not None)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with those that signed it, and its key, in PEM."""

    certificate: bytes
    key: bytes


def read_pair(certificate: Path, key: Path) -> Pair:
    """A certificate and its key.

    Raises:
        GraftError: INVALID_REQUEST, naming the file: it cannot be read, is not PEM, has expired or is not
            valid yet, the key is another's or encrypted.
    """
    pair = Pair(_read(certificate, "certificate"), _read(key, "key"))
    _check_times(certificate, pair.certificate)
    try:
        # Never asks at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: "")
    except ssl.SSLError as error:
        raise _bad_pair(certificate, key, pair, error) from None
    except (OSError, ValueError) as error:
        raise _bad(certificate, f"cannot be used with {key} ({error})", "Make both anew.") from None
    return pair


def read_ca(path: Path) -> bytes:
    """The certificates of those who may sign.

    Raises:
        GraftError: INVALID_REQUEST, naming the file: it cannot be read, or holds no certificate.
    """
    data = _read(path, "CA")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise _bad(
            path, f"holds no CA certificate in PEM ({error})", "Name the file `ca.crt` of your CA."
        ) from None
    return data


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _bad(
            path,
            f"cannot be read ({error.strerror})",
            f"Name the {what}'s PEM file, and let this user (id {os.getuid()}) read it.",
        ) from None


def _bad_pair(certificate: Path, key: Path, pair: Pair, error: ssl.SSLError) -> GraftError:
    if error.reason == "KEY_VALUES_MISMATCH":
        return _bad(
            key,
            f"is not the key of the certificate {certificate}",
            "Name the two files that were made together (tls.crt and tls.key of one Secret).",
        )
    if b"ENCRYPTED" in pair.key:
        return _bad(
            key, "is encrypted", "Write it without a passphrase: `openssl pkey -in FILE -out FILE`."
        )
    if b"-----BEGIN" not in pair.key or b"PRIVATE KEY" not in pair.key:
        return _bad(key, "holds no private key in PEM", "Name the certificate's key (tls.key).")
    return _bad(
        certificate,
        f"holds no certificate in PEM ({error.reason})",
        "Name the tls.crt of the pair.",
    )


def _check_times(path: Path, data: bytes) -> None:
    """Whether the certificate is valid now, where the package cryptography is there to look."""
    from_to = valid_between(data)
    if from_to is None:
        return
    now, (begin, end) = datetime.now(UTC), from_to
    if now > end:
        raise _bad(
            path,
            f"expired at {end:%Y-%m-%d %H:%M} UTC",
            "Renew it; where cert-manager does that, see `kubectl describe certificate`.",
        )
    if now < begin:
        raise _bad(
            path,
            f"is valid only from {begin:%Y-%m-%d %H:%M} UTC",
            "Set this machine's clock, or wait.",
        )


def valid_between(data: bytes) -> tuple[datetime, datetime] | None:
    """From when to when the first certificate of a PEM file is valid.

    Returns:
        None where it cannot be told: without the package cryptography, or when it is no certificate.
    """
    try:
        from cryptography import x509
    except ImportError:
        return None
    try:
        one = x509.load_pem_x509_certificate(data)
    except ValueError:
        return None
    return one.not_valid_before_utc, one.not_valid_after_utc


def _bad(path: Path, what: str, next_step: str) -> GraftError:
    return GraftError(
        Reason.INVALID_REQUEST, f"The TLS file {path} {what}", next_step=next_step, path=path
    )
