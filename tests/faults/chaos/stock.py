"""Stock vLLM in a process of its own, as one uses it by its documentation: what the cases do to it.

`python -m tests.faults.chaos.stock GROUP BASE FOLDER` runs the cases of a group on one engine, the deadly
ones last, and adds a line for each to FOLDER/GROUP.jsonl.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults.chaos.cases import Case
from tests.faults.chaos.service import ANSWER_TOKENS, LONG, SHORT
from tests.faults.chaos.table import Cell
from tests.support.bad_adapters import everything
from tests.support.models import make_adapter, make_base

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "GOMP_SPINCOUNT": "1000",
    # None of the plugins that are installed here: ours is one of them.
    "VLLM_PLUGINS": "",
}
_CASE_S = 60.0
_FLOOD_S = 8.0
_LONG_ANSWER = 900


@dataclass(slots=True)
class Stock:
    """One engine, and adapters under numbers of their own."""

    engine: AsyncLLM
    base: Path
    folder: Path
    slots: int
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def made(self, seed: int, base: Path | None = None, **changes: Any) -> Path:
        """A right adapter, in a folder of its own."""
        folder = self.folder / f"made-{next(self._numbers)}"
        return make_adapter(folder, base or self.base, seed=seed, **changes)

    def bad(self, kind: str) -> Path:
        """A bad one."""
        return everything()[kind].write(self.folder / f"bad-{next(self._numbers)}")

    def request(self, folder: Path, number: int = 0, **fields: Any) -> LoRARequest:
        """What vLLM calls an adapter; a fresh number unless told otherwise."""
        from vllm.lora.request import LoRARequest

        number = number or 1000 + next(self._numbers)
        return LoRARequest(folder.name, number, str(folder), **fields)

    async def added(self, folder: Path, number: int = 0, **fields: Any) -> LoRARequest:
        """Loaded beforehand, as one should."""
        request = self.request(folder, number, **fields)
        await self.engine.add_lora(request)
        return request

    async def answer(
        self,
        lora: LoRARequest | None,
        prompt: Sequence[int] = SHORT,
        tokens: int = ANSWER_TOKENS,
        begun: asyncio.Event | None = None,
    ) -> list[int]:
        """Greedy and of exactly so many tokens."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        question: Any = {"prompt_token_ids": list(prompt)}
        name = f"r{next(self._numbers)}"
        found: list[int] = []
        async for out in self.engine.generate(question, params, name, lora_request=lora):
            found = list(out.outputs[0].token_ids)
            if begun is not None and len(found) > 10:
                begun.set()
        return found

    async def begin(
        self, lora: LoRARequest | None, prompt: Sequence[int] = SHORT, tokens: int = 200
    ) -> asyncio.Task[list[int]]:
        """An answer that runs."""
        begun = asyncio.Event()
        task = asyncio.create_task(self.answer(lora, prompt, tokens, begun))
        await begun.wait()
        return task

    async def clear(self) -> None:
        """Removes every adapter."""
        for number in await self.engine.list_loras():
            await self.engine.remove_lora(number)

    async def outcome(self, doing: Awaitable[Any], innocent: asyncio.Task[list[int]]) -> Cell:
        """What it does to the engine, and to an innocent answer."""
        refused = False
        try:
            await doing
        except Exception:
            refused = True
        (answer,) = await asyncio.gather(innocent, return_exceptions=True)
        if self.engine.errored:
            with_it = ", and with it the innocent's answer" if isinstance(answer, Exception) else ""
            return Cell(True, f"the engine dies{with_it}")
        return Cell(False, "refused" if refused else "served")


async def base_beside_adapters(stock: Stock) -> Cell:
    """Before any other adapter: what a slot held is still there when it is empty."""
    quiet = await stock.answer(None, SHORT, 60)
    loras = [await stock.added(stock.made(seed)) for seed in range(1, stock.slots + 1)]
    await asyncio.gather(*(stock.answer(lora) for lora in loras))
    answers = await asyncio.gather(*(stock.answer(lora, SHORT, 60) for lora in [*loras, None]))
    if answers[-1] == quiet:
        return Cell(False, "the base answers as the base")
    return Cell(True, "the base answers with the weights of the adapter in the last slot")


async def old_weights(stock: Stock) -> Cell:
    """Another path under a known number."""
    first, second = stock.made(11), stock.made(12)
    before = await stock.answer(await stock.added(first, 10))
    expected = await stock.answer(await stock.added(second))
    after = await stock.answer(await stock.added(second, 10))
    if after == expected != before:
        return Cell(False, "the new weights are served")
    return Cell(after == before, "the old weights are served under the new path, silently")


