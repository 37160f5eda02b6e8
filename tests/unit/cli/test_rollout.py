"""`graft rollout` against running services."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models import make_adapter
from tests.unit.cli.conftest import Graft


@pytest.fixture
def bot(graft: Graft, tiny_base: Path, tmp_path: Path) -> str:
    """An adapter with two versions; the first is production."""
    for seed in (81, 82):
        folder = make_adapter(tmp_path / str(seed), tiny_base, seed=seed)
        pushed = graft("adapters", "push", "rolled", folder, "--base", tiny_base)
        assert pushed.code == 0, pushed.err
    # Limits of an earlier test would stay.
    graft("adapters", "unalias", "rolled", "--alias", "production")
    assert graft("adapters", "promote", "rolled:1").code == 0
    return "rolled"


def test_a_rollout_is_started_shown_held_and_aborted(graft: Graft, bot: str) -> None:
    # No step is taken by itself meanwhile, however long the commands take.
    limits = ("--window", "60m", "--max-error-rate", 0.05, "--max-token-ratio", 2)
    started = graft("rollout", "start", f"{bot}:2", "--steps", "5,50,100", *limits)
    assert (started.code, "rolled@production names version 1, canaries 2 5%." in started.out) == (
        0,
        True,
    ), started.err
    again = graft("rollout", "start", f"{bot}:1", "--percent", 10)
    assert (again.code, "rolls out" in again.err, "abort" in again.err) == (4, True, True)
    assert graft("rollout", "pause", bot).code == 0
    shown = graft("rollout", "status", bot)
    assert shown.code == 0, shown.err
    for words in ("5 %, 50 %, 100 % (paused)", "window 3600 s", "max_token_ratio 2", "canary 5 %"):
        assert words in shown.out, shown.out
    assert graft("rollout", "resume", bot).code == 0
    key = ("--session-key", "ann", "--max-tokens", 4, "--json")
    answers = [graft("generate", bot, "hello", *key).json() for _ in range(2)]
    parts = {answer["provenance"]["rollout_part"] for answer in answers}
    assert parts in ({"stable"}, {"canary"})
    aborted = graft("rollout", "abort", bot, "--reason", "enough")
    assert (aborted.code, aborted.out.strip()) == (0, "rolled@production names version 1.")
    assert "enough" in graft("adapters", "history", bot).out


def test_a_shadow_is_set_and_ended(graft: Graft, bot: str) -> None:
    assert graft("rollout", "shadow", f"{bot}:2", "--percent", 50).code == 0
    shown = graft("rollout", "status", bot, "--json").json()
    assert shown["alias"]["rollout"]["shadow"] == {"version": 2, "percent": 50.0}
    assert graft("rollout", "shadow", bot, "--off").code == 0
    nothing = graft("rollout", "abort", bot)
    assert (nothing.code != 0, "has no canary and no shadow" in nothing.err) == (True, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rolled", "--percent", 5), "names no version"),
        (("rolled:2", "--max-error-rate", 0.1), "no window"),
        (("rolled:2", "--window", "soon"), "is not a time"),
        (("rolled:2", "--steps", "5,many"), "not steps in percent"),
        (("rolled:2", "--percent", 100), "weights of the canaries"),
        (("rolled:2", "--steps", "5,50"), "limits is not"),
        (("rolled:1", "--percent", 5), "named twice"),
        (("nobody:2", "--percent", 5), "nobody"),
    ],
)
def test_what_cannot_be_says_what_to_do(
    graft: Graft, bot: str, arguments: tuple[object, ...], said: str
) -> None:
    refused = graft("rollout", "start", *arguments)
    assert (refused.code != 0, said in refused.err) == (True, True), refused.err
