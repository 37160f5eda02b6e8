"""Calls of tools in the form that a model writes by itself, read by vLLM's own parsers.

Which parser: the configured one, or the one whose marks the chat template has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graft.errors import GraftError, Reason

from services.common.logs import get_logger
from services.inference.engines.base import Delta, Finish, ToolCallPart, ToolReader
from services.inference.many import with_whole_calls
from services.inference.tool_readers import new_call_id

if TYPE_CHECKING:
    from vllm.tool_parsers import ToolParser

_Read = tuple[str, list[ToolCallPart]]
# The first parser all of whose marks a template has; the special before the common.
_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mistral", ("[TOOL_CALLS]",)),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>",)),
    ("kimi_k2", ("<|tool_calls_section_begin|>",)),
    ("glm45", ("<tool_call>", "<arg_key>")),
    ("qwen3_coder", ("<tool_call>", "<function=")),
    ("hermes", ("<tool_call>",)),
    ("phi4_mini_json", ("functools[",)),
    ("functiongemma", ("<start_function_call>",)),
    ("pythonic", ("[func_name1(",)),
    ("llama3_json", ("<|python_tag|>",)),
    ("llama3_json", ('"parameters": dictionary of argument name',)),
)


def detect(chat_template: str) -> str:
    """The parser of the form that a template teaches; empty for an unknown one."""
    return next(
        (name for name, marks in _MARKS if all(mark in chat_template for mark in marks)), ""
    )


def check_parser(name: str) -> None:
    """Imports what reads calls, which takes a second or two.

    Raises:
        GraftError: NOT_SUPPORTED when vLLM has no parser of this name.
    """
    import vllm.entrypoints.openai.chat_completion.protocol  # noqa: F401
    from vllm.tool_parsers import ToolParserManager

    try:
        ToolParserManager.get_tool_parser(name)
    except KeyError:
        known = ", ".join(sorted(ToolParserManager.list_registered()))
        raise GraftError(
            Reason.NOT_SUPPORTED,
            f"vLLM has no tool parser {name!r}",
            next_step=f"Set GRAFT_INFERENCE_TOOL_PARSER to one of {known}.",
        ) from None


def vllm_tool_reader(
    name: str, tokenizer: Any, tools: Sequence[Mapping[str, Any]]
) -> ToolReader | None:
    """None where the tokenizer lacks the marks of this form: its model cannot write it.

    Raises:
        GraftError: INVALID_REQUEST.
    """
    try:
        return VllmToolReader(name, tokenizer, tools)
    except RuntimeError as error:
        get_logger().warning("calls of tools cannot be read", parser=name, error=str(error))
        return None


class VllmToolReader(ToolReader):
    """One answer's calls, by one of vLLM's parsers.

    Args:
        name: of the parser.
        tokenizer: of the base, as vLLM has it.
        tools: as the request has them.
    """

    def __init__(self, name: str, tokenizer: Any, tools: Sequence[Mapping[str, Any]]) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.tool_parsers import ToolParserManager

        try:
            self._request = ChatCompletionRequest(
                messages=[{"role": "user", "content": ""}],
                tools=[{"type": "function", **tool} for tool in tools],
                tool_choice="auto",
            )
        except ValueError as error:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"The tools are not in OpenAI's form: {error}",
                next_step="Correct what it names, or ask with another tool_choice.",
                field="tools",
            ) from error
        parser = ToolParserManager.get_tool_parser(name)
        self._parser: ToolParser = parser(tokenizer, self._request.tools)
        # It also says what structure to use, which is not asked for.
        adjusted = self._parser.adjust_request(self._request.model_copy())
        self.special_tokens_text = not adjusted.skip_special_tokens
        self._new_parser: Callable[[], ToolParser] = lambda: parser(tokenizer, self._request.tools)
        self._text, self._ids, self._sent = "", [], ""  # type: tuple[str, list[int], str]
        self._names: list[str] = []
        self._arguments: list[str] = []
        self._numbers: dict[int, int] = {}

    def read(self, delta: Delta) -> Delta:
        """See ToolReader. What the parser kept back, or never says, comes with the last delta."""
        last = delta.finish is not None
        before, before_ids = self._text, list(self._ids)
        self._text += delta.text
        self._ids += delta.token_ids
        text, parts = "", list[ToolCallPart]()
        if not last or before:
            text, parts = self._tried(lambda: self._step(before, before_ids, delta))
        self._sent += text
        if last:
            rest, more = self._tried(self._rest)
            text, parts = text + rest, [*parts, *more]
            if self._names and delta.finish is Finish.STOP:
                delta.finish = Finish.TOOL_CALLS
        delta.text, delta.tool_calls = text, tuple(parts)
        return delta if not last else with_whole_calls(delta)

    def _tried(self, read: Callable[[], _Read]) -> _Read:
        """What a parser cannot cope with is this answer's text, and nobody else's trouble."""
        try:
            return read()
        except Exception as error:
            get_logger().warning("a tool parser failed", error=repr(error))
            return "", []

    def _step(
        self, before: str, before_ids: list[int], delta: Delta
    ) -> tuple[str, list[ToolCallPart]]:
        found = self._parser.extract_tool_calls_streaming(
            before, self._text, delta.text, before_ids, self._ids, list(delta.token_ids), self._request
        )  # fmt: skip
        if found is None:
            return "", []
        parts = []
        for call in found.tool_calls or ():
            function = call.function
            name = (function and function.name) or ""
            arguments = (function and function.arguments) or ""
            part = self._part(call.index, name, arguments)
            if part is not None:
                parts.append(part)
        return found.content or "", parts

    def _part(self, number: int, name: str, arguments: str) -> ToolCallPart | None:
        """A piece under an index of ours, which begin at 0 and have no gap."""
        index = self._numbers.get(number)
        new = index is None
        if index is None:
            if self.only_first and self._names:
                return None
            index = self._numbers[number] = len(self._names)
            self._names.append(name)
            self._arguments.append("")
        self._arguments[index] += arguments
        return ToolCallPart(index, new_call_id() if new else "", name if new else "", arguments)

    def _rest(self) -> tuple[str, list[ToolCallPart]]:
        """What reading the whole answer at once finds beside what was handed out already."""
        found = self._new_parser().extract_tool_calls(self._text, self._request)
        if not found.tools_called:
            # Nothing is lost of an answer that only began to call.
            unsent = self._text[len(self._sent) :] if self._text.startswith(self._sent) else ""
            return ("" if self._names else unsent), []
        content, parts = found.content or "", []
        for number, call in enumerate(found.tool_calls):
            if number >= len(self._names):
                if self.only_first and number:
                    break
                self._names.append(call.function.name)
                self._arguments.append(call.function.arguments)
                parts.append(
                    ToolCallPart(number, new_call_id(), call.function.name, call.function.arguments)
                )
            elif not self._arguments[number]:
                parts.append(ToolCallPart(number, arguments=call.function.arguments))
        if (
            self._arguments
            and not parts
            and (more := str(self._parser.get_remaining_unstreamed_args()))
        ):
            parts.append(ToolCallPart(len(self._arguments) - 1, arguments=more))
        rest = content[len(self._sent) :] if content.startswith(self._sent) else ""
        return rest, parts
