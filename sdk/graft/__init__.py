"""Graft's SDK: train PEFT adapters, version them, and ask the engine that serves them.

async with graft.Client() as client:
    job = await client.train(data="rows.jsonl", base="my-base", adapter="support-bot")
    version = (await job.wait()).version
    answer = await client.chat("support-bot@production", "Where is my parcel?")
"""

from graft.adapters import Adapters
from graft.balancing import Balance
from graft.catalogue import Bases
from graft.client import Client
from graft.endpoints import Endpoints
from graft.errors import (
    ConflictError,
    GraftError,
    InvalidError,
    NotFoundError,
    Reason,
    RefusedError,
    UnavailableError,
)
from graft.generation import Message, Prompt, Sampling
from graft.jobs import JobHandle, Jobs
from graft.results import (
    Adapter,
    Alias,
    Answer,
    Base,
    BlendPart,
    Change,
    ChangeAction,
    Check,
    Embeddings,
    FailureCause,
    FinishReason,
    Job,
    JobEvent,
    JobFailedError,
    JobState,
    Lineage,
    Metrics,
    Model,
    Provenance,
    Residency,
    ResidencyState,
    ResidentAdapter,
    StateChange,
    TokenCount,
    TokenLogprob,
    TokenLogprobs,
    ToolCall,
    Usage,
    Version,
    VersionFile,
)
from graft.specs import TrainOptions
from graft.tls import Tls

__all__ = [
    "Adapter",
    "Adapters",
    "Alias",
    "Answer",
    "Balance",
    "Base",
    "Bases",
    "BlendPart",
    "Change",
    "ChangeAction",
    "Check",
    "Client",
    "ConflictError",
    "Embeddings",
    "Endpoints",
    "FailureCause",
    "FinishReason",
    "GraftError",
    "InvalidError",
    "Job",
    "JobEvent",
    "JobFailedError",
    "JobHandle",
    "JobState",
    "Jobs",
    "Lineage",
    "Message",
    "Metrics",
    "Model",
    "NotFoundError",
    "Prompt",
    "Provenance",
    "Reason",
    "RefusedError",
    "Residency",
    "ResidencyState",
    "ResidentAdapter",
    "Sampling",
    "StateChange",
    "Tls",
    "TokenCount",
    "TokenLogprob",
    "TokenLogprobs",
    "ToolCall",
    "TrainOptions",
    "UnavailableError",
    "Usage",
    "Version",
    "VersionFile",
]
