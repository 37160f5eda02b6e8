"""How a pod gets the key that signs what it attests of its answers: a Secret with the PEM file, mounted."""

from __future__ import annotations

from typing import Any

_DIR = "/etc/graft-attestation"
ATTESTATION_KEY_FILE = f"{_DIR}/service.key"
ATTESTATION_MOUNT = {"name": "attestation", "mountPath": _DIR, "readOnly": True}


def attestation_volume(secret: str) -> dict[str, Any]:
    """Readable by the pod's group alone."""
    return {"name": "attestation", "secret": {"secretName": secret, "defaultMode": 0o440}}
