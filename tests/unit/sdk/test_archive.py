"""A namespace as one file: out of one registry, into another, and what is not an export is refused."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import graft
import pytest
from google.protobuf.json_format import ParseDict
from graft.archive import export_namespace, import_namespace
from graft.archive.tar import ArchiveReader
from graft.archive.versions import VersionMaker
from graft.blobs import describe_file
from graft.digests import digest_bytes
from graft.errors import GraftError, Reason
from graft.keys import load_key, new_key
from graft.registry.v1 import registry_service_pb2 as pb

from tests.support.registry import running_registry

ADAPTER = "namespaces/default/adapters/bot"
Members = list[tuple[str, bytes]]


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[graft.Client]:
    """Another registry, empty."""
    async with (
        running_registry(tmp_path / "other") as server,
        graft.Client(registry=server.address, actor="ben@desk") as client,
    ):
        yield client


@pytest.fixture
async def archive(
    registry_client: graft.Client, tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> Path:
    """Three versions that share their weights, moves of an alias, and a signature."""
    adapters = registry_client.adapters
    for number in (1, 2, 3):
        folder = tmp_path / f"v{number}"
        shutil.copytree(tiny_adapter, folder)
        (folder / "README.md").write_text(f"copy {number}")
        await adapters.push("bot", folder, base=tiny_base)
    new_key(tmp_path / "key")
    await adapters.sign("bot:2", load_key(tmp_path / "key"))
    await adapters.promote("bot", 1, reason="first")
    await adapters.promote("bot", 3)
    await adapters.promote("bot", 2, alias="canary")
    await export_namespace(registry_client, "default", tmp_path / "all.tar")
    return tmp_path / "all.tar"


def _members(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(one.name, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]


def _write(path: Path, members: Members) -> Path:
    """An archive as somebody else would make it, with what they can of the digests."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _with_records(members: Members, change: Callable[[list[dict]], None]) -> Members:  # type: ignore[type-arg]
    """The members with changed records and an index that fits them."""
    by_name = dict(members)
    name = "records/00000001.jsonl"
    records = [json.loads(line) for line in by_name[name].splitlines()]
    change(records)
    by_name[name] = b"".join(json.dumps(one).encode() + b"\n" for one in records)
    index = json.loads(by_name["index.json"])
    index["records"][name] = digest_bytes(by_name[name])
    by_name["index.json"] = json.dumps(index).encode()
    return list(by_name.items())


async def test_a_namespace_comes_out_of_one_registry_and_into_another_as_it_was(
    registry_client: graft.Client, other: graft.Client, archive: Path, tmp_path: Path
) -> None:
    made = await import_namespace(other, archive)
    assert (made.bases, made.adapters, made.versions, made.aliases) == (1, 1, 3, 2)
    # Weights and configuration are the same in all three.
    assert made.blobs == 5
    assert made.notes == []
    for number in (1, 2, 3):
        before = await registry_client.adapters.version(f"bot:{number}")
        after = await other.adapters.version(f"bot:{number}")
        assert (after.digest, after.files) == (before.digest, before.files)
    keys = graft.keys.load_trusted([tmp_path / "key.pub"])
    assert (await other.adapters.verify("bot:2", keys))[1].good
    history = await other.adapters.history("bot")
    assert [move.version[-1] for move in history] == ["3", "1"]
    assert "first (imported; moved by ann@desk at" in history[1].reason
    assert (await other.adapters.version("bot@canary")).number == 2
    await other.adapters.pull("bot", tmp_path / "pulled")


async def test_an_import_again_changes_nothing(other: graft.Client, archive: Path) -> None:
    await import_namespace(other, archive)
    aliases = await other.adapters.aliases()
    again = await import_namespace(other, archive)
    assert (again.versions, again.existing_versions, again.aliases, again.blobs) == (0, 3, 0, 0)
    assert await other.adapters.aliases() == aliases
    assert len(await other.adapters.versions("bot")) == 3


