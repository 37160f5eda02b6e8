"""The trained adapter on disk: whole or not there, with everything that its version's lineage says."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from google.protobuf.json_format import MessageToJson, Parse, ParseError
from graft.blobs import describe_file
from graft.common.v1.common_pb2 import File
from graft.digests import digest_bytes
from graft.files import fsync_folder, write_atomic
from graft.registry.v1.registry_service_pb2 import CommitVersionRequest

_REQUEST = "commit_request.json"
_LIBRARIES = ("torch", "transformers", "peft", "trl", "tokenizers", "safetensors", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run: its folder, and the commit that makes it a version.

    The request is stored with the files, so that whoever commits it, however often, asks for the same.
    """

    folder: Path
    request: CommitVersionRequest


def commit_id(job: str, spec_json: str) -> str:
    """The request id of a job's commit: the same job with another spec makes another version."""
    return f"{job}/commit/{digest_bytes(spec_json.encode()).removeprefix('sha256:')[:16]}"


def store_result(
    folder: Path, partial: Path, request: CommitVersionRequest, files: Sequence[str]
) -> Result:
    """Makes a result of files in partial, which then is folder."""
    del request.files[:]
    request.files.extend(describe_file(partial, partial / name) for name in files)
    _write_request(partial, request)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    fsync_folder(folder.parent)
    return Result(folder, request)


def add_parent(result: Result, version: str) -> None:
    """Says which version the result was made from."""
    result.request.lineage.parent_versions.append(version)
    _write_request(result.folder, result.request)


def _write_request(folder: Path, request: CommitVersionRequest) -> None:
    write_atomic(folder / _REQUEST, MessageToJson(request).encode())


def find_result(folder: Path, spec_json: str, base_fingerprint: str) -> Result | None:
    """The stored result of an earlier attempt, if there is one of this spec and base and it is whole."""
    try:
        request = Parse((folder / _REQUEST).read_text("utf-8"), CommitVersionRequest())
    except (OSError, ValueError, ParseError):
        return None
    origins = (request.base_fingerprint, *(one.split()[-1] for one in request.lineage.sources))
    same = request.lineage.spec_json == spec_json and base_fingerprint in origins
    if not same or not all(_whole(folder, file) for file in request.files):
        return None
    return Result(folder, request)


def _whole(folder: Path, file: File) -> bool:
    path = folder / file.path
    return path.is_file() and describe_file(folder, path) == file


def library_versions(quantized: bool) -> dict[str, str]:
    """Versions of the libraries that have a part in a run."""
    names = [name for name in _LIBRARIES if quantized or name != "bitsandbytes"]
    return {name: metadata.version(name) for name in names}


def describe(result: Result) -> str:
    """Where a result is, for people; without the machine's own paths, which others read as well."""
    what = "adapter" if request_is_adapter(result) else "model"
    size_bytes = sum(file.size_bytes for file in result.request.files)
    return f"The {what} ({size_bytes:,} bytes) is in {result.folder.name}/ of the job's folder."


def request_is_adapter(result: Result) -> bool:
    """Whether the result becomes an adapter's version, and not a base's."""
    return "/adapters/" in result.request.parent
