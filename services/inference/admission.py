"""A question's way to its place on the engine: checked, resolved, its turn waited for, its version taken.

Whatever is wrong with a request is found here, before the engine sees it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from graft.errors import GraftError

from services.inference.domain import AdapterVersion, Base
from services.inference.engines.base import Engine, Sampling, ToolReader
from services.inference.gate import Gate
from services.inference.lengths import Lengths
from services.inference.many import check_n
from services.inference.metrics import InferenceMetrics, labels_of
from services.inference.prompts import Conversation, Prompt, Prompts
from services.inference.questions import Question
from services.inference.residency import Residency
from services.inference.residents import Resident
from services.inference.rollout.controller import Rollouts
from services.inference.rollout.state import Routed
from services.inference.rollout.watch import Watch
from services.inference.router import Router
from services.inference.scheduling.by_engine import Schedulers
from services.inference.scheduling.queue import Claim, Turn
from services.inference.tools import NO_TOOLS, ToolPlan, tool_plan

T = TypeVar("T")
# Of a conversation that is not rendered yet.
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Admitted:
    """What the engine can be given at once.

    Attributes:
        sampling: complete.
        readers: of tools' calls: one for each answer, or none.
        resident: loaded, and so until Admission.release(); None for the base.
        turn: its place among those on the engine.
        watch: None where nobody judges the answer or wants a copy.
    """

    prompt_token_ids: Sequence[int]
    sampling: Sampling
    readers: Sequence[ToolReader]
    routed: Routed
    resident: Resident | None
    turn: Turn
    watch: Watch | None


class Admission:
    """What every request for one base passes."""

    def __init__(
        self,
        engine: Engine,
        gate: Gate,
        router: Router,
        residency: Residency,
        prompts: Prompts,
        base: Base,
        metrics: InferenceMetrics,
        scheduler: Schedulers,
        rollouts: Rollouts,
    ) -> None:
        self._engine, self._gate, self._base = engine, gate, base
        self._router, self._residency, self._rollouts = router, residency, rollouts
        self._prompts, self._lengths = prompts, Lengths(engine)
        self._metrics, self._tracing, self._scheduler = metrics, metrics.tracing, scheduler

    async def admit(self, question: Question, time_remaining_s: float | None) -> Admitted:
        """What can be known to be wrong is refused before it takes a place in the queue.

        Args:
            time_remaining_s: until the caller's deadline; None for none.

        Raises:
            GraftError: of Router.resolve, Prompts.token_ids, Scheduler.turn, Residency.acquire,
                Engine.check_structure, tool_plan; INVALID_REQUEST, ENGINE_DEAD.
        """
        await self._gate.passed()
        arrived_s = time.perf_counter()
        question, plan = self._planned(question)
        prompt, sampling = question.prompt, question.sampling
        ids: Sequence[int] | None = None
        await self._lengths.check_structure(sampling)
        if isinstance(prompt, Conversation):
            self._prompts.check_conversation(prompt)
        else:
            ids = await self._prompts.token_ids(prompt)
            sampling = self._lengths.complete(sampling, len(ids))
        with self._tracing.span("prepare"):
            routed, _ = await self._routed(question, self._residency.prepare)
        version = routed.version
        if time_remaining_s is not None:
            time_remaining_s -= time.perf_counter() - arrived_s
        claim = self._claim(question, version, ids, sampling, time_remaining_s)
        turn = await self._scheduler.turn(claim)
        try:
            self._metrics.queue_wait.labels(turn.cause.value).observe(turn.waited_s)
            self._metrics.waited_turn(*labels_of(self._base, version), turn.waited_s)
            return await self._use(turn, question, plan, ids)
        except BaseException:
            turn.close()
            raise

    async def count(self, model: str, prompt: Prompt) -> tuple[AdapterVersion | None, int]:
        """Which version a name means, and how many tokens a prompt has by its own chat template.

        Raises:
            GraftError: of Router.resolve, Prompts.token_ids, Residency.template; ENGINE_DEAD.
        """
        await self._gate.passed()
        with self._tracing.span("resolve"):
            version = await self._router.resolve(model)
        template = None
        if version is not None and isinstance(prompt, Conversation):
            template = await self._residency.template(version)
        return version, len(await self._prompts.token_ids(prompt, template))

    def release(self, admitted: Admitted) -> None:
        """Its answer has ended: its version may go, and its place is another's."""
        if admitted.resident is not None:
            self._residency.release(admitted.resident)
        admitted.turn.close()

    def engine_of(self, version: AdapterVersion | None) -> str:
        """Name of the engine that answers for a version, or for the base."""
        limits = self._engine.limits
        return (limits if version is None else limits.of(version.peft_type)).engine

    def _planned(self, question: Question) -> tuple[Question, ToolPlan]:
        """A question with tools or a structure is one like any other, once they are checked."""
        key = self._rollouts.key_for(question.session_key)
        if key != question.session_key:
            question = replace(question, session_key=key)
        if question.n != 1:
            check_n(question.n)
        if not isinstance(question.prompt, Conversation):
            return question, NO_TOOLS
        plan = tool_plan(question.prompt, question.sampling, question.tool_choice,
                         question.parallel_tool_calls)  # fmt: skip
        return replace(question, prompt=plan.conversation(question.prompt),
                       sampling=plan.sampling(question.sampling)), plan  # fmt: skip

    def _claim(
        self,
        question: Question,
        version: AdapterVersion | None,
        ids: Sequence[int] | None,
        sampling: Sampling,
        time_remaining_s: float | None,
    ) -> Claim:
        base, prompt = self._base, question.prompt
        if ids is None:
            assert isinstance(prompt, Conversation)
            prompt_tokens = prompt.size_bytes // _BYTES_PER_TOKEN + 1
        else:
            prompt_tokens = len(ids)
        return Claim(
            namespace=base.namespace,
            adapter=base.base_id if version is None else version.adapter_id,
            slot=self._slot(version),
            prompt_tokens=prompt_tokens,
            max_tokens=question.n * (sampling.max_tokens or self._engine.limits.max_context_tokens),
            priority=question.priority,
            time_remaining_s=time_remaining_s,
            engine=self.engine_of(version),
            room=self._room(version),
        )

    async def _use(
        self,
        turn: Turn,
        question: Question,
        plan: ToolPlan,
        ids: Sequence[int] | None,
    ) -> Admitted:
        """Takes the version that the name means now, and with it, for a conversation, its template."""
        # The engine may have died while it waited.
        await self._gate.passed()

        async def acquire(version: AdapterVersion) -> Resident:
            turn.move(self._slot(version), self._room(version))
            with self._tracing.span("acquire"):
                return await self._residency.acquire(version)

        routed, resident = await self._routed(question, acquire)
        if resident is None:
            turn.move("")
        turn.ready()
        watch = self._rollouts.begin(routed, question.model, self._base.namespace)
        try:
            template = None if resident is None else resident.template
            readers = plan.readers(self._engine, template, question.n)
            sampling = _read_by(question.sampling, readers)
            if ids is None:
                ids = await self._prompts.token_ids(question.prompt, template)
                turn.prompt(len(ids))
            sampling = self._lengths.complete(sampling, len(ids), resident)
            await self._lengths.check_structure(sampling)
        except BaseException as error:
            if watch is not None:
                watch.fail(error)
            if resident is not None:
                self._residency.release(resident)
            raise
        return Admitted(ids, sampling, readers, routed, resident, turn, watch)

    async def _routed(
        self, question: Question, take: Callable[[AdapterVersion], Awaitable[T]]
    ) -> tuple[Routed, T | None]:
        """Its version, taken. A canary that cannot be loaded is left out, for all that come after, too."""
        while True:
            with self._tracing.span("resolve"):
                routed = await self._router.route(question.model, question.session_key)
            if routed.version is None:
                return routed, None
            try:
                return routed, await take(routed.version)
            except GraftError as error:
                if not self._rollouts.gives_up(routed, error):
                    raise

    def _slot(self, version: AdapterVersion | None) -> str:
        """What a request for it waits for a slot under; nothing where the engine needs none."""
        if version is None or version.peft_type in self._engine.limits.apart:
            return ""
        return version.name

    def _room(self, version: AdapterVersion | None) -> int:
        """What it takes of that slot's room."""
        if version is None:
            return 1
        return self._engine.limits.of(version.peft_type).room_of(version.rank)


def _read_by(sampling: Sampling, readers: Sequence[ToolReader]) -> Sampling:
    """With the text of special tokens, where a reader finds calls by them."""
    if any(reader.special_tokens_text for reader in readers):
        return replace(sampling, special_tokens_text=True)
    return sampling
