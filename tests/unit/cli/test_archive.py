"""A namespace exported and imported, as commands."""

from __future__ import annotations

from pathlib import Path

from tests.unit.cli.conftest import Graft


def test_a_namespace_is_exported_and_imported_under_another_name(
    graft: Graft, tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    space = ("--namespace", "team")
    pushed = graft(*space, "adapters", "push", "bot", tiny_adapter, "--base", tiny_base)
    assert pushed.code == 0, pushed.err
    assert graft(*space, "adapters", "promote", "bot:1").code == 0
    exported = graft("export", "team", tmp_path / "team.tar", "--json")
    assert exported.code == 0, exported.err
    assert (exported.json()["versions"], exported.json()["aliases"]) == (1, 1)
    assert graft("export", "team", tmp_path / "team.tar").code == 4

    digest = exported.json()["digest"]
    made = graft("import", tmp_path / "team.tar", "--namespace", "copy", "--digest", digest)
    assert (made.code, "1 versions and 1 aliases in copy" in made.out) == (0, True), made.err
    assert graft("--namespace", "copy", "adapters", "show", "bot@production").code == 0


def test_what_is_no_archive_is_refused_with_a_next_step(graft: Graft, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_text("hello" * 200)
    refused = graft("import", tmp_path / "x.tar")
    assert (refused.code, "graft export" in refused.err) == (2, True)
    missing = graft("import", tmp_path / "nothing.tar")
    assert (missing.code, "cannot be read" in missing.err) == (2, True)
