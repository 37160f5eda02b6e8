"""Settings of the inference service, from GRAFT_INFERENCE_* and a .env file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from graft.errors import GraftError
from graft.names import DEFAULT_NAMESPACE, ModelReference
from graft.signatures import SignaturePolicy
from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.common.config import Address, OptionalFile, ServiceSettings, or_none
from services.inference.scheduling.limits import Limit


class InferenceSettings(ServiceSettings):
    """One base, one engine, one registry to follow."""

    model_config = SettingsConfigDict(env_prefix="GRAFT_INFERENCE_")

    registry_address: str = Field(
        default="", description="host:port of the registry; empty serves the base alone"
    )
    namespace: str = Field(
        default=DEFAULT_NAMESPACE, description="namespace whose adapters are served"
    )
    base: Path = Field(
        description="folder of the base model, or a version in the registry: bases/name, "
        "bases/name@alias, bases/name:7; what `graft bases switch` chose takes its place until this changes"
    )
    base_name: str = Field(
        default="",
        description="id of the base in the registry; if empty, its folder's name made to fit",
    )
    base_cache_dir: Path | None = Field(
        default=None,
        description="fetched bases by digest; {data_dir}/inference/bases if not set",
    )
    base_cache_max_bytes: int | None = Field(
        default=None,
        ge=1,
        description="bound of what is kept there; the least recently used that is not served makes room",
    )
    base_switch: Literal["off", "registry", "anywhere"] = Field(
        default="anywhere",
        description="what a client may switch the base to: nothing, versions in the registry, or folders too",
    )
    base_drain_timeout_s: float = Field(
        default=600.0,
        ge=0,
        description="longest time that requests on the old base get to end when it is changed",
    )
    base_start_timeout_s: float = Field(
        default=1800.0,
        gt=0,
        description="longest time that a new base gets to start and to hold what readiness waits for",
    )
    cache_dir: Path | None = Field(
        default=None,
        description="fetched adapters by digest; {data_dir}/inference/adapters if not set",
    )

    cache_max_bytes: int | None = Field(
        default=16 * 1024**3,
        ge=1,
        description="bound of what is kept there; the least recently used make room",
    )

    prefetch: bool = Field(
        default=True,
        description="fetch what any alias names before it is asked for, while there is free room",
    )

    engine: Literal["vllm", "fake"] = Field(
        default="vllm", description="vllm, or fake for tests of clients: it answers without a model"
    )
    max_adapters: int = Field(
        default=8,
        ge=0,
        le=1024,
        description="adapter versions loaded at once; 0 serves the base alone",
    )
    max_cpu_adapters: int | None = Field(
        default=None,
        ge=0,
        le=65536,
        description="adapter versions kept in main memory, those included that are on the engine's "
        "slots; max_adapters if not set",
    )
    max_lora_rank: int = Field(default=64, ge=1, le=512, description="largest rank that is served")
    lora_page_rank: int = Field(
        default=8,
        ge=0,
        le=256,
        multiple_of=8,
        description="on a CPU, where max_cpu_adapters is more than max_adapters: adapters of smaller "
        "ranks share a slot of max_lora_rank, in pages of so many ranks, and so many more are computed "
        "at once; 0 gives each a slot of its own, as a GPU does",
    )
    max_model_len: int | None = Field(
        default=None, ge=1, description="prompt and answer in tokens; what the base says if not set"
    )
    max_num_seqs: int = Field(
        default=256, ge=1, description="requests that the engine computes at once"
    )
    dtype: str = Field(default="auto", description="auto, bfloat16, float16 or float32")
    quantization: str | None = Field(
        default=None,
        description="quantize while loading, for example fp8 on a GPU; a base that is quantized says so "
        "itself",
    )
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="share of the GPU's memory for weights and KV cache"
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="GPUs that compute together, each with a part of every matrix"
    )
    cpu_kv_cache_gib: int = Field(default=1, ge=1, description="GiB of KV cache on a CPU")
    enforce_eager: bool = Field(
        default=False, description="no compilation: starts faster, runs slower"
    )
    enable_prefix_caching: bool = Field(
        default=True, description="reuse the KV cache of equal prefixes"
    )
    soft_prompts: bool = Field(
        default=True,
        description="serve prompt tuning and P-tuning; false where no such version is served",
    )
    seed: int = Field(default=0, description="seed of the engine, for requests without one")
    tool_parser: str = Field(
        default="",
        description="how the model writes calls of tools, as vLLM names it: hermes, llama3_json, mistral, "
        "pythonic and others; what the chat template shows if not set",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="run code that lies beside the base: only for a base that you trust",
    )

    second_engine: Literal["auto", "off"] = Field(
        default="auto",
        description="auto starts transformers beside vLLM, with a second copy of the base, when the first "
        "version of a kind is asked for that vLLM does not compute; off refuses such versions",
    )
    second_engine_max_adapters: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="adapter versions of each kind loaded at once on the second engine",
    )
    second_engine_max_seqs: int = Field(
        default=16, ge=1, le=1024, description="requests that the second engine computes at once"
    )
    second_engine_kv_gib: float = Field(
        default=1.0,
        gt=0,
        description="GiB of keys and values on the second engine, padding included",
    )
    second_engine_device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="where the second engine computes; auto is the GPU where there is one",
    )
    second_engine_idle_s: float = Field(
        default=300.0,
        ge=0,
        description="how long the second engine goes on when nothing is loaded on it any more",
    )
    http_listen: Annotated[Address | None, BeforeValidator(or_none)] = Field(
        default="127.0.0.1:0",
        description="host:port for OpenAI's API over HTTP; port 0 takes a free one, nothing turns it off",
    )
    http_api_keys: OptionalFile = Field(
        default=None,
        description="file of the keys that open it, a line for each: KEY, or NAME KEY; without it "
        "nobody is asked for one",
    )
    http_max_body_bytes: int = Field(
        default=8 * 1024**2, ge=1024, description="longest request over HTTP"
    )
    blends: bool = Field(
        default=True, description="answer requests that name a blend of adapters as their model"
    )
    blend_timeout_s: float = Field(
        default=120.0, gt=0, description="longest time for computing one; it is refused then"
    )
    blend_memory_bytes: int = Field(
        default=4 * 1024**3, ge=1, description="main memory for computing one"
    )
    blend_max_waiting: int = Field(
        default=16, ge=1, description="blends that may wait to be computed; one is at a time"
    )

    signature_policy: SignaturePolicy = Field(
        default=SignaturePolicy.OFF,
        description="what a version that no trusted key signed means: off, warn or require",
    )
    trusted_keys: tuple[Path, ...] = Field(
        default=(), description='PEM files of public keys, as JSON: ["/keys/ci.pub"]'
    )

    attestation_key: Path | None = Field(
        default=None,
        description="PEM file of the private key that signs what is attested of each answer; "
        "not signed if not set",
    )

    max_in_flight: int | None = Field(
        default=None,
        ge=1,
        description="requests that the engine is given at once; max_num_seqs if not set",
    )
    max_waiting: int = Field(
        default=1024,
        ge=1,
        description="requests that may wait for their turn; the longest queue loses its last",
    )
    slot_turn_s: float = Field(
        default=0.5,
        ge=0,
        description="how long an adapter takes new requests onto its slot while others wait for one",
    )
    slot_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="longest wait for an adapter slot before a request is refused",
    )
    rate_limit_wait_s: float = Field(
        default=10.0,
        ge=0,
        description="longest wait for a limit of tokens_per_s; what would wait longer is refused",
    )
    stalled_after_s: float = Field(
        default=10.0,
        gt=0,
        description="a stream whose reader takes nothing for so long gives its place to others",
    )
    adapter_limits: dict[str, Limit] = Field(
        default_factory=dict,
        description='by adapter id, as JSON; "*" is any other: {"*": {"max_concurrent": 32}, "bot": '
        '{"weight": 2, "tokens_per_s": 500, "burst_tokens": 5000, "max_waiting": 64}}',
    )
    namespace_limits: dict[str, Limit] = Field(
        default_factory=dict, description="the same by namespace"
    )
    retry_failed_after_s: float = Field(
        default=10.0,
        ge=0,
        description="how long a version that failed to load is refused without a try; doubles each time",
    )
    retry_failed_max_s: float = Field(default=600.0, ge=0, description="but no longer than this")
    required: tuple[str, ...] = Field(
        default=(),
        description='models that readiness waits for and that stay loaded: ["bot", "bot@canary"]',
    )
    require_production: bool = Field(
        default=False,
        description="readiness waits for what the production aliases of this base name: on the "
        "engine as far as it has room, the last moved first, and the rest on disk",
    )
    pinned: tuple[str, ...] = Field(
        default=(), description="models that, once loaded, never make room for others"
    )
    engine_wait_s: float = Field(
        default=30.0,
        ge=0,
        description="longest wait of a request for an engine that is being started anew",
    )
    engine_restart_delay_s: float = Field(
        default=1.0, gt=0, description="before the second try to start a dead engine; then doubles"
    )
    engine_restart_max_s: float = Field(default=60.0, gt=0, description="but no longer than this")
    engine_restart_limit: int = Field(
        default=5,
        ge=1,
        description="tries in a row after which liveness says that there is no hope",
    )
    metric_versions: int = Field(
        default=128,
        ge=0,
        description='adapter versions with metrics of their own; more are counted under "other"',
    )
    metric_linger_s: float = Field(
        default=300.0,
        ge=0,
        description="how long the metrics of a version are shown after it has left the engine",
    )
    thrash_window_s: float = Field(
        default=60.0,
        gt=0,
        description="a version that is loaded again so soon after its eviction counts as thrash",
    )
    engine_metrics: bool = Field(
        default=True, description="show vLLM's own metrics (vllm:*) beside those of the service"
    )
    max_flush_interval_s: float = Field(
        default=0.02,
        ge=0,
        description="longest time for which tokens of a stream are collected under load",
    )

    @model_validator(mode="after")
    def _leave_a_slot(self) -> Self:
        """Were every slot pinned, nothing else could ever be served, nor a pinned alias be moved."""
        pinned = sorted({*self.required, *self.pinned})
        if pinned and len(pinned) >= self.max_adapters:
            raise ValueError(
                f"required and pinned name {len(pinned)} models ({', '.join(pinned)}), and at most "
                f"max_adapters - 1 = {max(0, self.max_adapters - 1)} may be: one slot stays free for "
                "others and for moves"
            )
        for reference in pinned:
            try:
                ModelReference.parse(reference, self.namespace)
            except GraftError as error:
                raise ValueError(f"required and pinned: {error}") from None
        return self
