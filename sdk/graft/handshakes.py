"""What a failed handshake means, in words: gRPC's own message, and an answer to asking the peer once more.

gRPC tells what was wrong with the service's certificate. What was wrong with ours only the service knows:
it closes the connection. A handshake by ssl shows the alert that a proxy sends; gRPC's servers send none, but
then nothing else is left to be wrong.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graft.tls import Tls

# Variables of a client's environment; see graft.tls.Tls.
CA, CERTIFICATE, KEY, SERVER_NAME = (
    "GRAFT_TLS_CA",
    "GRAFT_TLS_CERTIFICATE",
    "GRAFT_TLS_KEY",
    "GRAFT_TLS_SERVER_NAME",
)
_ASK_S = 3.0
_ADDRESS = re.compile(r"ipv[46]:([^ ]+:[0-9]+): ")
_RENEW = "Renew the service's certificate; where cert-manager does that, see `kubectl describe certificate`."
_PLAIN = f"Unset {CA}, or give the service its tls_certificate and tls_key."
_NAME = (
    "Use an address that its certificate names, let the certificate name this one, or say with "
    f"{SERVER_NAME} which name it has."
)
_TRUST = f"Set {CA} (--tls-ca) to the file of the CA that signed the service's certificate."
_SHOW = (
    f"Set {CERTIFICATE} and {KEY} (--tls-certificate, --tls-key) to a certificate of the service's "
    "client CA."
)
_RENEW_OURS = f"Renew the file that {CERTIFICATE} names: it is read again by itself."
_CLOCK = "Set the clocks of both machines right."
_EITHER = (
    f"Check that it runs. If it speaks TLS, name its CA ({CA}, --tls-ca); if it wants clients' certificates, name a valid one "
    f"({CERTIFICATE}, {KEY}); `graft doctor` says which."
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is no connection.

    Attributes:
        what: is wrong, as the end of "the registry cannot be reached: ".
        next_step: what to do about it.
        closed: the service closed it without a word: ask_again() may say more.
    """

    what: str
    next_step: str
    closed: bool = False


# In gRPC's words, from BoringSSL; the first that is there.
_SAID = (
    ("certificate has expired", Trouble("its certificate has expired", _RENEW)),
    ("certificate is not yet valid", Trouble("its certificate is not valid yet", _CLOCK)),
    ("Hostname Verification Check failed", Trouble("its certificate is for another name", _NAME)),
    (
        "CERTIFICATE_VERIFY_FAILED",
        Trouble("its certificate is signed by a CA that is not trusted here", _TRUST),
    ),
    ("WRONG_VERSION_NUMBER", Trouble("it does not speak TLS", _PLAIN)),
    (
        "Socket closed",
        Trouble("it closed the connection before the first call", _EITHER, closed=True),
    ),
)
_ENCRYPTED = Trouble("it speaks TLS, and this client did not", _TRUST)
_NOT_SHOWN = "it wants a client certificate, and none was shown"
_EXPIRED = "the client certificate {file} has expired"
_UNKNOWN = "the client certificate {file} is signed by a CA that it does not trust"
_NOT_ACCEPTED = "it does not accept the client certificate {file}"
# OpenSSL's names of the alerts with which a service refuses a client's certificate.
_ALERTS = (
    ("CERTIFICATE_REQUIRED", _NOT_SHOWN, _SHOW),
    ("HANDSHAKE_FAILURE", _NOT_SHOWN, _SHOW),
    ("CERTIFICATE_EXPIRED", _EXPIRED, _RENEW_OURS),
    ("UNKNOWN_CA", _UNKNOWN, _SHOW),
    ("CERTIFICATE_UNKNOWN", _NOT_ACCEPTED, _SHOW),
    ("BAD_CERTIFICATE", _NOT_ACCEPTED, _SHOW),
)


def handshake_trouble(details: str) -> Trouble | None:
    """What gRPC's message says of a handshake; None where it says nothing of one."""
    if "last error: " not in details:
        return None
    for said, trouble in _SAID:
        if said in details:
            found = _ADDRESS.search(details)
            where = f" ({found[1]})" if found else ""
            return Trouble(trouble.what + where, trouble.next_step, trouble.closed)
    return None


async def ask_again(address: str, tls: Tls | None) -> Trouble | None:
    """Why a service closed the connection: a handshake by ssl, which shows the alert.

    Args:
        address: "host:port" or "dns:///host:port".
        tls: how the client spoke; None for plaintext.

    Returns:
        None when nothing was found out.
    """
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    name = (tls.server_name if tls is not None else "") or host.strip("[]")
    try:
        async with asyncio.timeout(_ASK_S):
            reader, writer = await asyncio.open_connection(
                host.strip("[]"), int(port), ssl=_context(tls), server_hostname=name
            )
            try:
                # Who accepts us begins with its HTTP/2 settings.
                accepted = bool(await reader.read(1))
            except ConnectionError:
                accepted = False
            finally:
                # It need not say goodbye.
                writer.transport.abort()
    except ssl.SSLError as error:
        return _alert(error.reason or "", tls)
    except (OSError, TimeoutError, ValueError):
        return None
    if tls is None:
        return _ENCRYPTED
    return None if accepted else _not_accepted(tls)


def _not_accepted(tls: Tls) -> Trouble:
    if tls.certificate is None:
        return Trouble(_NOT_SHOWN, _SHOW)
    if tls.has_expired():
        return Trouble(_EXPIRED.format(file=tls.certificate), _RENEW_OURS)
    return Trouble(_UNKNOWN.format(file=tls.certificate), _SHOW)


def _context(tls: Tls | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # What is wrong with the service's own certificate gRPC has said.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if tls is not None and tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key, lambda: "")
    return context


def _alert(reason: str, tls: Tls | None) -> Trouble | None:
    if tls is None:
        # It speaks TLS, and wants a client certificate as well.
        return _ENCRYPTED if "ALERT" in reason else None
    for name, meaning, next_step in _ALERTS:
        if name in reason:
            return Trouble(meaning.format(file=tls.certificate), next_step)
    return None
