"""Uploads and downloads of a large file through a registry, beside cp and sha256sum on the same disk.

Ours includes what a user waits for: the digest before the upload, the check of every byte at both ends,
and the fsync that cp does not do. S3 is moto's server, which is here to run the path and not for speed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import uvloop
from graft.blobs import BlobClient, describe_file
from graft.channel import open_channel

from bench.harness import Measurement, Report, compare
from bench.processes import start_graft_service
from tests.support.objects import object_store_server

_MIB = 1024 * 1024
_OURS, _PEER = "graft", "cp + sha256sum"
_MOST_GROWTH_MIB = 64.0


def run(*, short: bool = False) -> Report:
    """Moves a fresh file of 1 GiB in every round; 64 MiB when short."""
    size_mib = 64 if short else 1024
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="graft-bench-")))
        store = opened.enter_context(object_store_server())
        s3 = {
            "s3_bucket": store.new_bucket(),
            "s3_endpoint": store.url,
            "s3_region": "us-east-1",
            "s3_allow_http": True,
        }
        files = _Registry(opened, folder / "files", {})
        bucket = _Registry(opened, folder / "bucket", s3)
        source = folder / "source"
        contenders = {
            _OURS: lambda: files.measure(_fresh(source, size_mib)),
            _PEER: lambda: _copy(_fresh(source, size_mib), folder),
            "graft on S3, through the service": lambda: bucket.measure(
                _fresh(source, size_mib // 4)
            ),
            "graft on S3, signed URLs": lambda: bucket.measure(
                _fresh(source, size_mib // 4), direct=True
            ),
        }
        report = compare(
            "blobs",
            contenders,
            rounds=1 if short else 3,
            warm_up_rounds=0 if short else 1,
            settings={"size_mib": size_mib, "size_on_s3_mib": size_mib // 4},
        )
    _set_goals(report)
    return report


def _set_goals(report: Report) -> None:
    for figure, what in (("upload_mib_s", "upload"), ("download_mib_s", "download")):
        ratio = report.ratios[f"{_OURS} / {_PEER}"][figure].median
        report.goal(f"speed of {what} / {_PEER}", "at least 0.5", ratio, ratio >= 0.5)
    growth = report.figures[_OURS]["service_growth_mib"].max
    wanted = f"less than {_MOST_GROWTH_MIB:g}"
    report.goal("growth of the service in MiB", wanted, growth, growth < _MOST_GROWTH_MIB)


class _Registry:
    """A registry process.

    Args:
        opened: ends it.
        folder: for its data, and the files that are fetched.
        settings: of the registry.
    """

    def __init__(self, opened: ExitStack, folder: Path, settings: Mapping[str, object]) -> None:
        server, self._address = start_graft_service("registry", settings, folder)
        opened.callback(server.close)
        self._target = folder / "fetched"
        self._pid = server.pid

    def measure(self, source: Path, direct: bool = False) -> Measurement:
        """Uploads and fetches a file."""
        return uvloop.run(self._move(source, direct))

    async def _move(self, source: Path, direct: bool) -> Measurement:
        size_mib = source.stat().st_size / _MIB
        before_mib = _resident_mib(self._pid, "VmRSS")
        # From here on VmHWM is the peak since now.
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")
        async with open_channel(self._address) as channel:
            client = BlobClient(channel, direct_bytes=0 if direct else 2**50)
            began_s = time.perf_counter()
            file = await asyncio.to_thread(describe_file, source.parent, source)
            await client.upload(source, file)
            uploaded_s = time.perf_counter()
            await client.fetch(file, self._target)
            fetched_s = time.perf_counter()
        self._target.unlink()
        return {
            "upload_mib_s": size_mib / (uploaded_s - began_s),
            "download_mib_s": size_mib / (fetched_s - uploaded_s),
            "service_growth_mib": _resident_mib(self._pid, "VmHWM") - before_mib,
        }


def _fresh(source: Path, size_mib: int) -> Path:
    """Fills a file with bytes that no round before had, all of them on the disk."""
    with source.open("wb") as out:
        for _ in range(size_mib):
            out.write(os.urandom(_MIB))
        out.flush()
        os.fsync(out.fileno())
    return source


def _copy(source: Path, folder: Path) -> Measurement:
    """cp and sha256sum there and back."""
    size_mib = source.stat().st_size / _MIB
    there, back = folder / "there", folder / "back"
    figures = {}
    for figure, begin, end in (
        ("upload_mib_s", source, there),
        ("download_mib_s", there, back),
    ):
        began_s = time.perf_counter()
        subprocess.run(["cp", begin, end], check=True)
        subprocess.run(["sha256sum", end], check=True, stdout=subprocess.DEVNULL)
        figures[figure] = size_mib / (time.perf_counter() - began_s)
    there.unlink()
    back.unlink()
    return figures


def _resident_mib(pid: int, field: str) -> float:
    """VmRSS or VmHWM of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no {field}")
