"""What every engine promises: the fake, real vLLM and transformers pass the same tests."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import warnings
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from graft.errors import GraftError, Reason

from services.inference.engines.base import Delta, Engine, EngineAdapter, Finish, Position, Sampling
from services.inference.engines.fake import FakeEngine
from services.inference.engines.transformers_engine import TransformersEngine
from services.inference.engines.transformers_messages import TransformersOptions
from tests.support.engines import SharedEngine
from tests.support.models import make_adapter
from tests.support.peft import peft_greedy
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")
GREEDY = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)
_numbers = itertools.count(1000)


async def answer(
    engine: Engine,
    prompt: str = "The cat sees",
    sampling: Sampling = GREEDY,
    adapter: EngineAdapter | None = None,
    *,
    stream: bool = False,
) -> tuple[str, list[int], Finish | None]:
    ids = engine.tokenize(prompt, special_tokens=True)
    text, finish = "", None
    tokens: list[int] = []
    async for delta in engine.generate(f"r{next(_numbers)}", ids, sampling, adapter, stream=stream):
        text += delta.text
        tokens += delta.token_ids
        finish = delta.finish
    return text, tokens, finish


class EngineContract:
    """Tests of any engine; a subclass says which, and how it is killed."""

    @abstractmethod
    def killer(self, engine: Engine) -> Callable[[], None]:
        """What ends it as SIGKILL does, and takes no time: to look for a process takes as long as an answer."""

    @pytest.fixture
    def adapters(self, tiny_base: Path, tmp_path: Path) -> list[EngineAdapter]:
        """Two that differ, not loaded."""
        folders = [make_adapter(tmp_path / f"a{seed}", tiny_base, seed=seed) for seed in (1, 2)]
        return [
            EngineAdapter(next(_numbers), f"a{index}@{tmp_path}", folder)
            for index, folder in enumerate(folders)
        ]

    @pytest_asyncio.fixture(loop_scope="session")
    async def loaded(
        self, engine: Engine, adapters: list[EngineAdapter]
    ) -> AsyncIterator[list[EngineAdapter]]:
        """Both loaded."""
        for adapter in adapters:
            await engine.load(adapter)
        yield adapters
        for adapter in adapters:
            await engine.unload(adapter)

    async def test_the_stream_is_the_whole_answer_in_parts(self, engine: Engine) -> None:
        assert await answer(engine, stream=True) == await answer(engine)

    async def test_greedy_answers_repeat(self, engine: Engine) -> None:
        assert await answer(engine) == await answer(engine)

    async def test_max_tokens_is_a_length(self, engine: Engine) -> None:
        _, tokens, finish = await answer(engine)
        assert len(tokens) == 16
        assert finish is Finish.LENGTH

    async def test_a_stop_string_ends_the_text_before_it(self, engine: Engine) -> None:
        free, _, _ = await answer(engine)
        middle = len(free) // 2
        stop = free[middle : middle + 3]
        for stream in (False, True):
            text, _, finish = await answer(
                engine, sampling=replace(GREEDY, stop=(stop,)), stream=stream
            )
            assert text == free[: free.index(stop)]
            assert finish is Finish.STOP

    async def test_the_same_seed_draws_the_same(self, engine: Engine) -> None:
        # The tiny base is so sure of itself that it takes this to make it draw.
        drawn = replace(GREEDY, temperature=2.0, repetition_penalty=9.0, seed=7)
        assert await answer(engine, sampling=drawn) == await answer(engine, sampling=drawn)
        other = replace(drawn, seed=8)
        assert await answer(engine, sampling=drawn) != await answer(engine, sampling=other)

    async def test_logprobs_rank_the_likeliest(self, engine: Engine) -> None:
        ids = engine.tokenize("The cat", special_tokens=True)
        sampling = replace(GREEDY, logprobs=3)
        positions: list[Position] = []
        tokens: list[int] = []
        async for delta in engine.generate(f"r{next(_numbers)}", ids, sampling, None, stream=True):
            positions += delta.logprobs
            tokens += delta.token_ids
        assert [each.drawn.token_id for each in positions] == tokens
        for position in positions:
            values = [each.logprob for each in position.top]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)
            assert position.drawn.logprob == values[0] <= 0

    async def test_adapters_answer_otherwise_and_leave_the_base_alone(
        self, engine: Engine, adapters: list[EngineAdapter]
    ) -> None:
        base = await answer(engine)
        for adapter in adapters:
            await engine.load(adapter)
        alone = [await answer(engine, adapter=adapter) for adapter in adapters]
        assert len({base[0], alone[0][0], alone[1][0]}) == 3
        # All slots are full here: on vLLM's CPU build the base would take the last slot's weights.
        together = await asyncio.gather(
            answer(engine),
            answer(engine, adapter=adapters[0]),
            answer(engine, adapter=adapters[1]),
            answer(engine),
        )
        assert list(together) == [base, *alone, base]
        for adapter in adapters:
            await engine.unload(adapter)
        assert await answer(engine) == base

    async def test_a_slot_is_free_again_after_its_adapter_left(
        self, engine: Engine, adapters: list[EngineAdapter]
    ) -> None:
        first = EngineAdapter(next(_numbers), adapters[0].name, adapters[0].folder)
        for _ in range(4):
            again = replace(first, number=next(_numbers))
            await engine.load(again)
            await engine.unload(again)

    async def test_a_closed_generator_frees_the_engine(
        self, engine: Engine, loaded: list[EngineAdapter]
    ) -> None:
        ids = engine.tokenize("The cat", special_tokens=True)
        long = replace(GREEDY, max_tokens=200)
        deltas = engine.generate(f"r{next(_numbers)}", ids, long, loaded[0], stream=True)
        await anext(deltas)
        await deltas.aclose()
        await eventually(lambda: engine.unfinished() == 0, "the abort")

    async def test_a_cancelled_answer_frees_the_engine(self, engine: Engine) -> None:
        task = asyncio.create_task(answer(engine, sampling=replace(GREEDY, max_tokens=200)))
        await eventually(lambda: engine.unfinished() == 1, "the request")
        task.cancel()
        await eventually(lambda: engine.unfinished() == 0, "the abort")

    async def test_a_chat_ends_where_the_assistant_begins(self, engine: Engine) -> None:
        text = engine.render_chat([{"role": "user", "content": "hello"}], [])
        assert "hello" in text
        assert "assistant" in text[text.index("hello") :]

    async def test_after_its_death_it_says_so_and_can_be_started_anew_without_adapters(
        self, engine: Engine, adapters: list[EngineAdapter]
    ) -> None:
        adapter = adapters[0]
        await engine.load(adapter)
        before = [await answer(engine), await answer(engine, adapter=adapter)]
        ids = engine.tokenize("The cat", special_tokens=True)
        long = replace(GREEDY, max_tokens=200)
        kill = self.killer(engine)
        in_flight = engine.generate(f"r{next(_numbers)}", ids, long, adapter, stream=True)
        await anext(in_flight)
        kill()
        async with asyncio.timeout(60):
            await engine.wait_dead()
        assert not engine.healthy
        assert await reason_of(rest(in_flight)) is Reason.ENGINE_DEAD
        assert await reason_of(answer(engine)) is Reason.ENGINE_DEAD
        assert await reason_of(engine.load(adapters[1])) is Reason.ENGINE_DEAD
        with warnings.catch_warnings():
            # As at the first start: vLLM's own.
            warnings.simplefilter("ignore")
            await engine.start()
        assert engine.healthy
        assert await reason_of(answer(engine, adapter=adapter)) is Reason.ENGINE_DEAD
        await engine.unload(adapter)
        again = replace(adapter, number=next(_numbers))
        await engine.load(again)
        assert [await answer(engine), await answer(engine, adapter=again)] == before
        await engine.unload(again)
        assert engine.unfinished() == 0


async def rest(deltas: AsyncIterator[Delta]) -> None:
    """What is left of an answer."""
    async for _ in deltas:
        pass


async def reason_of(call: Awaitable[object]) -> Reason:
    """Why a call failed."""
    with pytest.raises(GraftError) as caught:
        await call
    return caught.value.reason


class TestFakeEngine(EngineContract):
    """The fake."""

    @pytest_asyncio.fixture(loop_scope="session")
    async def engine(self) -> AsyncIterator[Engine]:
        """Two slots."""
        engine = FakeEngine(max_adapters=2, max_context_tokens=256, token_s=0.001)
        await engine.start()
        yield engine
        await engine.stop()

    def killer(self, engine: Engine) -> Callable[[], None]:
        assert isinstance(engine, FakeEngine)
        return engine.die


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def transformers_engine(tiny_base: Path) -> AsyncIterator[TransformersEngine]:
    """Two slots."""
    options = TransformersOptions(tiny_base, max_adapters=2, max_model_len=256, threads=1)
    engine = TransformersEngine(options)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.mark.engine
class TestTransformersEngine(EngineContract):
    """The second engine by itself, in a process of its own."""

    @pytest_asyncio.fixture(loop_scope="session")
    async def engine(self, transformers_engine: TransformersEngine) -> Engine:
        """The shared one."""
        return transformers_engine

    def killer(self, engine: Engine) -> Callable[[], None]:
        assert isinstance(engine, TransformersEngine)
        assert engine.pid is not None
        return partial(os.kill, engine.pid, signal.SIGKILL)


@pytest.mark.engine
class TestVllmEngine(EngineContract):
    """Real vLLM."""

    @pytest_asyncio.fixture(loop_scope="session")
    async def engine(self, vllm_engine: SharedEngine) -> Engine:
        """The shared one."""
        return vllm_engine

    def killer(self, engine: Engine) -> Callable[[], None]:
        assert isinstance(engine, SharedEngine)
        return engine.core.kill

    async def test_greedy_answers_equal_those_of_peft(
        self, engine: Engine, loaded: list[EngineAdapter], tiny_base: Path
    ) -> None:
        for adapter in (None, *loaded):
            ids = engine.tokenize("The cat sees a red", special_tokens=True)
            _, tokens, _ = await answer(engine, "The cat sees a red", adapter=adapter)
            folder = None if adapter is None else adapter.folder
            assert tokens == await asyncio.to_thread(peft_greedy, tiny_base, folder, ids, 16)

    async def test_an_adapter_that_fails_to_load_leaves_nothing_behind(
        self, engine: Engine, loaded: list[EngineAdapter], tiny_base: Path, tmp_path: Path
    ) -> None:
        await engine.unload(loaded.pop())
        before = [await answer(engine), await answer(engine, adapter=loaded[0])]
        for index, folder in enumerate(bad_adapters(tmp_path, tiny_base)):
            bad = EngineAdapter(next(_numbers), f"bad{index}", folder)
            with pytest.raises(GraftError) as caught:
                await engine.load(bad)
            assert caught.value.reason is Reason.ADAPTER_UNUSABLE
        assert engine.healthy
        assert [await answer(engine), await answer(engine, adapter=loaded[0])] == before
        # The slot that the bad ones asked for is still to be had.
        good = EngineAdapter(
            next(_numbers), "good", make_adapter(tmp_path / "good", tiny_base, seed=9)
        )
        await engine.load(good)
        assert (await answer(engine, adapter=good)) not in before
        await engine.unload(good)


def bad_adapters(folder: Path, base: Path) -> list[Path]:
    """Adapters that vLLM cannot load, each for a reason of its own."""
    truncated = make_adapter(folder / "truncated", base)
    weights = truncated / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    empty = make_adapter(folder / "empty", base)
    (empty / "adapter_model.safetensors").write_bytes(b"")
    no_config = make_adapter(folder / "no-config", base)
    (no_config / "adapter_config.json").unlink()
    dora = make_adapter(folder / "dora", base, config_changes={"use_dora": True})
    return [
        truncated,
        empty,
        no_config,
        dora,
        make_adapter(folder / "rank", base, rank=64),
        make_adapter(folder / "wide", make_wide_base(folder / "wide-base")),
    ]


def make_wide_base(folder: Path) -> Path:
    """A config of a wider base is all that make_adapter needs."""
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"hidden_size": 256, "num_key_value_heads": 4, "head_dim": 32,'
        ' "intermediate_size": 512, "num_hidden_layers": 2}'
    )
    return folder
