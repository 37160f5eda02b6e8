"""Settings that every service has. A service's own settings class adds to them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def graft_home() -> Path:
    """Where Graft keeps its data on one machine: $GRAFT_HOME, else ~/.graft."""
    return Path(os.environ.get("GRAFT_HOME") or Path.home() / ".graft")


def _host_and_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port, for example 127.0.0.1:0")
    return address


def or_none(said: object) -> object:
    """None for an empty string."""
    # An overlay of manifests can set a variable to nothing, but not take it away.
    return None if said == "" else said


Address = Annotated[str, AfterValidator(_host_and_port)]
OptionalFile = Annotated[Path | None, BeforeValidator(or_none)]


class ServiceSettings(BaseSettings):
    """Common settings, from the environment and, below it, a .env file.

    A service sets env_prefix, so that listen is GRAFT_REGISTRY_LISTEN for the registry.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_file=".env")

    listen: Address = Field(
        default="127.0.0.1:0", description="host:port for gRPC; port 0 takes a free one"
    )
    metrics_listen: Address = Field(default="127.0.0.1:0", description="host:port for Prometheus")
    health_listen: Annotated[Address | None, BeforeValidator(or_none)] = Field(
        default=None,
        description="host:port for grpc.health.v1 alone, without TLS: Kubernetes' probes speak none",
    )
    tls_certificate: OptionalFile = Field(
        default=None,
        description="PEM file of this service's certificate, read again when it changes; without it "
        "nothing is encrypted",
    )
    tls_key: OptionalFile = Field(default=None, description="PEM file of the certificate's key")
    tls_client_ca: OptionalFile = Field(
        default=None,
        description="PEM file of those who may sign clients' certificates; with it nobody is heard "
        "without one",
    )
    data_dir: Path = Field(default_factory=graft_home, description="where the service keeps files")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="DEBUG, INFO, WARNING or ERROR"
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="json, or console for people"
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, description="how long calls in flight may go on after SIGTERM"
    )
    max_connection_age_s: float = Field(
        default=0.0,
        ge=0,
        description="clients connect anew after so long, and so find replicas that were added; calls "
        "in flight go on; 0 for never",
    )
    ready_file: Path | None = Field(
        default=None,
        description="JSON with the bound addresses is written here once the service serves",
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: set both, or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError(
                "tls_client_ca asks clients for certificates, and tls_certificate is not set"
            )
        return self
