"""`graft generate` and `graft chat`: text from whatever is served, as it is made."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import uuid
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from graft.cli.output import Output, short_digest
from graft.cli.session import JsonOption, make_client, options, reported, run
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.generation import Message, Sampling
from graft.results import Answer, Provenance, short_id

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="adapter, adapter@alias, adapter:7, or the base.")
]
MaxTokensOption = Annotated[int | None, typer.Option(min=1, help="New tokens at most.")]
TemperatureOption = Annotated[float | None, typer.Option(min=0.0, help="0 is greedy.")]
TopPOption = Annotated[float | None, typer.Option(min=0.0, max=1.0)]
SeedOption = Annotated[int | None, typer.Option(help="Same seed, same draw.")]
StopOption = Annotated[list[str] | None, typer.Option(help="Ends the answer; repeat it.")]
SessionKeyOption = Annotated[
    str, typer.Option(help="Same key, same part of an alias with canaries; a user's id.")
]
SchemaOption = Annotated[
    Path | None,
    typer.Option(
        "--schema", exists=True, dir_okay=False, help="JSON schema of the answer, as a file."
    ),
]
ChoiceOption = Annotated[
    list[str] | None, typer.Option("--choice", help="What the answer may be; repeat it.")
]
RegexOption = Annotated[str | None, typer.Option(help="What the whole answer matches.")]
ToolOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--tool",
        exists=True,
        dir_okay=False,
        help="A tool in OpenAI's form, or a list of them, as a JSON file; repeat it.",
    ),
]
ToolChoiceOption = Annotated[
    str, typer.Option("--tool-choice", help="auto, none, required, or a tool's name.")
]
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
    session_key: SessionKeyOption = "",
    schema: SchemaOption = None,
    choice: ChoiceOption = None,
    regex: RegexOption = None,
    show_version: VersionOption = False,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt."""
    out = Output(as_json)
    sampling = _sampling(max_tokens, temperature, top_p, seed, stop)
    sampling.update(_form(schema, choice, regex))

    async def work(client: Client) -> None:
        text = prompt if prompt is not None else sys.stdin.read()
        if as_json:
            out.json(await client.generate(model, text, session_key=session_key, **sampling))
            return
        stream = client.stream(model, text, session_key=session_key, **sampling)
        await _print_stream(out, stream, show_version)

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
    session_key: SessionKeyOption = "",
    schema: SchemaOption = None,
    choice: ChoiceOption = None,
    regex: RegexOption = None,
    tool: ToolOption = None,
    tool_choice: ToolChoiceOption = "",
    show_version: VersionOption = False,
    as_json: JsonOption = False,
) -> None:
    """Talk to a model; /reset forgets what was said, Ctrl-D ends."""
    out = Output(as_json)
    sampling = _sampling(max_tokens, temperature, top_p, seed, stop)
    sampling.update(_form(schema, choice, regex))
    talk = Conversation(
        out, model, system, sampling, show_version, session_key, _tools(tool), tool_choice
    )
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
        self,
        out: Output,
        model: str,
        system: str | None,
        sampling: Sampling,
        show_version: bool,
        session_key: str = "",
        tools: Sequence[Message] = (),
        tool_choice: str = "",
    ) -> None:
        # One conversation stays with one part, whoever leads it.
        self._key = session_key or uuid.uuid4().hex
        self._tools, self._tool_choice = tools, tool_choice
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
            answer = await client.chat(
                self._model,
                messages,
                session_key=self._key,
                tools=self._tools,
                tool_choice=self._tool_choice,
                **self._sampling,
            )
            self._out.json(answer)
            said = answer.text
        else:
            stream = client.stream_chat(
                self._model,
                messages,
                session_key=self._key,
                tools=self._tools,
                tool_choice=self._tool_choice,
                **self._sampling,
            )
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
    pieces: list[str] = []
    provenance, calls = None, False
    async with contextlib.aclosing(answers):
        async for answer in answers:
            sys.stdout.write(answer.text)
            for call in answer.tool_calls:
                # Each call on a line of its own: its name, then its arguments as they come.
                start = f"{chr(10) if calls or pieces else ''}{call.name} " if call.name else ""
                sys.stdout.write(start + call.arguments)
                calls = True
            sys.stdout.flush()
            if answer.text:
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
    if provenance.blend:
        return f"{provenance.blend} {short_digest(provenance.version_digest or '')}"
    adapter, _, number = provenance.version.rpartition("/versions/")
    # vLLM is nothing to mention.
    by = f" by {provenance.engine}" if provenance.engine == "transformers" else ""
    return f"{short_id(adapter)}:{number} {short_digest(provenance.version_digest or '')}{by}"


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


def _form(schema: Path | None, choice: list[str] | None, regex: str | None) -> Sampling:
    values = {
        "json_schema": None if schema is None else schema.read_text(),
        "choice": choice or None,
        "regex": regex,
    }
    return cast(Sampling, {name: value for name, value in values.items() if value is not None})


def _tools(files: list[Path] | None) -> list[Message]:
    tools: list[Message] = []
    for file in files or ():
        try:
            found = json.loads(file.read_text())
        except ValueError as error:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"{file} is not JSON: {error}",
                next_step='Write {"type": "function", "function": {"name": ..., "parameters": {...}}}.',
            ) from None
        tools += found if isinstance(found, list) else [found]
    return tools
