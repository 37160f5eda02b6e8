"""How a pod gets its certificate: a Secret as cert-manager and `graft cluster certificates` make it, mounted.

The kubelet exchanges the files when the Secret changes, and services and clients read them again.
"""

from __future__ import annotations

from typing import Any

from graft.handshakes import CA, CERTIFICATE, KEY

TLS_DIR = "/etc/graft-tls"
CA_FILE, CERTIFICATE_FILE, KEY_FILE = (
    f"{TLS_DIR}/ca.crt",
    f"{TLS_DIR}/tls.crt",
    f"{TLS_DIR}/tls.key",
)
TLS_MOUNT = {"name": "tls", "mountPath": TLS_DIR, "readOnly": True}


def tls_volume(secret: str) -> dict[str, Any]:
    """Readable by the pod's group alone."""
    return {"name": "tls", "secret": {"secretName": secret, "defaultMode": 0o440}}


def tls_variables() -> dict[str, str]:
    """What a client reads; see graft.tls."""
    return {CA: CA_FILE, CERTIFICATE: CERTIFICATE_FILE, KEY: KEY_FILE}


def service_names(service: str, namespace: str) -> list[str]:
    """Every name under which pods reach a Service and its headless twin; and port-forward's."""
    names = []
    for one in (service, f"{service}-headless"):
        short = (one, f"{one}.{namespace}", f"{one}.{namespace}.svc")
        names += [*short, f"{short[-1]}.cluster.local"]
    return [*names, "localhost"]


def certificate(
    name: str, namespace: str, labels: dict[str, str], service: str, issuer: str
) -> dict[str, Any]:
    """cert-manager's Certificate of a Service; its Secret has its own name.

    Args:
        issuer: an Issuer in the same namespace.
    """
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "secretName": name,
            # A common name has at most 64 letters, and what counts are the others.
            "commonName": service[:64],
            "dnsNames": service_names(service, namespace),
            "ipAddresses": ["127.0.0.1"],
            "usages": ["digital signature", "server auth", "client auth"],
            "duration": "2160h0m0s",
            "renewBefore": "720h0m0s",
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "issuerRef": {"group": "cert-manager.io", "kind": "Issuer", "name": issuer},
        },
    }