async def in_place(stock: Stock) -> Cell:
    """load_inplace under a running answer; then over the same path, with a prompt in the prefix cache."""
    first, second = stock.made(21), stock.made(22)
    lora = await stock.added(first, 20)
    whole = await stock.answer(lora, SHORT, 200)
    running = await stock.begin(lora)
    await stock.engine.add_lora(stock.request(second, 20, load_inplace=True))
    mixed = await running != whole

    same = stock.folder / "same"
    shutil.copytree(first, same)
    lora = await stock.added(same, 23)
    old = await stock.answer(lora, LONG)
    shutil.copytree(second, same, dirs_exist_ok=True)
    lora = await stock.added(same, 23, load_inplace=True)
    now = await stock.answer(lora, LONG)
    stale = now not in (old, await stock.answer(await stock.added(second), LONG))
    found = [
        *(["the running answer changes in mid-sequence"] if mixed else []),
        *(["then an answer of neither version, from stale cache"] if stale else []),
    ]
    return Cell(bool(found), "; ".join(found) or "the running answer is whole, the cache is right")


async def removed_in_flight(stock: Stock) -> Cell:
    """remove_lora with a running answer."""
    lora = await stock.added(stock.made(31), 30)
    running = await stock.begin(lora)
    said = await stock.engine.remove_lora(30)
    await running
    back = 30 in await stock.engine.list_loras()
    return Cell(
        bool(said) and back,
        "remove_lora says True, and the next step loads it again from disk"
        if back
        else "it is removed",
    )


async def failed_add(stock: Stock) -> Cell:
    """A second add after one that failed for too large tensors."""
    wide = stock.made(41, make_base(stock.folder / "wide", hidden=256))
    lora = stock.request(wide, 40)
    with contextlib.suppress(Exception):
        await stock.engine.add_lora(lora)
        return Cell(True, "too large tensors are taken without a word")
    try:
        again = await stock.engine.add_lora(lora)
        heard = await stock.answer(lora)
    except Exception:
        return Cell(False, "refused again")
    return Cell(True, f"the second add says {again}, and garbage of {len(heard)} tokens is served")


async def told(stock: Stock) -> Cell:
    """What its metrics say of adapters."""
    from prometheus_client import REGISTRY

    names = {
        family.name
        for family in REGISTRY.collect()
        if any("lora" in label for sample in family.samples for label in sample.labels)
        or "lora" in family.name
    }
    shown = ", ".join(sorted(names)) or "nothing"
    return Cell(len(names) < 2, f"{shown}: no latency, tokens, loads or residency by adapter")


async def unload_frees(stock: Stock) -> Cell:
    """The HTTP server's unload."""
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.serve.lora.protocol import (
        LoadLoRAAdapterRequest,
        UnloadLoRAAdapterRequest,
    )

    await stock.clear()
    models = OpenAIServingModels(stock.engine, [BaseModelPath("tiny", str(stock.base))])
    path = str(stock.made(51))
    await models.load_lora_adapter(LoadLoRAAdapterRequest(lora_name="bot", lora_path=path))
    loaded = await stock.engine.list_loras()
    said = await models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name="bot"))
    left = await stock.engine.list_loras()
    if loaded and left == loaded:
        return Cell(True, f"unload says {str(said)[:7]!r}, and the engine still holds the adapter")
    return Cell(False, "the engine holds nothing of it")


async def taken_silently(stock: Stock) -> Cell:
    """Adapters that fit nothing."""
    kinds = {
        "IA3": stock.made(61, config_changes={"peft_type": "IA3"}),
        "another base": stock.made(62, config_changes={"base_model_name_or_path": "other/model"}),
        "NaN": stock.bad("tensors: NaN"),
        "a smaller base": stock.made(63, make_base(stock.folder / "small", hidden=32)),
        "a layer that is not there": stock.bad("tensors: a layer too many"),
        "another rank than its tensors'": stock.bad("config: a rank above its tensors'"),
    }
    taken = []
    for kind, folder in kinds.items():
        with contextlib.suppress(Exception):
            lora = await stock.added(folder)
            taken.append(kind)
            await stock.engine.remove_lora(lora.lora_int_id)
    return Cell(bool(taken), f"taken without a word: {', '.join(taken) or 'none'}")


async def bad_adapters(stock: Stock) -> Cell:
    """Every bad adapter is loaded; none is asked."""
    kinds = {what: bad for what, bad in everything().items() if bad.words or bad.endpoint_words}
    taken = 0
    for kind in kinds:
        lora = stock.request(stock.bad(kind))
        with contextlib.suppress(Exception):
            await stock.engine.add_lora(lora)
            taken += 1
        await stock.engine.remove_lora(lora.lora_int_id)
    return Cell(taken > 0, f"{taken} of {len(kinds)} harmful ones are taken without a word")


async def nan(stock: Stock) -> Cell:
    """Answers of another adapter after one of an adapter with NaN."""
    await stock.clear()
    good, bad = await stock.added(stock.made(71)), await stock.added(stock.bad("tensors: NaN"))
    prompts = [tuple(3 + (place * step) % 500 for place in range(20)) for step in (3, 5, 7, 9)]
    quiet = [await stock.answer(good, prompt) for prompt in prompts]
    await asyncio.gather(*(stock.answer(bad, prompt) for prompt in [*prompts, LONG]))
    after = [await stock.answer(good, prompt) for prompt in prompts]
    wrong = sum(one != other for one, other in zip(quiet, after, strict=True))
    return Cell(wrong > 0, f"then {wrong} of 4 answers of another adapter are wrong")


