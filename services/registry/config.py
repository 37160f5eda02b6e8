"""Settings of the registry, from GRAFT_REGISTRY_* in the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.common.config import ServiceSettings

_MIB = 1024 * 1024
_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgres://")


def _database(said: object) -> object:
    text = str(said) if isinstance(said, str | Path) else None
    if text is not None and "://" in text and not text.startswith((_SQLITE, *_POSTGRES)):
        # Without the rest, which may hold a password.
        raise ValueError(
            f"{text.partition('://')[0]}:// is no database that the registry knows; use the path "
            "of a SQLite file, sqlite:///PATH, or postgresql://USER@HOST/DATABASE"
        )
    return said if text is None else text


# Shown as ***: its URL may hold a password.
Database = Annotated[SecretStr, BeforeValidator(_database)]


class RegistrySettings(ServiceSettings):
    """Where the registry keeps what it knows, and the limits of what it takes."""

    model_config = SettingsConfigDict(env_prefix="GRAFT_REGISTRY_")

    database: Database | None = Field(
        default=None,
        description="SQLite file, or postgresql://user@host/database for several registries; "
        "default {data_dir}/registry.db",
    )
    database_connections: int = Field(
        default=10, gt=1, description="most connections to PostgreSQL at once"
    )
    blobs_dir: Path | None = Field(
        default=None, description="stored bytes; default {data_dir}/blobs"
    )
    s3_bucket: str = Field(
        default="", description="bucket for stored bytes, instead of blobs_dir; credentials: AWS_*"
    )
    s3_prefix: str = Field(default="", description="put before every key in the bucket")
    s3_endpoint: str = Field(default="", description="URL of the S3 server; empty for Amazon's")
    s3_public_endpoint: str = Field(
        default="", description="the same server's URL as clients reach it, for signed URLs"
    )
    s3_region: str = Field(default="", description="region; empty to take it from AWS_REGION")
    s3_allow_http: bool = Field(default=False, description="allow an endpoint without TLS")
    s3_request_timeout_s: float = Field(
        default=60.0, gt=0, description="for a request that carries at most 8 MiB"
    )
    s3_stall_timeout_s: float = Field(
        default=30.0, gt=0, description="how long a longer transfer may stand still"
    )
    s3_max_retries: int = Field(default=4, ge=0, description="tries again of one request")
    s3_retry_timeout_s: float = Field(
        default=60.0, gt=0, description="no try of a request begins after so long"
    )
    signed_url_ttl_s: float = Field(
        default=3600.0, ge=1, le=7 * 24 * 3600, description="how long a signed URL works"
    )
    max_file_bytes: int = Field(
        default=64 * 1024 * _MIB, gt=0, description="largest file of a version"
    )
    max_version_bytes: int = Field(
        default=64 * 1024 * _MIB, gt=0, description="largest sum of a version's files"
    )
    max_tensors: int = Field(default=100_000, gt=0, description="most tensors in a version")
    max_header_bytes: int = Field(default=16 * _MIB, gt=0, description="largest safetensors header")
    max_rank: int = Field(default=512, gt=0, description="largest rank of any module")
    event_retention_s: float = Field(
        default=7 * 24 * 3600.0,
        gt=0,
        description="how long a watch may be away, and a request_id is remembered",
    )
    event_retention_count: int = Field(
        default=10_000, ge=0, description="so many last events are kept however old"
    )
    compaction_interval_s: float = Field(
        default=3600.0, gt=0, description="how often what is past its retention is removed"
    )
    bookmark_interval_s: float = Field(
        default=30.0, gt=0, description="how often an idle watch is told"
    )

    undelete_window_s: float = Field(
        default=30 * 24 * 3600.0, ge=0, description="how long what was deleted can be undeleted"
    )
    collection_interval_s: float = Field(
        default=3600.0, ge=0, description="from one collection to the next; 0 for none by itself"
    )
    collection_grace_s: float = Field(
        default=24 * 3600.0,
        ge=0,
        description="how long a blob stays that no version has; an upload may go on after as long",
    )
    alias_history_retention_s: float = Field(
        default=90 * 24 * 3600.0,
        ge=0,
        description="how long a version that an alias named is not purged by itself",
    )

    @property
    def database_path(self) -> Path:
        """The SQLite file, where the database is one."""
        if self.database is None:
            return self.data_dir / "registry.db"
        return Path(self.database.get_secret_value().removeprefix(_SQLITE))

    @property
    def postgres_url(self) -> str | None:
        """The URL of the PostgreSQL database, where it is one; it may hold a password."""
        said = self.database.get_secret_value() if self.database is not None else ""
        return said if said.startswith(_POSTGRES) else None

    @property
    def blobs_path(self) -> Path:
        """The folder of the stored bytes."""
        return self.blobs_dir or self.data_dir / "blobs"
