"""The cases as our service meets them: each returns what happened, or fails an assertion."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

from graft.errors import Reason

from tests.faults.chaos.cases import Case
from tests.faults.chaos.service import LONG, SHORT, Chaos, Innocents, same
from tests.support.bad_adapters import everything
from tests.support.models import make_adapter, make_base
from tests.support.processes import halt
from tests.support.waiting import eventually


async def old_weights(chaos: Chaos) -> str:
    """The alias moves: the next answer is of the new weights, to the byte."""
    before, folder = await chaos.ask("one", LONG), chaos.fresh(11)
    await chaos.add("twin", folder)
    expected = await chaos.ask("twin:1", LONG)
    version = await chaos.add("one", folder)
    await chaos.running.promote("one", 2)

    async def moved() -> bool:
        return (await chaos.ask("one", LONG)).version == version.name

    await eventually(moved, "the move")
    after = await chaos.ask("one", LONG)
    assert after.tokens == expected.tokens != before.tokens
    return "the next answer is of the new weights and says so"


async def in_place(chaos: Chaos) -> str:
    """The alias moves in mid-answer: the answer ends on the version that it began with."""
    whole = await chaos.ask("one", LONG, 100)
    version = await chaos.add("one", chaos.fresh(12))
    expected = await chaos.ask("one:2", LONG, 100)
    async with chaos.answering("one", LONG) as running:
        await chaos.running.promote("one", 2)

        async def moved() -> bool:
            return (await chaos.ask("one", SHORT, 1)).version == version.name

        await eventually(moved, "the move")
        after = await chaos.ask("one", LONG, 100)
        assert await running == whole
    assert after.tokens == expected.tokens != whole.tokens
    return "the running answer ended on its version, the next began on the new one"


async def not_preloaded(chaos: Chaos) -> str:
    """A broken adapter is asked for, for the first time, while others are answered."""
    await chaos.add("broken", everything()["files: truncated weights"].write(chaos.folder / "b"))
    async with Innocents(chaos, ["tiny", "one"]):
        error = await chaos.refusal("broken:1")
    assert error.reason is Reason.ADAPTER_UNUSABLE
    assert chaos.engine.healthy
    return f"refused with {error.reason}; nobody else noticed"


async def folder_gone(chaos: Chaos) -> str:
    """Its folder is deleted while it is resident, and again after it was evicted."""
    cache = chaos.running.folder / "data/inference/adapters"
    for adapter, seed in (("spare", 13), ("other", 14)):
        await chaos.add(adapter, chaos.fresh(seed))
    expected = await chaos.ask("spare:1")
    async with Innocents(chaos, ["tiny", "one"]):
        shutil.rmtree(cache)
        assert await chaos.ask("spare:1") == expected
        await chaos.ask("other:1")

        async def evicted() -> bool:
            return not any("/spare/" in each for each in await chaos.residency())

        await eventually(evicted, "the eviction")
        shutil.rmtree(cache)
        assert await chaos.ask("spare:1") == expected
    return "fetched again and verified; the answer is the same"


async def all_pinned(chaos: Chaos) -> str:
    """Every slot has a running answer and a production alias; a third adapter is asked for."""
    await chaos.add("third", chaos.fresh(15))
    expected = await chaos.ask("third:1")
    quiet = [await chaos.ask(name, SHORT, 100) for name in ("one", "two")]
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(chaos.answering(name)) for name in ("one", "two")
        ]
        assert await chaos.ask("third:1") == expected
        assert [await each for each in running] == quiet
    assert chaos.engine.healthy
    return "a slot is drained for the third; all three answers are right"


async def failed_add(chaos: Chaos) -> str:
    """An adapter of a wider base is asked for again and again."""
    wide = make_base(chaos.folder / "wide-base", hidden=256)
    await chaos.add("wide", make_adapter(chaos.folder / "wide", wide))
    async with Innocents(chaos, ["tiny", "one"]):
        errors = [await chaos.refusal("wide:1") for _ in range(3)]
    assert {error.reason for error in errors} == {Reason.ADAPTER_UNUSABLE}
    return "refused each time, by tensor; never answered"


async def taken_silently(chaos: Chaos) -> str:
    """What stock vLLM takes without a word."""
    bad = everything()
    kinds = (
        "kind: IA3 of another base's width", "tensors: another base's widths", "tensors: NaN", "tensors: a layer too many",
        "config: a rank above its tensors'", "tensors: matrices on their side",
    )  # fmt: skip
    async with Innocents(chaos, ["tiny", "one"]):
        for number, kind in enumerate(kinds, start=1):
            folder = bad[kind].write(chaos.folder / f"misfit-{number}")
            await chaos.add("misfit", folder, peft_type=bad[kind].peft_type)
            error = await chaos.refusal(f"misfit:{number}")
            assert bad[kind].endpoint_words in error.message
        await chaos.add("stranger", chaos.fresh(16), base_fingerprint="sha256:" + "0" * 64)
        assert (await chaos.refusal("stranger:1")).reason is Reason.WRONG_BASE
    return f"all {len(kinds) + 1} refused by name, with the field or the tensor"


async def nan(chaos: Chaos) -> str:
    """NaN is refused; what overflows to it is served, and its cache blocks are somebody else's next."""
    bad = everything()
    await chaos.add("nan", bad["tensors: NaN"].write(chaos.folder / "nan"))
    huge = [kind for kind in bad if "huge numbers" in kind or "largest numbers" in kind]
    names = [f"huge:{number}" for number, _ in enumerate(huge, start=1)]
    for number, kind in enumerate(huge, start=1):
        await chaos.add("huge", bad[kind].write(chaos.folder / f"huge-{number}"))
    questions = [
        (model, prompt) for model in ("tiny", "one") for prompt in (SHORT, LONG, SHORT[:5])
    ]
    quiet = [await chaos.ask(*question) for question in questions]
    for name in names:
        # Alone: the blocks that it leaves are the next to be taken.
        for prompt in (SHORT, LONG):
            await chaos.ask(name, prompt, 40)
        for question, expected in zip(questions, quiet, strict=True):
            same(await chaos.ask(*question), expected, f"{question[0]} after {name}")
    async with Innocents(chaos, ["tiny", "one"]) as innocents:
        assert "NaN" in (await chaos.refusal("nan:1")).message
        for name in names:
            asks = (chaos.ask(name, prompt, 40) for prompt in (SHORT, LONG) * 4)
            await asyncio.gather(*asks)
            await innocents.hear_more(3)
    return "NaN is refused; what overflows harms its own answers alone"