async def not_preloaded(stock: Stock) -> Cell:
    """A broken adapter is asked for, with an innocent answer running."""
    await stock.clear()
    innocent = await stock.begin(await stock.added(stock.made(81)), SHORT, _LONG_ANSWER)
    lora = stock.request(stock.bad("files: truncated weights"))
    return await stock.outcome(stock.answer(lora), innocent)


async def starvation(stock: Stock) -> Cell:
    """Four clients on one adapter; another is asked for."""
    flooded, other = await stock.added(stock.made(91)), await stock.added(stock.made(92))
    await stock.answer(other)
    loop = asyncio.get_running_loop()
    end_s = loop.time() + _FLOOD_S

    async def flood(tokens: int) -> None:
        while loop.time() < end_s:
            await stock.answer(flooded, SHORT, tokens)

    # Of lengths of their own, as people's are: they do not all end in one step.
    floods = [asyncio.create_task(flood(tokens)) for tokens in (60, 80, 100, 120)]
    await asyncio.sleep(1)
    began_s = loop.time()
    await stock.answer(other)
    ended_s = loop.time()
    await asyncio.gather(*floods)
    if ended_s > end_s:
        return Cell(
            True, f"waits {ended_s - began_s:.1f} s, until the flood of {_FLOOD_S:.0f} s ends"
        )
    return Cell(False, f"served after {ended_s - began_s:.1f} s in a flood of {_FLOOD_S:.0f} s")


async def all_pinned(stock: Stock) -> Cell:
    """Every slot is pinned; another adapter is asked for."""
    await stock.clear()
    pinned, other = await stock.added(stock.made(93)), await stock.added(stock.made(94))
    await stock.answer(pinned)
    await stock.engine.pin_lora(pinned.lora_int_id)
    innocent = await stock.begin(None, SHORT, _LONG_ANSWER)
    return await stock.outcome(stock.answer(other), innocent)


async def folder_gone(stock: Stock) -> Cell:
    """Evicted by the next adapter, and its folder deleted."""
    folder = stock.made(95)
    evicted = await stock.added(folder)
    await stock.answer(evicted)
    await stock.answer(await stock.added(stock.made(96)))
    innocent = await stock.begin(None, SHORT, _LONG_ANSWER)
    shutil.rmtree(folder)
    return await stock.outcome(stock.answer(evicted), innocent)


@dataclass(frozen=True, slots=True)
class Group:
    """Cases that share an engine, in order."""

    slots: int
    cpu_slots: int
    cases: Mapping[Case, Callable[[Stock], Awaitable[Cell]]]


GROUPS = {
    "two-slots": Group(
        2,
        16,
        {
            Case.BASE_BESIDE_ADAPTERS: base_beside_adapters,
            Case.OLD_WEIGHTS: old_weights,
            Case.IN_PLACE: in_place,
            Case.REMOVED_IN_FLIGHT: removed_in_flight,
            Case.ONE_GAUGE: told,
            Case.UNLOAD_FREES_NOTHING: unload_frees,
            Case.FAILED_ADD: failed_add,
            Case.TAKEN_SILENTLY: taken_silently,
            Case.BAD_ADAPTERS: bad_adapters,
            Case.NAN: nan,
            Case.NOT_PRELOADED: not_preloaded,
        },
    ),
    "one-slot": Group(1, 4, {Case.STARVATION: starvation, Case.ALL_PINNED: all_pinned}),
    "no-room": Group(1, 1, {Case.FOLDER_GONE: folder_gone}),
}


async def run(name: str, base: Path, folder: Path) -> None:
    """Runs a group."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    group = GROUPS[name]
    arguments: dict[str, Any] = {
        "model": str(base), "dtype": "float32", "enforce_eager": True, "max_model_len": 1024,
        "max_num_seqs": 16, "enable_lora": True, "max_loras": group.slots,
        "max_cpu_loras": group.cpu_slots, "max_lora_rank": 16, "generation_config": "vllm",
    }  # fmt: skip
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    work = folder / name
    work.mkdir()
    stock = Stock(engine, base, work, group.slots)
    with (folder / f"{name}.jsonl").open("a") as lines:
        for case, ask in group.cases.items():
            try:
                async with asyncio.timeout(_CASE_S):
                    cell = await ask(stock)
            except Exception as error:
                cell = Cell(True, f"it ends with {error!r}"[:200])
            lines.write(json.dumps({"case": case, "fails": cell.fails, "told": cell.told}) + "\n")
            lines.flush()
    engine.shutdown()


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    asyncio.run(run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
