"""`graft generate` and `graft chat`: text from whatever is served, as it is made."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator
from typing import Annotated, Any, cast

import typer

from graft.cli.output import Output, short_digest
from graft.cli.session import JsonOption, make_client, options, reported, run
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.generation import Sampling
from graft.results import Answer, Provenance, short_id

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="adapter, adapter@alias, adapter:7, or the base.")
]
MaxTokensOption = Annotated[int | None, typer.Option(min=1, help="New tokens at most.")]
TemperatureOption = Annotated[float | None, typer.Option(min=0.0, help="0 is greedy.")]
TopPOption = Annotated[float | None, typer.Option(min=0.0, max=1.0)]
SeedOption = Annotated[int | None, typer.Option(help="Same seed, same draw.")]
StopOption = Annotated[list[str] | None, typer.Option(help="Ends the answer; repeat it.")]
VersionOption = Annotated[
    bool, typer.Option("--show-version", help="Say which version made the answer.")
]


def generate(
    ctx: typer.Context,
    model: ModelArgument,
    prompt: Annotated[str | None, typer.Argument(help="By default standard input.")] = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    show_version: VersionOption = False,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt."""
    out = Output(as_json)
    sampling = _sampling(max_tokens, temperature, top_p, seed, stop)

    async def work(client: Client) -> None:
        text = prompt if prompt is not None else sys.stdin.read()
        if as_json:
            out.json(await client.generate(model, text, **sampling))
            return
        await _print_stream(out, client.stream(model, text, **sampling), show_version)

    run(ctx, out, work)


def chat(
    ctx: typer.Context,
    model: ModelArgument,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Ask this once and end.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    show_version: VersionOption = False,
    as_json: JsonOption = False,
) -> None:
    """Talk to a model; /reset forgets what was said, Ctrl-D ends."""
    out = Output(as_json)
    sampling = _sampling(max_tokens, temperature, top_p, seed, stop)
    talk = Conversation(out, model, system, sampling, show_version)
    if message is None and sys.stdin.isatty() and not as_json:
        with reported(out, options(ctx).debug):
            _interactive(talk, make_client(options(ctx)))
        return

    async def once(client: Client) -> None:
        await talk.ask(client, message if message is not None else sys.stdin.read().strip())

    run(ctx, out, once)


class Conversation:
    """What was said so far, and the way the next answer is asked for and shown."""

    def __init__(
        self, out: Output, model: str, system: str | None, sampling: Sampling, show_version: bool
    ) -> None:
        self._out, self._model, self._sampling = out, model, sampling
        self._show_version = show_version
        self._start = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, Any]] = list(self._start)

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self.messages = list(self._start)

    async def ask(self, client: Client, text: str) -> None:
        """Asks and prints; what failed or was broken off is not remembered."""
        if not text:
            raise GraftError(
                Reason.INVALID_REQUEST, "There is no message", next_step="Write one after -m."
            )
        messages = [*self.messages, {"role": "user", "content": text}]
        if self._out.as_json:
            answer = await client.chat(self._model, messages, **self._sampling)
            self._out.json(answer)
            said = answer.text
        else:
            stream = client.stream_chat(self._model, messages, **self._sampling)
            said = await _print_stream(self._out, stream, self._show_version)
        self.messages = [*messages, {"role": "assistant", "content": said}]


def _interactive(talk: Conversation, client: Client) -> None:
    """Asks for lines until the end of input; Ctrl-C breaks off an answer, at the prompt it ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() a history and line editing)
    with asyncio.Runner() as runner:
        try:
            while True:
                try:
                    text = input("> ").strip()
                except (EOFError, KeyboardInterrupt):
                    print()
                    return
                if text in ("/exit", "/quit"):
                    return
                if text == "/reset":
                    talk.reset()
                elif text:
                    _answer(runner, talk, client, text)
        finally:
            runner.run(client.close())


def _answer(runner: asyncio.Runner, talk: Conversation, client: Client, text: str) -> None:
    try:
        runner.run(talk.ask(client, text))
    except KeyboardInterrupt:
        print("\n(broken off)")
    except GraftError as error:
        Output().error(error)


async def _print_stream(
    out: Output, answers: AsyncGenerator[Answer, None], show_version: bool
) -> str:
    """Prints pieces as they come; answers with the whole text."""
    pieces, provenance = [], None
    async with contextlib.aclosing(answers):
        async for answer in answers:
            sys.stdout.write(answer.text)
            sys.stdout.flush()
            pieces.append(answer.text)
            provenance = answer.provenance or provenance
    sys.stdout.write("\n")
    sys.stdout.flush()
    if show_version and provenance is not None:
        out.errors.print(_describe(provenance), style="dim", markup=False)
    return "".join(pieces)


def _describe(provenance: Provenance) -> str:
    if provenance.version is None:
        return f"{short_id(provenance.base)} (no adapter)"
    adapter, _, number = provenance.version.rpartition("/versions/")
    return f"{short_id(adapter)}:{number} {short_digest(provenance.version_digest or '')}"


def _sampling(
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    stop: list[str] | None,
) -> Sampling:
    values = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or None,
    }
    return cast(Sampling, {name: value for name, value in values.items() if value is not None})