async def test_an_import_that_was_cut_off_goes_on_where_it_stopped(
    other: graft.Client, archive: Path, tmp_path: Path
) -> None:
    members = _members(archive)
    cut = _write(tmp_path / "cut.tar", members[:-1])
    with pytest.raises(GraftError, match="it lacks README"):
        await import_namespace(other, cut)
    assert [one.number for one in await other.adapters.versions("bot")] == [2, 1]
    rest = await import_namespace(other, archive)
    assert (rest.versions, rest.existing_versions, rest.aliases) == (1, 2, 2)


async def test_an_export_of_an_import_is_the_same_archive_but_for_who_and_when(
    other: graft.Client, archive: Path, tmp_path: Path
) -> None:
    await import_namespace(other, archive)
    await export_namespace(other, "default", tmp_path / "again.tar")
    first, second = _members(archive), _members(tmp_path / "again.tar")
    assert [name for name, _ in first] == [name for name, _ in second]
    assert first[2:] == second[2:]


async def test_the_same_namespace_gives_the_same_digest(
    registry_client: graft.Client, archive: Path, other: graft.Client, tmp_path: Path
) -> None:
    summary = await export_namespace(registry_client, "default", tmp_path / "second.tar")
    assert (tmp_path / "second.tar").read_bytes() == archive.read_bytes()
    assert summary.digest == digest_bytes(_members(archive)[0][1])
    with pytest.raises(GraftError, match="its digest is"):
        await import_namespace(other, archive, digest="sha256:" + "0" * 64)
    await import_namespace(other, archive, digest=summary.digest)


async def test_another_namespace_has_other_digests_and_says_so(
    registry_client: graft.Client, archive: Path
) -> None:
    before = await registry_client.adapters.version("bot:2")
    made = await import_namespace(registry_client, archive, namespace="copy")
    assert made.versions == 3
    assert any("signatures are left out" in one for one in made.notes)
    after = await registry_client.adapters.version("copy/bot:2")
    assert after.base == "namespaces/copy/bases/tiny"
    assert after.digest != before.digest
    assert before.digest in after.lineage.sources[0]
    again = await import_namespace(registry_client, archive, namespace="copy")
    assert (again.versions, again.existing_versions) == (0, 3)


async def test_numbers_stay_what_they_were_where_versions_were_purged(
    registry_client: graft.Client, other: graft.Client, archive: Path, tmp_path: Path
) -> None:
    stub = registry_client.connection.registry
    await registry_client.adapters.promote("bot", 2)
    for name in (f"{ADAPTER}/versions/1", f"{ADAPTER}/versions/3"):
        await stub.DeleteVersion(pb.DeleteVersionRequest(name=name))
        await stub.PurgeVersion(pb.PurgeVersionRequest(name=name))
    await export_namespace(registry_client, "default", tmp_path / "gaps.tar")
    made = await import_namespace(other, tmp_path / "gaps.tar")
    assert made.versions == 1
    assert (await other.adapters.version("bot:2")).digest == (
        await registry_client.adapters.version("bot:2")
    ).digest
    assert (await other.adapters.get("bot")).latest_version == 3
    assert [one.version[-1] for one in await other.adapters.history("bot")] == ["2"]
    assert any("not in the archive" in one for one in made.notes)


async def test_a_placeholder_that_a_cut_off_import_left_is_ended_by_the_next(
    registry_client: graft.Client, other: graft.Client, archive: Path, tmp_path: Path
) -> None:
    stub = registry_client.connection.registry
    await registry_client.adapters.promote("bot", 2)
    name = f"{ADAPTER}/versions/1"
    await stub.DeleteVersion(pb.DeleteVersionRequest(name=name))
    await stub.PurgeVersion(pb.PurgeVersionRequest(name=name))
    await export_namespace(registry_client, "default", tmp_path / "gap.tar")

    async def cut_off(self: VersionMaker, placeholder: pb.Version) -> None:
        raise ConnectionError("cut off")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VersionMaker, "_retire", cut_off)
        with pytest.raises(ConnectionError):
            await import_namespace(other, tmp_path / "gap.tar")
    await import_namespace(other, tmp_path / "gap.tar")
    placeholder = await other.connection.registry.GetVersion(pb.GetVersionRequest(name=name))
    assert placeholder.HasField("purge_time")
    assert (await other.adapters.version("bot:2")).digest == (
        await registry_client.adapters.version("bot:2")
    ).digest


