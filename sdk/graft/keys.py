"""Ed25519 keys in PEM files, through the package `cryptography`, which is imported when a key is used."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.errors import GraftError, Reason
from graft.files import fsync_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PASSPHRASE_VARIABLE = "GRAFT_KEY_PASSPHRASE"
_MAX_FILE_BYTES = 64 * 1024
_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that may be trusted; key_id is "sha256:{hex}" of its DER form (SubjectPublicKeyInfo)."""

    key_id: str
    _key: Ed25519PublicKey

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether this key made a signature of message."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs."""

    public: PublicKey
    _key: Ed25519PrivateKey

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(message)


def new_key(path: Path, passphrase: str = "") -> PublicKey:
    """Makes a key: the private one in path (readable by its owner alone), the public in path.pub.

    Args:
        path: a new file, PKCS #8 in PEM.
        passphrase: encrypts the private key, if not empty.

    Raises:
        GraftError: ALREADY_EXISTS, NOT_INSTALLED without the package cryptography.
    """
    serialization, ed25519 = _cryptography()
    key = ed25519.Ed25519PrivateKey.generate()
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    public_path = path.with_name(path.name + ".pub")
    if public_path.exists():
        raise _exists(public_path)
    _write_new(path, private, 0o600)
    _write_new(public_path, public, 0o644)
    return _public(key.public_key())


def load_key(path: Path, passphrase: str | None = None) -> PrivateKey:
    """The private key in a PEM file.

    Args:
        path: what new_key() or `openssl genpkey -algorithm ed25519` wrote.
        passphrase: of an encrypted one; by default $GRAFT_KEY_PASSPHRASE.

    Raises:
        GraftError: INVALID_REQUEST, naming the file and what is wrong with it.
    """
    serialization, ed25519 = _cryptography()
    data = _read(path)
    if passphrase is None:
        passphrase = os.environ.get(PASSPHRASE_VARIABLE, "")
    encrypted = b"ENCRYPTED" in data
    try:
        key = serialization.load_pem_private_key(
            data, passphrase.encode() if passphrase and encrypted else None
        )
    except TypeError:
        raise _bad_key(path, "is encrypted", f"Set {PASSPHRASE_VARIABLE}.") from None
    except ValueError:
        what = "cannot be decrypted, or is no private key" if encrypted else "is no private key"
        raise _bad_key(path, what, "Make one with `graft keys new FILE`.") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _bad_key(path, "is not an Ed25519 key", "Make one with `graft keys new FILE`.")
    return PrivateKey(_public(key.public_key()), key)


def load_trusted(paths: Iterable[Path]) -> tuple[PublicKey, ...]:
    """The public keys in PEM files; a file may hold several, one after the other.

    Raises:
        GraftError: INVALID_REQUEST, naming the file and what is wrong with it.
    """
    found = {key.key_id: key for path in paths for key in _load_public(path)}
    return tuple(found.values())


def _load_public(path: Path) -> Iterable[PublicKey]:
    serialization, ed25519 = _cryptography()
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise _bad_key(path, "is a private key", "Trust its public half: the file beside it, .pub.")
    blocks = [match.group() for match in _BLOCK.finditer(data)]
    if not blocks:
        raise _bad_key(
            path, "holds no public key in PEM", "Name a file that `graft keys new` made."
        )
    for block in blocks:
        try:
            key = serialization.load_pem_public_key(block)
        except ValueError:
            key = None
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise _bad_key(path, "is not an Ed25519 key", "Name a file that `graft keys new` made.")
        yield _public(key)


def _public(key: Ed25519PublicKey) -> PublicKey:
    serialization, _ = _cryptography()
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return PublicKey("sha256:" + hashlib.sha256(der).hexdigest(), key)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise _bad_key(path, f"cannot be read ({error.strerror})", "Check its name.") from None


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise _bad_key(path, f"cannot be written ({error.strerror})", "Name another.") from None
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)
    fsync_folder(path.absolute().parent)


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise GraftError(
            Reason.NOT_INSTALLED,
            "Signatures need the package cryptography, which is not installed",
            next_step="Install it: pip install 'graft-adapters[signing]'.",
        ) from None
    return serialization, ed25519


def _exists(path: Path) -> GraftError:
    return GraftError(
        Reason.ALREADY_EXISTS,
        f"{path} exists already",
        next_step="Name a new file; a key is never overwritten.",
        path=path,
    )


def _bad_key(path: Path, what: str, next_step: str) -> GraftError:
    return GraftError(
        Reason.INVALID_REQUEST, f"The key file {path} {what}", next_step=next_step, path=path
    )
