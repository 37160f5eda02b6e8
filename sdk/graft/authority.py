"""A certificate authority of one's own, for installations without cert-manager: makes and renews certificates.

Through the package `cryptography`, which is imported when one is made. Not for the world: nobody revokes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from graft.errors import GraftError, Reason
from graft.tls import Pair

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

# Clocks of other machines may be behind.
_EARLIER = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates. Its key is what all trust: whoever has it can be anybody."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @classmethod
    def new(cls, name: str, days: float) -> Authority:
        """One of its own, valid for so long.

        Raises:
            GraftError: NOT_INSTALLED without the package cryptography.
        """
        x509, hashes, ec, _ = _cryptography()
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        builder = _builder(subject, subject, key, datetime.now(UTC) - _EARLIER, days)
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        ).add_extension(_usage(signs=True), critical=True)
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, pair: Pair) -> Authority:
        """One that was made before, from PEM.

        Raises:
            GraftError: INVALID_REQUEST when it is no CA's; NOT_INSTALLED.
        """
        x509, _, ec, serialization = _cryptography()
        try:
            certificate = x509.load_pem_x509_certificate(pair.certificate)
            key = serialization.load_pem_private_key(pair.key, None)
            is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (ValueError, TypeError, x509.ExtensionNotFound) as error:
            raise _no_ca(str(error)) from None
        if not is_ca or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise _no_ca("it may not sign, or its key is of another kind")
        return cls(certificate, key)

    @property
    def pem(self) -> Pair:
        """Its certificate and its key."""
        return _pem(self.certificate, self.key)

    def issue(
        self, name: str, hosts: Sequence[str] = (), days: float = 90, begin: datetime | None = None
    ) -> Pair:
        """A new key and its certificate, good for both ends of a connection.

        Args:
            name: of whom it is for.
            hosts: names and IP addresses under which it is called; none for a mere client.
            days: how long it is valid, at most as long as the authority.
            begin: from when; by default now.
        """
        x509, hashes, ec, _ = _cryptography()
        key = ec.generate_private_key(ec.SECP256R1())
        begin = begin or datetime.now(UTC) - _EARLIER
        builder = _builder(_name(name), self.certificate.subject, key, begin, days)
        uses = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs=False), True),
            (x509.ExtendedKeyUsage(uses if hosts else uses[1:]), False),
            (
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                False,
            ),
        ):
            builder = builder.add_extension(extension, critical=critical)
        if hosts:
            names = x509.SubjectAlternativeName([_host(one) for one in hosts])
            builder = builder.add_extension(names, critical=False)
        return _pem(builder.sign(self.key, hashes.SHA256()), key)


def _builder(subject: Any, issuer: Any, key: Any, begin: datetime, days: float) -> Any:
    x509, _, _, _ = _cryptography()
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    return builder.not_valid_before(begin).not_valid_after(begin + timedelta(days=days))


def _usage(*, signs: bool) -> Any:
    x509, _, _, _ = _cryptography()
    no = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, **no)


def _name(text: str) -> Any:
    x509, _, _, _ = _cryptography()
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _host(text: str) -> Any:
    x509, _, _, _ = _cryptography()
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(certificate: Any, key: Any) -> Pair:
    _, _, _, serialization = _cryptography()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), private)


def _cryptography() -> tuple[Any, Any, Any, Any]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise GraftError(
            Reason.NOT_INSTALLED,
            "Making certificates needs the package cryptography, which is not installed",
            next_step="Install it: pip install 'graft-adapters[signing]'.",
        ) from None
    return x509, hashes, ec, serialization


def _no_ca(why: str) -> GraftError:
    return GraftError(
        Reason.INVALID_REQUEST,
        f"ca.crt and ca.key are not those of a CA that was made here: {why}",
        next_step="Name a new folder, or put both files of the CA there.",
    )
