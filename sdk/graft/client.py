"""The client: training, the registry and text behind a few verbs, async and typed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc

from graft import catalogue, convert
from graft import plan as planning
from graft.adapters import Adapters
from graft.audit import Audit
from graft.balancing import Balance, Balancer, ByAdapter, RoundRobin
from graft.base_versions import BaseVersions
from graft.catalogue import Bases
from graft.connection import Connection
from graft.endpoints import Endpoints
from graft.errors import GraftError, Reason
from graft.generation import (
    Message,
    Prompt,
    Sampling,
    chat_request,
    count_request,
    embed_request,
    generate_request,
)
from graft.inference.v1 import inference_service_pb2 as pb
from graft.jobs import JobHandle, Jobs
from graft.leases import LeaseKeeper
from graft.lineage import Direction, Graph, read_lineage
from graft.metadata import Metadata
from graft.methods import Methods, list_methods
from graft.names import DEFAULT_NAMESPACE
from graft.operations import Operations
from graft.plan import OnStage, Plan, Recommendation
from graft.preflight import OnProgress, PreflightReport, preflight
from graft.promotion import Promotion
from graft.replicas import Replicas
from graft.results import Answer, Change, Embeddings, Model, Residency, TokenCount
from graft.rollouts import Rollouts
from graft.served_base import BaseService
from graft.spec_file import read_any_spec
from graft.specs import SpecSource, TrainOptions
from graft.tls import Tls

if TYPE_CHECKING:
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

_PEER = "inference"
Request = TypeVar("Request", pb.GenerateRequest, pb.ChatRequest)


class Client:
    """Graft's three services, to be used as `async with graft.Client() as client:`.

    A service is connected to when it is first needed. Every method raises graft.errors.GraftError
    with a reason and a next step; UNAVAILABLE when the service cannot be reached.

    Args:
        registry, trainer, inference: addresses as "host:port"; by default GRAFT_REGISTRY,
            GRAFT_TRAINER and GRAFT_INFERENCE, else what `graft up` wrote to $GRAFT_HOME.
        namespace: where short names are looked up.
        timeout_s: deadline of a call, except for text.
        generate_timeout_s: deadline of a request for text.
        patience_s: how long a watch tries to reach a service that went away.
        actor: who asks, for the services' logs and the history of aliases.
        balance: how requests for text are spread where inference's address means several replicas:
            in turn, or "adapter": those of an adapter to one replica while it is there and not
            overloaded.
        tls: whom to trust and what to show, for all three addresses; by default GRAFT_TLS_CA and so
            on, without which nothing is encrypted.

    Attributes:
        adapters: list, get, versions, push, pull, promote, rollback, history.
        base_versions: list, push, pull.
        promotion: policy, set_policy, approve, revoke, approvals.
        rollouts: start, shadow, status, here, pause, resume, abort.
        bases: list, get, add.
        served_base: get, switch, cancel: the base of the inference service.
        metadata: get, update, label: descriptions and labels.
        jobs: list, get, handle.
        operations: leases, collection and limits of the registry; delete, undelete and purge.
        audit: entries, follow, verify: who changed what in the registry.
    """

    def __init__(
        self,
        *,
        registry: str | None = None,
        trainer: str | None = None,
        inference: str | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        timeout_s: float = 30.0,
        generate_timeout_s: float = 600.0,
        patience_s: float = 60.0,
        actor: str | None = None,
        balance: Balance | str = Balance.ROUND_ROBIN,
        tls: Tls | None = None,
    ) -> None:
        self.endpoints = Endpoints.find(registry, trainer, inference)
        self.namespace = namespace
        self._generate_timeout_s = generate_timeout_s
        self._connection = Connection(self.endpoints, timeout_s, patience_s, actor, tls)
        self._balancer = _balancer(balance, self._connection, namespace)
        self.adapters = Adapters(self._connection, namespace)
        self.base_versions = BaseVersions(self._connection, namespace)
        self.promotion = Promotion(self._connection, namespace)
        self.rollouts = Rollouts(self._connection, namespace)
        self.bases = Bases(self._connection, namespace)
        self.served_base = BaseService(self._connection)
        self.metadata = Metadata(self._connection, namespace)
        self.jobs = Jobs(self._connection, namespace)
        self.operations = Operations(self._connection, namespace)
        self.audit = Audit(self._connection, namespace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def connection(self) -> Connection:
        """Its channels, for what is built upon a client."""
        return self._connection

    async def close(self) -> None:
        """Closes the connections; calls in flight are cancelled."""
        await self._balancer.close()
        await self._connection.close()

    async def preflight(
        self,
        spec: SpecSource | None = None,
        *,
        examples: int = 3,
        upload: bool = False,
        on_progress: OnProgress | None = None,
        **options: Unpack[TrainOptions],
    ) -> PreflightReport:
        """Looks at a job's data as the model will see it; trains nothing and stores nothing.

        Args:
            spec: as train()'s.
            examples: how many rows the report shows decoded, at most 50.
            upload: as train()'s.
            on_progress: called with what is being done and the rows looked at so far.
            options: as train()'s.

        Raises:
            GraftError: INVALID_SPEC, NOT_A_MODEL; what is wrong with rows is in the report.
        """
        return await preflight(
            self._connection,
            self.namespace,
            spec,
            options,
            examples=examples,
            upload=upload,
            on_progress=on_progress,
        )

    async def plan(
        self,
        spec: SpecSource | None = None,
        *,
        accelerator: str = "",
        probe: bool = True,
        on_stage: OnStage | None = None,
        **options: Unpack[TrainOptions],
    ) -> Plan:
        """Says what a job would take: parameters, memory and time, and what makes it fit. Stores nothing.

        Args:
            spec: as train()'s.
            accelerator: plan for this card ("H100"), or "cpu", and not for the trainer's own hardware.
            probe: try a few steps where it is the trainer's own, to know the time.
            on_stage: called with what is being done.
            options: as train()'s.

        Raises:
            GraftError: INVALID_SPEC, NOT_A_MODEL, BAD_DATA; INVALID_REQUEST for an unknown accelerator.
        """
        return await planning.plan(
            self._connection,
            self.namespace,
            spec,
            options,
            accelerator=accelerator,
            probe=probe,
            on_stage=on_stage,
        )

    async def recommend(
        self,
        spec: SpecSource | None = None,
        *,
        accelerator: str = "",
        on_stage: OnStage | None = None,
        **options: Unpack[TrainOptions],
    ) -> Recommendation:
        """Chooses a method and hyperparameters for a base, data and hardware, and says why.

        Args and errors as plan.
        """
        return await planning.recommend(
            self._connection,
            self.namespace,
            spec,
            options,
            accelerator=accelerator,
            on_stage=on_stage,
        )

    async def methods(self) -> Methods:
        """All methods, objectives and chat templates that a spec can name, with defaults and what goes together."""
        return await list_methods(self._connection)

    async def train(
        self,
        spec: SpecSource | None = None,
        *,
        upload: bool = False,
        request_id: str | None = None,
        **options: Unpack[TrainOptions],
    ) -> JobHandle:
        """Starts a training job and answers at once.

        Args:
            spec: a mapping, or a YAML or JSON file, in the form of job_spec.proto.
            upload: send the data to the registry first, for a trainer on another machine.
            request_id: makes a repeated call answer what the first one did.
            options: base, data, adapter, rank, epochs and so on; they override the spec's.

        Raises:
            GraftError: INVALID_SPEC, naming the field; BAD_DATA.
        """
        return await self.jobs.create(spec, options, upload=upload, request_id=request_id)

    async def submit(
        self,
        spec: Path | str | Mapping[str, Any],
        kind: str = "",
        *,
        upload: bool = False,
        request_id: str | None = None,
    ) -> JobHandle:
        """Starts a job of any kind and answers at once: a training, a merge or an evaluation.

        Args:
            spec: a YAML or JSON file, or a mapping, in the form of JobSpec, MergeSpec or EvaluationSpec.
            kind: "train", "merge" or "evaluate"; told from the fields that the spec has when left out.
            upload, request_id: as of train().

        Raises:
            GraftError: INVALID_SPEC, naming the field; BAD_DATA.
        """
        message = read_any_spec(spec, kind)
        return await self.jobs.start(message, upload=upload, request_id=request_id)

    def lease(
        self, targets: Sequence[str], *, purpose: str = "read", ttl_s: float = 60.0
    ) -> LeaseKeeper:
        """Keeps bytes from collection, as `async with client.lease([...], purpose="train"):`.

        Args:
            targets: full names of versions, and digests of blobs.
            purpose: what for.
            ttl_s: for how long they stay when this process dies.
        """
        return self._connection.lease(targets, purpose, ttl_s)

    def job(self, name: str) -> JobHandle:
        """A handle on a job that was started earlier. Asks nobody."""
        return self.jobs.handle(name)

    async def generate(
        self,
        model: str,
        prompt: Prompt,
        *,
        request_id: str | None = None,
        priority: int = 0,
        session_key: str = "",
        **sampling: Unpack[Sampling],
    ) -> Answer:
        """Continues a prompt.

        Args:
            model: "adapter", "adapter@alias", "adapter:7", or the base's name.
            prompt: text, or token ids.
            request_id: what the services' logs call this request.
            priority: -100 to 100; it waits among the adapter's requests as if it had come so many
                seconds earlier.
            session_key: requests with the same key, a user's id for example, get the same part of an
                alias with canaries.
            sampling: max_tokens, temperature, stop, seed, n, json_schema, choice and so on.

        Raises:
            GraftError: MODEL_NOT_FOUND, PROMPT_TOO_LONG, WRONG_BASE, INVALID_REQUEST, OVERLOADED,
                RATE_LIMITED, DEADLINE_EXCEEDED; see GraftError.retry_after_s.
        """
        request = generate_request(model, prompt, sampling, priority, session_key)
        return await self._answer(lambda stub: stub.Generate, request, request_id)

    def stream(
        self,
        model: str,
        prompt: Prompt,
        *,
        request_id: str | None = None,
        priority: int = 0,
        session_key: str = "",
        **sampling: Unpack[Sampling],
    ) -> AsyncGenerator[Answer, None]:
        """Continues a prompt and yields what is new; leaving the iteration aborts the request.

        Args and errors as generate.
        """
        request = generate_request(model, prompt, sampling, priority, session_key)
        return self._pieces(lambda stub: stub.StreamGenerate, request, request_id)

    async def chat(
        self,
        model: str,
        messages: Sequence[Message] | str,
        *,
        tools: Sequence[Message] = (),
        tool_choice: str = "",
        parallel_tool_calls: bool = True,
        request_id: str | None = None,
        priority: int = 0,
        session_key: str = "",
        **sampling: Unpack[Sampling],
    ) -> Answer:
        """Answers a conversation.

        Args:
            model: as in generate.
            messages: {"role": ..., "content": ...} each, or the text of one user message.
            tools: tools in OpenAI's form, for the chat template.
            tool_choice: "auto", "none", "required" or a tool's name; empty is "auto" where the service
                can read the model's calls.
            parallel_tool_calls: whether one answer may call several tools.
            request_id, priority, session_key: as in generate.
            sampling: as in generate.

        Raises:
            GraftError: as generate.
        """
        request = chat_request(
            model,
            messages,
            tools,
            sampling,
            priority,
            session_key,
            tool_choice,
            parallel_tool_calls,
        )
        return await self._answer(lambda stub: stub.Chat, request, request_id)

    def stream_chat(
        self,
        model: str,
        messages: Sequence[Message] | str,
        *,
        tools: Sequence[Message] = (),
        tool_choice: str = "",
        parallel_tool_calls: bool = True,
        request_id: str | None = None,
        priority: int = 0,
        session_key: str = "",
        **sampling: Unpack[Sampling],
    ) -> AsyncGenerator[Answer, None]:
        """Answers a conversation and yields what is new; leaving the iteration aborts the request.

        Args and errors as chat.
        """
        request = chat_request(
            model,
            messages,
            tools,
            sampling,
            priority,
            session_key,
            tool_choice,
            parallel_tool_calls,
        )
        return self._pieces(lambda stub: stub.StreamChat, request, request_id)

    async def embed(
        self, model: str, inputs: Sequence[Prompt], *, pooling: str = "last"
    ) -> Embeddings:
        """A vector of length 1 for each text, all of one version.

        Args:
            model: as in generate.
            inputs: texts, or token ids of texts; 1 to 2048.
            pooling: "last" or "mean" of the base's last hidden states.

        Raises:
            GraftError: as generate; NOT_SUPPORTED by an engine without hidden states.
        """
        request = embed_request(model, inputs, pooling)

        def work(stub: InferenceServiceAsyncStub) -> Awaitable[pb.EmbedResponse]:
            timeout_s = self._generate_timeout_s
            return self._connection.call(stub.Embed, request, _PEER, timeout_s=timeout_s)

        return convert.embeddings(await self._balancer.call(model, work))

    async def count_tokens(
        self,
        model: str,
        prompt: str | Sequence[Message],
        *,
        tools: Sequence[Message] = (),
    ) -> TokenCount:
        """What a prompt, or a conversation by the version's own chat template, takes of the context.

        Raises:
            GraftError: MODEL_NOT_FOUND, PROMPT_TOO_LONG, INVALID_REQUEST.
        """
        request = count_request(model, prompt, tools)

        def work(stub: InferenceServiceAsyncStub) -> Awaitable[pb.CountTokensResponse]:
            return self._connection.call(stub.CountTokens, request, _PEER)

        return convert.token_count(await self._balancer.call(model, work))

    async def _answer(
        self,
        method: Callable[
            [InferenceServiceAsyncStub],
            grpc.aio.UnaryUnaryMultiCallable[Request, pb.GenerateResponse],
        ],
        request: Request,
        request_id: str | None,
    ) -> Answer:
        def work(stub: InferenceServiceAsyncStub) -> Awaitable[pb.GenerateResponse]:
            timeout_s = self._generate_timeout_s
            return self._connection.call(
                method(stub), request, _PEER, timeout_s=timeout_s, request_id=request_id
            )

        return convert.answer(await self._balancer.call(request.model, work))

    async def _pieces(
        self,
        method: Callable[
            [InferenceServiceAsyncStub],
            grpc.aio.UnaryStreamMultiCallable[Request, pb.GenerateResponse],
        ],
        request: Request,
        request_id: str | None,
    ) -> AsyncGenerator[Answer, None]:
        def work(stub: InferenceServiceAsyncStub) -> AsyncGenerator[pb.GenerateResponse, None]:
            timeout_s = self._generate_timeout_s
            return self._connection.stream(
                method(stub), request, _PEER, timeout_s=timeout_s, request_id=request_id
            )

        async with aclosing(self._balancer.stream(request.model, work)) as stream:
            async for message in stream:
                yield convert.answer(message)

    async def models(self) -> list[Model]:
        """What can be named as model; the base first."""
        stub = self._connection.inference
        answer = await self._connection.call(stub.ListModels, pb.ListModelsRequest(), _PEER)
        return [convert.model(one) for one in answer.models]

    async def residency(self) -> Residency:
        """What the engine really holds."""
        stub = self._connection.inference
        return convert.residency(
            await self._connection.call(stub.GetResidency, pb.GetResidencyRequest(), _PEER)
        )

    async def lineage(
        self, what: str, *, direction: Direction = Direction.BOTH, depth: int = 0
    ) -> Graph:
        """What something was made from, and what was made from it.

        Args:
            what: "bot:7", "bot@production", "bot", "bases/tiny", "jobs/j", a digest of data, a place
                outside as "hf://org/name@commit", or a full resource name.
            direction: which way.
            depth: how many steps at most; 0 for 10.

        Raises:
            GraftError: VERSION_NOT_FOUND, ADAPTER_NOT_FOUND, BASE_NOT_FOUND, INVALID_REFERENCE.
        """
        return await read_lineage(self._connection, self.namespace, what, direction, depth)

    def watch(
        self,
        after_revision: int | None = None,
        *,
        resource: str = "",
        kinds: Sequence[str] = (),
    ) -> AsyncGenerator[Change, None]:
        """Changes in the registry, in order, without end; goes on across restarts.

        Args:
            after_revision: only what came after it; 0 for all there ever was; None for what comes now.
            resource: only of this adapter ("bot") or base ("bases/tiny"), with all that belongs to it.
            kinds: only of "adapter", "base", "version", "alias" or "policy"; none for all.

        Raises:
            GraftError: REVISION_COMPACTED when that far back is not kept any more.
        """
        return catalogue.watch(self._connection, self.namespace, after_revision, resource, kinds)


def _balancer(balance: Balance | str, connection: Connection, namespace: str) -> Balancer:
    try:
        chosen = Balance(balance)
    except ValueError:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"balance is {balance!r}, and there is none of that name",
            next_step=f"Use one of {', '.join(Balance)}.",
        ) from None
    if chosen is Balance.ADAPTER:
        return ByAdapter(Replicas(connection.endpoints.inference, tls=connection.tls), namespace)
    return RoundRobin(connection)
