"""Load for streaming.py and openai_door.py: `python -m bench.stream_client grpc|sse|chat ADDRESS JSON`.

All kinds keep the same number of streams open, read every token's text, and print the same figures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import uvloop


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: streams at once, requests each, new tokens each, a model and prompts."""

    model: str
    streams: int
    requests_per_stream: int
    max_tokens: int
    prompts: list[str]


@dataclass(slots=True)
class Answered:
    """Tokens and characters of one answer, and seconds until its first token."""

    tokens: int
    characters: int
    first_token_s: float


Ask = Callable[[str], Awaitable[Answered]]


async def over_grpc(address: str, load: Load) -> list[Answered]:
    """Streams from Graft's inference service."""
    from graft.channel import open_channel
    from graft.inference.v1 import inference_service_pb2 as pb
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

    async with open_channel(address) as channel:
        stub = InferenceServiceStub(channel)

        async def ask(prompt: str) -> Answered:
            sampling = pb.SamplingParams(max_tokens=load.max_tokens, temperature=0, ignore_eos=True)
            request = pb.GenerateRequest(model=load.model, prompt=prompt, sampling=sampling)
            answered, began_s = Answered(0, 0, 0.0), time.perf_counter()
            async for message in stub.StreamGenerate(request):
                if not answered.first_token_s:
                    answered.first_token_s = time.perf_counter() - began_s
                answered.characters += len(message.text)
                answered.tokens += len(message.token_ids)
            return answered

        return await _run(ask, load)


async def over_sse(url: str, load: Load, *, chat: bool = False) -> list[Answered]:
    """Streams from an OpenAI server's /v1/completions, or /v1/chat/completions."""
    import aiohttp

    path = f"{url}/v1/chat/completions" if chat else f"{url}/v1/completions"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(prompt: str) -> Answered:
            body = {
                "model": load.model,
                **(
                    {"messages": [{"role": "user", "content": prompt}]}
                    if chat
                    else {"prompt": prompt}
                ),
                "max_tokens": load.max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            answered, began_s = Answered(0, 0, 0.0), time.perf_counter()
            async with session.post(path, json=body) as response:
                response.raise_for_status()
                async for line in response.content:
                    if not line.startswith(b"data: {"):
                        continue
                    if not answered.first_token_s:
                        answered.first_token_s = time.perf_counter() - began_s
                    event = json.loads(line[6:])
                    if event["choices"]:
                        choice = event["choices"][0]
                        text = choice["delta"].get("content") or "" if chat else choice["text"]
                        answered.characters += len(text)
                    else:
                        answered.tokens = event["usage"]["completion_tokens"]
            return answered

        return await _run(ask, load)


async def _run(ask: Ask, load: Load) -> list[Answered]:
    answers: list[Answered] = []

    async def stream(number: int) -> None:
        for turn in range(load.requests_per_stream):
            prompt = load.prompts[(number + turn * load.streams) % len(load.prompts)]
            answers.append(await ask(prompt))

    await asyncio.gather(*(stream(number) for number in range(load.streams)))
    return answers


def main() -> None:
    """Runs the load and prints its figures as JSON."""
    kind, address, load_json = sys.argv[1:]
    load = Load(**json.loads(load_json))
    began_s = time.perf_counter()
    work = (
        over_grpc(address, load) if kind == "grpc" else over_sse(address, load, chat=kind == "chat")
    )
    answers = uvloop.run(work)
    seconds = time.perf_counter() - began_s
    wrong = [each for each in answers if each.tokens != load.max_tokens]
    assert not wrong, f"{len(wrong)} answers have not {load.max_tokens} tokens"
    first_s = sorted(each.first_token_s for each in answers)
    figures = {
        "tokens_per_s": sum(each.tokens for each in answers) / seconds,
        "first_token_p50_ms": 1000 * first_s[len(first_s) // 2],
        "first_token_p95_ms": 1000 * first_s[int(0.95 * len(first_s))],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