async def starvation(chaos: Chaos) -> str:
    """Floods keep every slot busy; another adapter is asked for."""
    await chaos.add("quiet", chaos.fresh(17))
    expected = await chaos.ask("quiet:1")
    done = asyncio.Event()

    async def flood(model: str, tokens: int) -> int:
        answers = 0
        while not done.is_set():
            await chaos.ask(model, SHORT, tokens)
            answers += 1
        return answers

    # Of lengths of their own, as people's are: they do not all end in one step.
    floods = [
        asyncio.create_task(flood(model, tokens))
        for model in ("one", "two")
        for tokens in (60, 80, 100, 120)
    ]
    try:
        for _ in range(5):
            same(await chaos.ask("quiet:1"), expected, "quiet:1")
        assert not any(task.done() for task in floods)
    finally:
        done.set()
        answers = await asyncio.gather(*floods)
    assert all(answers)
    return "served five times in the flood, and the flood went on"


async def removed_in_flight(chaos: Chaos) -> str:
    """The alias moves away from a version with a running answer: it is unloaded when that has ended."""
    whole = await chaos.ask("one", SHORT, 200)
    await chaos.add("one", chaos.fresh(18))
    # On a slot already: the alias moves without the engine, which stands still meanwhile.
    await chaos.ask("one:2")
    core = chaos.engine.core
    async with chaos.answering("one", SHORT, 200) as running:
        await halt(core)
        try:
            await chaos.running.promote("one", 2)

            async def drains() -> bool:
                states = await chaos.residency()
                return states.get("namespaces/default/adapters/one/versions/1") == "DRAINING"

            await eventually(drains, "draining")
        finally:
            core.resume()
        assert await running == whole
    await chaos.ask("one")

    async def left() -> bool:
        held = [each for each in await chaos.residency() if "/one/" in each]
        return held == ["namespaces/default/adapters/one/versions/2"]

    await eventually(left, "the unload")
    return "unloaded after its last answer, which was whole"


