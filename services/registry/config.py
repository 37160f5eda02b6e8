"""Settings of the registry, from GRAFT_REGISTRY_* in the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.config import ServiceSettings

_MIB = 1024 * 1024


class RegistrySettings(ServiceSettings):
    """Where the registry keeps what it knows, and the limits of what it takes."""

    model_config = SettingsConfigDict(env_prefix="GRAFT_REGISTRY_")

    database: Path | None = Field(
        default=None, description="SQLite file; default {data_dir}/registry.db"
    )
    blobs_dir: Path | None = Field(
        default=None, description="stored bytes; default {data_dir}/blobs"
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
    bookmark_interval_s: float = Field(
        default=30.0, gt=0, description="how often an idle watch is told"
    )

    @property
    def database_path(self) -> Path:
        """The SQLite file."""
        return self.database or self.data_dir / "registry.db"

    @property
    def blobs_path(self) -> Path:
        """The folder of the stored bytes."""
        return self.blobs_dir or self.data_dir / "blobs"
