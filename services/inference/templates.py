"""The chat template that an adapter was trained with, as its version brings it in chat_template.jinja.

Renders as transformers does, in a sandbox. It comes with an adapter and not with the base, so it is
also bounded: by its size, by the steps of its loops and by what it writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from graft.errors import GraftError, Reason
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

FILE = "chat_template.jinja"
# The registry's limit of a small file; the longest of the field has a fiftieth of it.
MAX_BYTES = 1024 * 1024
# About a second; a conversation takes a few for each of its messages.
_MAX_STEPS = 300_000
_MAX_PIECE_CHARACTERS = 16_000_000
_STEP, _JOIN = "graft_step", "graft_join"


class ChatTemplate:
    """One version's template, parsed once; may be rendered in any thread.

    Args:
        version: resource name of the version, for errors.
        text: of the file.

    Raises:
        GraftError: ADAPTER_UNUSABLE when it is no template.
    """

    def __init__(self, version: str, text: str) -> None:
        self._version, self.text = version, text
        environment = _Sandbox()
        try:
            tree = environment.parse(text)
            _bound(tree, environment)
            code = environment.compile(tree, filename=FILE)
        except (TemplateError, RecursionError, SyntaxError, MemoryError, OverflowError) as error:
            raise GraftError(
                Reason.ADAPTER_UNUSABLE,
                f"{version} cannot be served: its {FILE} is no chat template ({error})",
                next_step="Mend the template, or leave it out where the base's own is the right one, "
                "and commit the adapter again.",
            ) from None
        self._template = environment.template_class.from_code(
            environment, code, environment.make_globals(None)
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        special_tokens: Mapping[str, Any],
        max_characters: int,
    ) -> str:
        """The conversation up to where the assistant's answer begins.

        Args:
            special_tokens: of the base's tokenizer, as "eos_token" and others.
            max_characters: it stops once more than so many are written, with what there is.

        Raises:
            GraftError: INVALID_REQUEST when the template refuses.
        """
        values = {
            **special_tokens,
            "messages": messages,
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": True,
            _STEP: _Steps(),
        }
        parts, written = [], 0
        try:
            for part in self._template.generate(values):
                parts.append(part)
                written += len(part)
                if written > max_characters:
                    break
        except Exception as error:
            # Whatever goes wrong in it is this request's, and nobody else's.
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"The chat template of {self._version} refuses the conversation: {error}",
                next_step="Check the roles and their order, or call Generate with a prompt of your own.",
            ) from error
        return "".join(parts)


class _Steps:
    """Counts what one rendering does."""

    def __init__(self) -> None:
        self._left = _MAX_STEPS

    def __call__(self) -> str:
        self._left -= 1
        if self._left < 0:
            raise TemplateError(f"it does not end within {_MAX_STEPS} steps of its loops")
        return ""


class _Generation(Extension):
    """{% generation %} marks what is learned; nothing but a scope when served."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("write"), [], [], body).set_lineno(line)

    def write(self, caller: Macro) -> str:
        """What is within."""
        return caller()


class _Sandbox(ImmutableSandboxedEnvironment):
    """What transformers gives a template, and no text that grows without end."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals[_JOIN] = _join

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuses before it computes."""
        sizes = [len(each) for each in (left, right) if hasattr(each, "__len__")]
        if operator == "+":
            _check_size(sum(sizes))
        elif operator == "**":
            _check_size(abs(right) if isinstance(right, int) else 0)
        elif sizes:
            times = left if isinstance(left, int) else right
            _check_size(sizes[0] * times if isinstance(times, int) else 0)
        return super().call_binop(context, operator, left, right)


def _bound(tree: nodes.Template, environment: _Sandbox) -> None:
    """Has every turn of a loop and every call of a macro counted, and every joining measured."""
    if any(each.name in (_STEP, _JOIN) for each in tree.find_all(nodes.Name)):
        raise TemplateError(f"{_STEP} and {_JOIN} are names of the service")
    for block in list(tree.find_all((nodes.For, nodes.Macro))):
        assert isinstance(block, nodes.For | nodes.Macro)
        block.body.insert(0, nodes.ExprStmt(_call(_STEP, [])))
    for parent in list(_all(tree)):
        for field, value in list(parent.iter_fields()):
            if isinstance(value, nodes.Concat):
                setattr(parent, field, _call(_JOIN, value.nodes))
            elif isinstance(value, list):
                value[:] = [
                    _call(_JOIN, each.nodes) if isinstance(each, nodes.Concat) else each
                    for each in value
                ]
    tree.set_environment(environment)
    tree.set_lineno(1)


def _all(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _all(child)


def _call(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), arguments, [], None, None)


def _join(*parts: object) -> str:
    texts = [str(part) for part in parts]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _check_size(size: int) -> None:
    if size > _MAX_PIECE_CHARACTERS:
        raise TemplateError(f"it makes a text of more than {_MAX_PIECE_CHARACTERS} characters")


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
