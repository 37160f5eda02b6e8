"""The process in which structures are tried before the engine sees one: python -m ... TOKENIZER_JSON.

Takes one structure as a line of JSON and answers with one. Each is tried in a process of its own, a fork
of this one, with a limit of CPU time and memory: whatever a structure does, it does it there.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import llguidance
import llguidance.numpy

from services.inference.engines.structure_grammar import Form, grammar_of
from services.inference.engines.structure_schema import SchemaError, parse, shortest

CPU_S = 1.0
_WALL_S = 20
_MEMORY_BYTES = 1024**3
# The front end and the engine each compile once more, and others' streams stand still meanwhile.
_MAX_COMPILE_S = 0.1
_MAX_STEP_S = 0.03
_WALKS, _STEPS = 3, 160


def main() -> None:
    """Until the end of its input."""
    tokenizer = _tokenizer(Path(sys.argv[1]))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_in_a_fork(tokenizer, line)), flush=True)


def _tokenizer(file: Path) -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(file.read_text() if file.exists() else "byte")


def _in_a_fork(tokenizer: llguidance.LLTokenizer, line: str) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _bound()
        os.write(writer, json.dumps(_try(tokenizer, json.loads(line))).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        told = answer.read()
    _, status = os.waitpid(child, 0)
    if not status and told:
        result: dict[str, Any] = json.loads(told)
        return result
    limits = f"{CPU_S:g} s of CPU time and {_MEMORY_BYTES >> 30} GiB"
    return {"wrong": f"takes more than {limits} to compile and to follow"}


def _bound() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    signal.alarm(_WALL_S)


def _try(tokenizer: llguidance.LLTokenizer, form: Form) -> dict[str, Any]:
    least = 1.0
    try:
        if form["kind"] == "json_schema":
            least = shortest(parse(form["value"]))
            if math.isinf(least):
                return {"wrong": "lets no text through that ends: what it requires needs itself"}
        began_s = time.process_time()
        grammar = grammar_of(form)
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    except SchemaError as error:
        return {"wrong": f"cannot be used: {error}"}
    except (ValueError, RecursionError) as error:
        return {"wrong": f"cannot be read: {_first_lines(str(error))}"}
    compile_s = time.process_time() - began_s
    if matcher.is_error():
        return {"wrong": f"cannot be used: {_first_lines(matcher.get_error())}"}
    if compile_s > _MAX_COMPILE_S:
        return {"wrong": f"is too large: it takes {compile_s:.2f} s to compile"}
    wrong = _walks(tokenizer, matcher)
    return {"wrong": wrong} if wrong else {"least_characters": math.ceil(least)}


def _walks(tokenizer: llguidance.LLTokenizer, matcher: llguidance.LLMatcher) -> str:
    """Follows it along random texts, as an engine would: every step is bounded, and none leads nowhere."""
    chance = random.Random(0)
    mask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
    slow = 0
    for _ in range(_WALKS):
        matcher.reset()
        for _ in range(_STEPS):
            began_s = time.process_time()
            llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
            # One slow step is a first look at the vocabulary.
            slow += time.process_time() - began_s > _MAX_STEP_S
            if slow > 2:
                return f"is too ambiguous: a token takes more than {_MAX_STEP_S * 1000:g} ms"
            if matcher.is_error():
                return f"cannot be followed: {_first_lines(matcher.get_error())}"
            allowed = _allowed(mask[0], chance, tokenizer.eos_token)
            if allowed is None:
                break
            matcher.consume_token(allowed)
            if matcher.is_stopped():
                break
        if matcher.is_error():
            return f"cannot be followed: {_first_lines(matcher.get_error())}"
        if matcher.is_stopped() and not matcher.is_accepting():
            return "leads nowhere: there are texts that no token continues"
    return ""


def _allowed(mask: Any, chance: random.Random, end: int) -> int | None:
    """One of the tokens that may come, and not the end while there is another."""
    words = [(index, int(word) & 0xFFFFFFFF) for index, word in enumerate(mask) if word]
    for _ in range(8):
        if not words:
            return None
        index, word = chance.choice(words)
        bits = [bit for bit in range(32) if word >> bit & 1]
        token = index * 32 + chance.choice(bits)
        if token != end:
            return token
    return None


def _first_lines(text: str) -> str:
    return text.split("\n<state>")[0].strip()[:300]


if __name__ == "__main__":
    main()
