"""A version that was trained with another chat template than the server's: the operator is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.vllm_plugin.conftest import World

pytestmark = pytest.mark.engine
WARNING = "was trained with the chat template"
OWN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


async def test_it_is_served_and_the_log_names_version_and_template(
    world: World, log: pytest.LogCaptureFixture
) -> None:
    await world.push(template=OWN)
    server = await world.start_server()
    assert await server.ask("bot") == "bot:1"
    assert await server.ask("bot:1") == "bot:1#2"
    # A record may come through two loggers.
    told = {id(each): each.getMessage() for each in log.records if WARNING in each.getMessage()}
    (warning,) = told.values()
    (_, _, folder) = server.engine.loaded[0]
    assert "bot/versions/1" in warning
    assert f"--chat-template {folder}/chat_template.jinja" in warning
    assert (Path(folder) / "chat_template.jinja").read_text() == OWN


async def test_a_version_that_an_alias_moves_to_is_told_of_too(
    world: World, log: pytest.LogCaptureFixture
) -> None:
    await world.push()
    server = await world.start_server()
    assert await server.ask("bot") == "bot:1"
    assert WARNING not in log.text
    await world.push(template=OWN)
    await server.comes_to("bot", "bot:2")
    assert "bot/versions/2 was trained with the chat template" in log.text


@pytest.mark.parametrize("given", ["a file", "the text", "the base's own"])
async def test_nothing_is_said_where_the_server_has_the_same_one(
    world: World, tmp_path: Path, log: pytest.LogCaptureFixture, given: str
) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(OWN)
    options = {"a file": str(file), "the text": OWN, "the base's own": ""}
    base = (world.base / "chat_template.jinja").read_text()
    await world.push(template=OWN if options[given] else base)
    server = await world.start_server(chat_template=options[given])
    assert await server.ask("bot") == "bot:1"
    assert WARNING not in log.text
