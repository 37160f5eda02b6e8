"""Settings of the plugin, from GRAFT_* variables; without pydantic-settings, which vLLM does not bring."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from graft.endpoints import Endpoints, graft_home
from graft.errors import GraftError, Reason
from graft.names import DEFAULT_NAMESPACE, namespace_name
from graft.signatures import SignaturePolicy


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """What the plugin is told.

    Attributes:
        registry_address: "host:port"; GRAFT_REGISTRY, else what `graft up` wrote, else the default port.
        namespace: of references that name none; GRAFT_NAMESPACE.
        cache_dir: fetched adapters by digest; GRAFT_VLLM_CACHE_DIR. It must outlive the server: vLLM
            reads an adapter again whenever it had to make room.
        base: folder of the model, where vLLM's --model is neither a folder nor in the Hugging Face
            cache; GRAFT_VLLM_BASE.
        signature_policy: off, warn or require; GRAFT_SIGNATURE_POLICY.
        trusted_keys: PEM files of public keys, separated by ":"; GRAFT_TRUSTED_KEYS.
        retry_s: how long a name that was refused is refused without asking; GRAFT_VLLM_RETRY_S.
        answer_timeout_s: longest wait for an answer of the registry; GRAFT_VLLM_TIMEOUT_S.
        allow_load: leave /v1/load_lora_adapter open, which loads anything from anywhere unchecked;
            GRAFT_VLLM_ALLOW_LOAD=1.
    """

    registry_address: str
    cache_dir: Path
    namespace: str = DEFAULT_NAMESPACE
    base: Path | None = None
    signature_policy: SignaturePolicy = SignaturePolicy.OFF
    trusted_keys: tuple[Path, ...] = ()
    retry_s: float = 1.0
    answer_timeout_s: float = 10.0
    allow_load: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Reads them.

        Raises:
            GraftError: INVALID_REQUEST, INVALID_NAME, naming the variable.
        """
        base = environ.get("GRAFT_VLLM_BASE")
        namespace = environ.get("GRAFT_NAMESPACE") or DEFAULT_NAMESPACE
        namespace_name(namespace)
        policy = _policy(environ.get("GRAFT_SIGNATURE_POLICY") or "off")
        keys = tuple(
            Path(key) for key in environ.get("GRAFT_TRUSTED_KEYS", "").split(os.pathsep) if key
        )
        if policy is SignaturePolicy.REQUIRE and not keys:
            raise _wrong("GRAFT_TRUSTED_KEYS", "", "the PEM files of the keys that you trust")
        return cls(
            registry_address=Endpoints.find(environ=environ).registry,
            cache_dir=Path(
                environ.get("GRAFT_VLLM_CACHE_DIR") or graft_home(environ) / "vllm" / "adapters"
            ),
            namespace=namespace,
            base=Path(base) if base else None,
            signature_policy=policy,
            trusted_keys=keys,
            retry_s=_seconds(environ, "GRAFT_VLLM_RETRY_S", 1.0),
            answer_timeout_s=_seconds(environ, "GRAFT_VLLM_TIMEOUT_S", 10.0),
            allow_load=environ.get("GRAFT_VLLM_ALLOW_LOAD", "").lower() in ("1", "true", "yes"),
        )


def _policy(text: str) -> SignaturePolicy:
    try:
        return SignaturePolicy(text)
    except ValueError:
        raise _wrong("GRAFT_SIGNATURE_POLICY", text, "off, warn or require") from None


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value <= 3600:
        raise _wrong(name, str(text), "seconds, from 0 to 3600")
    return value


def _wrong(name: str, text: str, wanted: str) -> GraftError:
    return GraftError(
        Reason.INVALID_REQUEST, f"{name} is {text!r}", next_step=f"Set it to {wanted}."
    )