async def test_versions_of_bases_come_along(
    registry_client: graft.Client,
    other: graft.Client,
    archive: Path,
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    connection = registry_client.connection
    files = [describe_file(tiny_base, path) for path in sorted(tiny_base.iterdir())]
    for file in files:
        await connection.blobs.upload(tiny_base / file.path, file)
    request = pb.CommitVersionRequest(
        parent="namespaces/default/bases/tiny",
        files=files,
        method="merge",
        lineage=pb.Lineage(parent_versions=[f"{ADAPTER}/versions/1"]),
        description="merged",
        labels={"team": "a"},
    )
    before = await connection.registry.CommitVersion(request)
    await export_namespace(registry_client, "default", tmp_path / "with-bases.tar")
    await import_namespace(other, tmp_path / "with-bases.tar")
    after = await other.connection.registry.GetVersion(pb.GetVersionRequest(name=before.name))
    assert (after.digest, after.manifest) == (before.digest, before.manifest)
    assert (after.description, dict(after.labels)) == ("merged", {"team": "a"})


async def test_a_base_of_the_same_name_that_is_another_stops_the_import(
    other: graft.Client, archive: Path, tmp_path: Path
) -> None:
    from tests.support.models import make_base

    await other.bases.add(make_base(tmp_path / "b" / "tiny", seed=9), "tiny")
    with pytest.raises(GraftError, match="another base") as caught:
        await import_namespace(other, archive)
    assert caught.value.reason is Reason.ALREADY_EXISTS
    assert await other.adapters.list() == []


async def test_nothing_is_overwritten_and_an_empty_namespace_is_no_archive(
    registry_client: graft.Client, archive: Path, tmp_path: Path
) -> None:
    with pytest.raises(GraftError, match="exists already"):
        await export_namespace(registry_client, "default", archive)
    with pytest.raises(GraftError, match="holds nothing"):
        await export_namespace(registry_client, "empty", tmp_path / "empty.tar")
    assert not (tmp_path / "empty.tar").exists()
    assert not list(tmp_path.glob(".*tar*"))


async def _refused(other: graft.Client, path: Path, word: str) -> None:
    with pytest.raises(GraftError, match=word) as caught:
        await import_namespace(other, path)
    assert caught.value.reason in (Reason.ARCHIVE_REFUSED, Reason.DIGEST_MISMATCH)
    assert caught.value.next_step


async def test_a_changed_byte_is_found_wherever_it_is(
    other: graft.Client, archive: Path, tmp_path: Path
) -> None:
    for changed, (name, data) in enumerate(_members(archive)):
        members = _members(archive)
        members[changed] = name, data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
        if name == "index.json":
            continue
        path = _write(tmp_path / f"{changed}.tar", members)
        await _refused(other, path, "other bytes|has the digest")
    assert not [one for one in await other.adapters.versions("bot") if one.number > 3]


async def test_members_that_no_export_writes_are_refused(
    other: graft.Client, archive: Path, tmp_path: Path
) -> None:
    members = _members(archive)
    blob = next(one for one in members if one[0].startswith("blobs/"))
    cases = {
        "path": ([*members, ("../../etc/cron.d/x", b"x")], "which no export writes"),
        "absolute": ([("/index.json", b"{}"), *members], "which no export writes"),
        "unknown": ([*members, ("blobs/" + "0" * 64, b"x")], "which no record names"),
        "twice": ([*members, blob], "is there twice"),
        "size": ([*members[:2], (blob[0], blob[1] + b"x"), *members[3:]], "bytes, the records say"),
        "order": ([members[1], members[0], *members[2:]], "does not begin with"),
        "records": ([members[0], *members[2:]], "is missing"),
        "empty": ([], "does not begin with"),
    }
    for name, (content, word) in cases.items():
        await _refused(other, _write(tmp_path / f"{name}.tar", content), word)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"x", b"L"])
async def test_links_devices_and_extensions_are_refused(
    other: graft.Client, archive: Path, tmp_path: Path, kind: bytes
) -> None:
    info = tarfile.TarInfo("index.json")
    info.type, info.linkname = kind, "/etc/passwd"
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + archive.read_bytes())
    await _refused(other, tmp_path / "x.tar", "is not a plain file")


