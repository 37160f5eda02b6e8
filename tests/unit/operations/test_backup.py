"""Backups that are broken off, raced by a collection or damaged, and restores that must not be."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from graft.errors import GraftError, Reason
from graft.registry.v1 import registry_service_pb2 as pb

from services.registry.backup import save as saving
from services.registry.backup.__main__ import main
from services.registry.backup.check import check
from services.registry.backup.folder import BackupFolder
from services.registry.backup.mend import mend
from services.registry.backup.opening import Opened, opened
from services.registry.backup.restore import restore
from services.registry.backup.save import save
from services.registry.blobs.filesystem import FilesystemBlobStore
from services.registry.config import RegistrySettings
from tests.support.registry import RegistryCalls, registry_calls, running_registry

BOT = "namespaces/default/adapters/bot"


@pytest.fixture
def settings(tmp_path: Path) -> RegistrySettings:
    """Of the registry that is backed up."""
    return RegistrySettings(data_dir=tmp_path / "registry")


@pytest.fixture
async def calls(
    settings: RegistrySettings, tmp_path: Path, tiny_base: Path, tiny_adapter: Path
) -> AsyncIterator[RegistryCalls]:
    """A registry that serves, with one version of bot in production."""
    async with (
        running_registry(settings.data_dir) as server,
        registry_calls(server.address) as client,
    ):
        base = await client.create_base(tiny_base)
        await client.create_adapter()
        version = await client.commit(tiny_adapter, base.fingerprint.digest)
        await client.set_alias(version.name)
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> BackupFolder:
    """Where backups go."""
    return BackupFolder(tmp_path / "backup")


def _blobs(root: Path) -> list[Path]:
    return sorted((root / "blobs/sha256").glob("??/*"), key=lambda path: path.stat().st_size)


async def test_a_second_backup_copies_only_what_is_new(
    calls: RegistryCalls, settings: RegistrySettings, folder: BackupFolder, tmp_path: Path
) -> None:
    async with opened(settings, alone=False) as registry:
        assert (await save(registry, folder)).copied == 2
        again = await save(registry, folder)
    assert (again.copied, again.info.blobs) == (0, 2)
    assert len(list((tmp_path / "backup").glob("catalogue-*.db"))) == 1


async def test_what_a_collection_takes_away_between_catalogue_and_bytes_is_in_neither(
    calls: RegistryCalls, settings: RegistrySettings, folder: BackupFolder, tmp_path: Path
) -> None:
    async with opened(settings, alone=False) as registry:
        store = _Vanishing(registry, settings)
        saved = await save(Opened(registry.database, store), folder)
    assert (saved.lost, saved.info.versions) == ([], 1)
    assert saved.info.blobs == 1
    restored = await _restored(folder, tmp_path / "new")
    assert restored == []


async def test_bytes_that_the_registry_itself_lost_are_named_and_the_rest_is_saved(
    calls: RegistryCalls, settings: RegistrySettings, folder: BackupFolder, tmp_path: Path
) -> None:
    weights = _blobs(settings.data_dir)[-1]
    weights.unlink()
    async with opened(settings, alone=False) as registry:
        saved = await save(registry, folder)
    assert saved.lost == [f"sha256:{weights.parent.name}{weights.name}"]
    assert await _restored(folder, tmp_path / "new") == [f"{BOT}/versions/1"]


async def test_damaged_bytes_are_found_and_come_back_from_a_backup(
    calls: RegistryCalls, settings: RegistrySettings, folder: BackupFolder
) -> None:
    weights = _blobs(settings.data_dir)[-1]
    async with opened(settings, alone=False) as registry:
        await save(registry, folder)
        assert (await check(registry)).damages == []
        good = weights.read_bytes()
        weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert (await check(registry, deep=False)).damages == []
        (damage,) = (await check(registry)).damages
        assert damage.resource == f"{BOT}/versions/1"
        assert "other bytes" in damage.what
        assert "mend FOLDER" in damage.next_step
        assert (await mend(registry, folder)).copied == 1
        assert (await check(registry)).damages == []
    assert weights.read_bytes() == good


async def test_an_audit_log_that_somebody_changed_is_found(
    calls: RegistryCalls, settings: RegistrySettings
) -> None:
    with sqlite3.connect(settings.database_path) as connection:
        connection.execute("DROP TRIGGER audit_entries_no_update")
        connection.execute("UPDATE audit_entries SET actor = 'somebody else' WHERE number = 2")
    connection.close()
    async with opened(settings, alone=False) as registry:
        (damage,) = (await check(registry)).damages
    assert damage.resource == "audit entry 2"


async def test_a_backup_that_was_broken_off_is_the_one_from_before(
    calls: RegistryCalls,
    settings: RegistrySettings,
    folder: BackupFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def break_off(*_: object) -> bool:
        raise GraftError(Reason.STORAGE_FULL, "full", next_step="Make room.")

    async with opened(settings, alone=False) as registry:
        first = await save(registry, folder)
        with monkeypatch.context() as patch:
            patch.setattr(saving, "copy_blob", break_off)
            with pytest.raises(GraftError, match="full"):
                await save(registry, folder)
    assert folder.read() == first.info
    assert await _restored(folder, tmp_path / "new") == []


async def test_a_folder_without_a_whole_backup_is_refused(
    tmp_path: Path, folder: BackupFolder
) -> None:
    folder.make()
    with pytest.raises(GraftError, match="is no whole backup"):
        await _restored(folder, tmp_path / "new")


async def test_a_catalogue_that_was_changed_since_is_refused(
    calls: RegistryCalls, settings: RegistrySettings, folder: BackupFolder, tmp_path: Path
) -> None:
    async with opened(settings, alone=False) as registry:
        saved = await save(registry, folder)
    with folder.path(saved.info.catalogue).open("ab") as file:
        file.write(b"x")
    with pytest.raises(GraftError, match="not the one that was backed up"):
        await _restored(folder, tmp_path / "new")


async def test_nothing_is_restored_over_a_registry_that_runs_or_has_something(
    calls: RegistryCalls, settings: RegistrySettings, folder: BackupFolder, tmp_path: Path
) -> None:
    async with opened(settings, alone=False) as registry:
        await save(registry, folder)
    with pytest.raises(GraftError, match="Another registry runs"):
        async with opened(settings, alone=True):
            pass
    await _restored(folder, tmp_path / "new")
    with pytest.raises(GraftError, match="is not empty: there is something in its table"):
        await _restored(folder, tmp_path / "new")


async def test_a_watch_from_before_the_restore_is_told_to_list_again(
    calls: RegistryCalls, settings: RegistrySettings, folder: BackupFolder, tmp_path: Path
) -> None:
    async with opened(settings, alone=False) as registry:
        info = (await save(registry, folder)).info
    await _restored(folder, tmp_path / "new")
    async with running_registry(tmp_path / "new") as server, registry_calls(server.address) as new:
        for seen in (info.revision - 1, info.revision, info.revision + 50):
            with pytest.raises(GraftError) as caught:
                await new.first_of_watch(after=seen)
            assert caught.value.reason is Reason.REVISION_COMPACTED
        listed = await new.stub.ListAliases(
            pb.ListAliasesRequest(parent="namespaces/default/adapters/-")
        )
        assert listed.revision == info.revision + 1_000_000_000
        assert listed.aliases[0].version == f"{BOT}/versions/1"


def test_the_command_says_what_is_wrong_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRAFT_REGISTRY_DATA_DIR", str(tmp_path / "nothing"))
    assert main(["check"]) == 3
    said = capsys.readouterr().err
    assert f"There is no catalogue at {tmp_path}/nothing/registry.db" in said
    assert "Next: Set GRAFT_REGISTRY_DATA_DIR" in said
    assert not (tmp_path / "nothing").exists()


class _Vanishing(FilesystemBlobStore):
    """A store whose weights are purged and collected before a backup comes to their bytes."""

    def __init__(self, registry: Opened, settings: RegistrySettings) -> None:
        super().__init__(settings.blobs_path)
        self._registry, self._settings = registry, settings

    def read(self, digest: str, offset: int = 0, limit: int = 0) -> AsyncIterator[bytes]:
        weights = _blobs(self._settings.data_dir)
        if len(weights) == 2:
            gone = f"sha256:{weights[-1].parent.name}{weights[-1].name}"
            with sqlite3.connect(self._settings.database_path, timeout=60) as connection:
                for table in ("version_files", "blobs"):
                    connection.execute(f"DELETE FROM {table} WHERE digest = ?", (gone,))
            connection.close()
            weights[-1].unlink()
        return super().read(digest, offset, limit)


async def _restored(folder: BackupFolder, target: Path) -> list[str]:
    """Restores into a folder and looks at every byte; names what is damaged."""
    settings = RegistrySettings(data_dir=target)
    async with opened(settings, alone=True) as registry:
        await restore(registry, folder)
        return [one.resource for one in (await check(registry)).damages]
