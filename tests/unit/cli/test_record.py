"""The registry as a record, at the command line: lineage, the audit log, and what changes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.stack import Stack, environment
from tests.support.terminal import CTRL_C, Terminal
from tests.unit.cli.conftest import Graft


@pytest.fixture
def pushed(
    graft: Graft, tiny_base: Path, tiny_adapter: Path, request: pytest.FixtureRequest
) -> str:
    """An adapter of this test's own with one version."""
    name = str(request.node.name).replace("_", "-").removeprefix("test-")[:40].strip("-")
    result = graft("adapters", "push", name, tiny_adapter, "--base", tiny_base)
    assert result.code == 0, result.err
    return name


def test_a_lineage_is_drawn_and_written(graft: Graft, pushed: str) -> None:
    tree = graft("lineage", f"{pushed}:1", "--up")
    assert (tree.code, f"version {pushed}:1" in tree.out, "base tiny" in tree.out) == (
        0,
        True,
        True,
    )
    whole = graft("lineage", "tiny", "--down", "--json").json()
    assert whole["nodes"][0]["name"] == "namespaces/default/bases/tiny"
    assert f"namespaces/default/adapters/{pushed}/versions/1" in {
        edge["result"] for edge in whole["edges"]
    }
    assert graft("lineage", pushed, "--format", "dot").out.startswith("digraph lineage {")
    assert graft("lineage", pushed, "--format", "mermaid").out.startswith("flowchart LR")
    assert "(there is more" not in tree.err
    cut = graft("lineage", "tiny", "--down", "--depth", 1)
    assert (cut.code, f"{pushed}:1" in cut.out) == (0, True)
    missing = graft("lineage", f"{pushed}:99")
    assert (missing.code, "Next:" in missing.err) == (3, True)


def test_the_audit_log_is_read_exported_and_checked(
    graft: Graft, pushed: str, tmp_path: Path
) -> None:
    listed = graft("audit", "--resource", pushed)
    lines = listed.out.splitlines()
    assert [line.split()[-2] for line in lines] == ["CreateAdapter", "CommitVersion"]
    assert lines[1].endswith(f"adapters/{pushed}/versions/1")
    printed = graft("audit", "--resource", f"{pushed}:1", "--json-lines", "-").out
    assert json.loads(printed)["method"] == "CommitVersion"
    file = tmp_path / "audit.jsonl"
    first = graft("audit", "--all-namespaces", "--json-lines", file)
    assert first.code == 0, first.err
    count = len(file.read_text("utf-8").splitlines())
    assert graft("adapters", "promote", f"{pushed}:1").code == 0
    # The file goes on where it was.
    assert "1 entries were written" in graft("audit", "--all-namespaces", "--json-lines", file).out
    assert len(file.read_text("utf-8").splitlines()) == count + 1
    checked = graft("audit", "verify", file, "--json").json()
    assert checked == graft("audit", "verify", "--json").json()
    assert checked["entries"] == count + 1
    known = graft("audit", "verify", "--known", checked["digest"])
    assert "are as they were written" in known.out


def test_a_changed_export_is_found_out(graft: Graft, pushed: str, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    graft("audit", "--all-namespaces", "--json-lines", file)
    file.write_text(file.read_text("utf-8").replace(pushed, "other"), "utf-8")
    changed = graft("audit", "verify", file)
    assert (changed.code, "is not as it was written" in changed.err) == (1, True)
    file.write_text("{}\n", "utf-8")
    assert "is no entry of an audit log" in graft("audit", "verify", file).err
    assert graft("audit", "verify", tmp_path / "none").code == 2


async def test_a_watch_shows_what_was_asked_for(pushed: str, stack: Stack) -> None:
    variables = environment(stack.home)
    asked = ["watch", "--all", "--resource", pushed]
    async with Terminal([*asked, "--kind", "alias"], variables) as aliases:
        async with Terminal([*asked, "--json"], variables) as everything:
            await everything.see('"latest_version": 0')
            await everything.see('"action": "created"')
            promote = ("adapters", "promote", f"{pushed}:1", "--reason", "go")
            assert (await asyncio.to_thread(stack.graft, *promote)).code == 0
            await everything.see('"reason": "go"')
            everything.press(CTRL_C)
            assert await everything.ended() == 130
        await aliases.see(f"{pushed}@production names 1")
        await aliases.see("go")
        aliases.press(CTRL_C)
        assert await aliases.ended() == 130


def test_a_revision_that_is_not_kept_is_told_with_what_to_do(graft: Graft) -> None:
    result = graft("watch", "--from-revision", 10**9)
    assert (result.code, "List again" in result.err) == (2, True)
    assert graft("watch", "--kind", "nothing").code == 2