async def test_what_is_cut_off_or_goes_on_after_its_end_is_refused(
    other: graft.Client, archive: Path, tmp_path: Path
) -> None:
    data = archive.read_bytes()
    (tmp_path / "x.tar").write_bytes(data[:-1024])
    await _refused(other, tmp_path / "x.tar", "cut off")
    (tmp_path / "x.tar").write_bytes(data + b"more" * 128)
    await _refused(other, tmp_path / "x.tar", "after its end")
    (tmp_path / "x.tar").write_bytes(b"")
    await _refused(other, tmp_path / "x.tar", "cut off")
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b" + data)
    await _refused(other, tmp_path / "x.tar", "compressed")
    (tmp_path / "x.tar").write_bytes(b"text" * 1000)
    await _refused(other, tmp_path / "x.tar", "not a tar")


def test_a_header_of_petabytes_costs_no_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("index.json")
    info.size = 1 << 55
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    tracemalloc.start()
    try:
        with path.open("rb") as file, pytest.raises(GraftError, match="cut off"):
            ArchiveReader(file).next()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


async def test_a_sparse_file_that_is_all_index_is_refused_in_bounded_memory(
    other: graft.Client, tmp_path: Path
) -> None:
    info = tarfile.TarInfo("index.json")
    info.size = 1 << 36
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate((1 << 36) + 2048)
    await _refused(other, path, "are allowed")


async def test_records_that_do_not_fit_each_other_are_refused_before_anything_is_made(
    other: graft.Client, archive: Path, tmp_path: Path
) -> None:
    def elsewhere(records: list[dict]) -> None:  # type: ignore[type-arg]
        records[1]["adapter"]["name"] = "namespaces/other/adapters/bot"

    def twice(records: list[dict]) -> None:  # type: ignore[type-arg]
        records.insert(1, records[0])

    def orphan(records: list[dict]) -> None:  # type: ignore[type-arg]
        del records[1]

    def newer(records: list[dict]) -> None:  # type: ignore[type-arg]
        records[2]["version"]["color"] = "red"

    def unknown(records: list[dict]) -> None:  # type: ignore[type-arg]
        records.append({"kind": "spell", "spell": {}})

    def forged(records: list[dict]) -> None:  # type: ignore[type-arg]
        records[2]["version"]["manifest"]["lineage"] = {"job": "namespaces/default/jobs/other"}

    for change, word in (
        (elsewhere, "not of 'default'"),
        (twice, "is there twice"),
        (orphan, "without it"),
        (newer, "not what this graft knows"),
        (unknown, "kind 'spell'"),
    ):
        path = _write(tmp_path / "x.tar", _with_records(_members(archive), change))
        await _refused(other, path, word)
        assert await other.bases.list() == []
    path = _write(tmp_path / "x.tar", _with_records(_members(archive), forged))
    await _refused(other, path, "another digest than it says")
    assert await other.adapters.versions("bot") == []


async def test_what_the_registry_would_not_take_from_a_push_it_does_not_take_from_an_archive(
    other: graft.Client, archive: Path, tmp_path: Path
) -> None:
    members = _members(archive)
    config = next(data for name, data in members if b'"peft_type"' in data and "blobs" in name)
    evil = config.replace(b'"LORA"', b'"EVIL"')
    old, new = digest_bytes(config), digest_bytes(evil)

    def swap(records: list[dict]) -> None:  # type: ignore[type-arg]
        for record in records:
            if record["kind"] == "version":
                for file in record["version"]["manifest"]["files"]:
                    file["digest"] = new if file["digest"] == old else file["digest"]
                manifest = ParseDict(record["version"]["manifest"], pb.Manifest())
                record["version"]["digest"] = graft.digests.digest_message(manifest)

    members = [
        (f"blobs/{new.removeprefix('sha256:')}", evil) if data == config else (name, data)
        for name, data in members
    ]
    path = _write(tmp_path / "x.tar", _with_records(members, swap))
    with pytest.raises(graft.RefusedError, match="EVIL"):
        await import_namespace(other, path)
    assert await other.adapters.versions("bot") == []