async def unload_frees(chaos: Chaos) -> str:
    """After an unload the engine, the residency and the metrics have nothing of it."""
    await chaos.ask("one")
    await chaos.ask("two")
    await chaos.holds_only("one", "two")
    assert chaos.metric("requests_total", adapter="one", version="1", outcome="ok")
    for number in (2, 3, 4):
        await chaos.add("one", chaos.fresh(20 + number))
        await chaos.running.promote("one", number)
        name = f"namespaces/default/adapters/one/versions/{number}"

        async def serves(name: str = name) -> bool:
            return (await chaos.ask("one", SHORT, 1)).version == name

        await eventually(serves, name)
    await chaos.ask("two")
    await chaos.holds_only("one", "two")
    assert chaos.metric("residency", state="ready") == 2
    assert chaos.metric("residency", state="draining") == 0
    assert chaos.metric("requests_total", adapter="one", version="1", outcome="ok") is None
    return "slot, memory and metric series are free; the engine's own list says so"


async def told(chaos: Chaos) -> str:
    """Figures for each adapter and version."""
    for _ in range(3):
        await chaos.ask("one")
    of_one = {"adapter": "one", "version": "1"}
    await chaos.add("bad", everything()["tensors: NaN"].write(chaos.folder / "nan"))
    await chaos.refusal("bad:1")
    figures = [
        chaos.metric("requests_total", **of_one, outcome="ok"),
        chaos.metric("time_to_first_token_seconds_count", **of_one),
        chaos.metric("completion_tokens_total", **of_one),
        chaos.metric("prompt_tokens_total", **of_one),
        chaos.metric("swap_stage_seconds_count", stage="load"),
        chaos.metric("residency", state="ready"),
        chaos.metric("refusals_total", reason="ADAPTER_UNUSABLE"),
    ]
    assert all(figures), figures
    states = await chaos.residency()
    assert states["namespaces/default/adapters/one/versions/1"] == "READY"
    assert states["namespaces/default/adapters/bad/versions/1"] == "FAILED"
    return "requests, tokens, first token, loads, residency and refusals, by version"


async def base_beside_adapters(chaos: Chaos) -> str:
    """The base is asked beside answers of adapters in every slot."""
    quiet = {model: await chaos.ask(model, SHORT, 60) for model in ("tiny", "one", "two")}
    assert len({each.tokens for each in quiet.values()}) == len(quiet)
    await chaos.holds_only("one", "two")
    models = ["tiny", "one", "two"] * 3
    answers = await asyncio.gather(*(chaos.ask(model, SHORT, 60) for model in models))
    for model, answer in zip(models, answers, strict=True):
        same(answer, quiet[model], model)
    return "the base answers as the base"


async def bad_adapters(chaos: Chaos) -> str:
    """Every bad adapter is asked for while innocents are answered."""
    bad, refused = everything(), 0
    async with Innocents(chaos, ["tiny", "one", "two"]) as innocents:
        for number, (kind, each) in enumerate(bad.items(), start=1):
            await chaos.add(
                "bad", each.write(chaos.folder / f"bad-{number}"),
                rank=each.rank, peft_type=each.peft_type,
            )  # fmt: skip
            if each.endpoint_words:
                error = await chaos.refusal(f"bad:{number}")
                assert each.endpoint_words in error.message, f"{kind}: {error}"
                assert "bad/versions/" in error.message, f"{kind}: {error}"
                refused += 1
            else:
                await chaos.ask(f"bad:{number}", LONG)
        await innocents.hear_more(3)
    assert chaos.engine.healthy
    return f"{refused} of {len(bad)} refused by name, the others harm nobody"


CASES: Mapping[Case, Callable[[Chaos], Awaitable[str]]] = {
    Case.OLD_WEIGHTS: old_weights,
    Case.IN_PLACE: in_place,
    Case.NOT_PRELOADED: not_preloaded,
    Case.FOLDER_GONE: folder_gone,
    Case.ALL_PINNED: all_pinned,
    Case.FAILED_ADD: failed_add,
    Case.TAKEN_SILENTLY: taken_silently,
    Case.NAN: nan,
    Case.STARVATION: starvation,
    Case.REMOVED_IN_FLIGHT: removed_in_flight,
    Case.UNLOAD_FREES_NOTHING: unload_frees,
    Case.ONE_GAUGE: told,
    Case.BASE_BESIDE_ADAPTERS: base_beside_adapters,
    Case.BAD_ADAPTERS: bad_adapters,
}
