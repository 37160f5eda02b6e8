"""Computes requests for a base and its adapters: prompts in pieces, then a token for every row of the batch at a time.

All of it runs in one thread of the process that transformers_process.py is; nothing here knows of messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from graft.errors import GraftError, Reason
from torch import Tensor

from services.inference.engines.base import Delta, Finish, Position, Sampling
from services.inference.engines.transformers_adapters import AdapterReader, LoadedAdapter
from services.inference.engines.transformers_batch import Batch, Forward, Prefill
from services.inference.engines.transformers_model import Base
from services.inference.engines.transformers_queue import Waiting
from services.inference.engines.transformers_sampler import Draws, draw
from services.inference.engines.transformers_text import Text

# Of prompts, between two steps of the batch: a long one does not hold up those who get tokens.
_PIECE_TOKENS = 512
_ALONE = 0

Outcome = Delta | GraftError


@dataclass(slots=True, eq=False)
class Request:
    """One answer that is being made.

    Attributes:
        number: of its adapter; 0 for the base alone.
        most_tokens: of the answer.
        ends: tokens that end it.
        prefill: while its prompt is computed.
    """

    name: str
    number: int
    adapter: LoadedAdapter | None
    draws: Draws
    text: Text
    most_tokens: int
    ends: frozenset[int]
    prefill: Prefill | None = None

    @property
    def tokens(self) -> int:
        """All that it has: of its adapter, its prompt and its answer."""
        past = 0 if self.adapter is None else self.adapter.past_tokens
        return past + len(self.draws.prompt) + len(self.draws.generated)


class Core:
    """Requests and adapters of one base.

    Args:
        base: loaded.
        max_rows: requests that are computed at once.
        max_cells: rows times the longest row's tokens, at most.
    """

    def __init__(self, base: Base, max_rows: int, max_cells: int) -> None:
        self._base, self._max_rows, self._max_cells = base, max_rows, max_cells
        self._forward = Forward(base.model)
        with torch.inference_mode():
            self._reader = AdapterReader(base.model, self._forward.past_of)
        self._adapters: dict[int, LoadedAdapter] = {}
        self._waiting: Waiting[Request] = Waiting()
        self._coming: list[Request] = []
        self._batch, self._rows = Batch(self._forward), list[Request]()
        self._requests: dict[str, Request] = {}

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._requests)

    @torch.inference_mode()
    def load(self, number: int, name: str, folder: Path) -> int:
        """An adapter under a number; answers how many tokens it puts before each prompt.

        Raises:
            GraftError: ADAPTER_UNUSABLE.
        """
        adapter = self._reader.read(name, folder)
        self._forward.rows.attach(adapter.effects)
        self._adapters[number] = adapter
        return adapter.past_tokens

    def unload(self, number: int) -> None:
        """Its tensors are freed; what is still computed with it ends."""
        adapter = self._adapters.pop(number, None)
        if adapter is None:
            return
        for request in [one for one in self._requests.values() if one.number == number]:
            self.abort(request.name)
        self._forward.rows.detach(adapter.effects)

    def add(self, name: str, number: int, prompt: Sequence[int], sampling: Sampling) -> None:
        """A request; what comes of it is told by step().

        Raises:
            GraftError: INVALID_REQUEST when it has no room, ENGINE_DEAD when its adapter is not there.
        """
        adapter = self._adapters[number] if number else None
        past = 0 if adapter is None else adapter.past_tokens
        room = self._base.max_tokens - past - len(prompt)
        if room < 1 or not prompt:
            raise _no_room(len(prompt), past, self._base.max_tokens)
        ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else self._base.ends)}
        held_back = sorted({*sampling.stop_token_ids, *self._base.ends})
        text = Text(
            self._base.tokenizer,
            prompt,
            sampling.stop,
            sampling.min_tokens,
            with_stop=getattr(sampling, "include_stop", False),
            special=getattr(sampling, "special_tokens_text", False),
        )
        request = Request(
            name,
            number,
            adapter,
            Draws(sampling, prompt, held_back),
            text,
            min(sampling.max_tokens, room),
            frozenset(ends),
        )
        self._requests[name] = request
        self._waiting.add(number, request)

    def abort(self, name: str) -> None:
        """It ends without a word, wherever it is."""
        request = self._requests.pop(name, None)
        if request is None or self._waiting.discard(request.number, request):
            return
        if request in self._coming:
            self._coming.remove(request)
        else:
            self._leave([request])

    @torch.inference_mode()
    def step(self) -> list[tuple[str, Outcome]]:
        """Some tokens of prompts, and one for each row; answers what is new, by request."""
        told = self._step_prompts()
        if self._rows:
            self._make_room()
        if self._rows:
            tokens = [request.draws.generated[-1] for request in self._rows]
            told += self._tell(list(self._rows), self._batch.step(tokens))
        return told

    def _step_prompts(self) -> list[tuple[str, Outcome]]:
        told: list[tuple[str, Outcome]] = []
        left = _PIECE_TOKENS
        while left > 0:
            request = self._coming[0] if self._coming else self._admit()
            if request is None or request.prefill is None:
                break
            before = request.prefill.done
            try:
                logits = request.prefill.step(left)
            except torch.OutOfMemoryError:
                self.abort(request.name)
                told.append((request.name, _too_large()))
                continue
            left -= request.prefill.done - before
            if logits is not None:
                self._coming.remove(request)
                self._batch.join(request.prefill)
                self._rows.append(request)
                request.prefill = None
                told += self._tell([request], logits)
        return told

    def _admit(self) -> Request | None:
        """The next that waits, where there is room for it."""
        request = self._waiting.first()
        rows = len(self._rows) + len(self._coming) + 1
        if request is None or rows > self._max_rows:
            return None
        if rows > 1 and rows * max(self._batch.width, request.tokens) + rows > self._max_cells:
            return None
        self._waiting.pop()
        # What was answered before it had to make room is a part of what comes before.
        ids = [*request.draws.prompt, *request.draws.generated]
        request.prefill = Prefill(self._forward, request.adapter, ids)
        self._coming.append(request)
        return request

    def _make_room(self) -> None:
        """Those that came last wait again, where the batch has grown too large."""
        while len(self._rows) > 1 and len(self._rows) * (self._batch.width + 1) > self._max_cells:
            last = self._rows[-1]
            self._leave([last])
            self._waiting.add_first(last.number, last)

    def _tell(self, requests: Sequence[Request], logits: Tensor) -> list[tuple[str, Outcome]]:
        broken = logits.isnan().any(-1).tolist()
        drawn = draw(logits, [request.draws for request in requests], self._base.text_of)
        told: list[tuple[str, Outcome]] = []
        ended: list[Request] = []
        for request, (token, position), odd in zip(requests, drawn, broken, strict=True):
            outcome: Outcome = _no_numbers() if odd else _next(request, token, position)
            told.append((request.name, outcome))
            if isinstance(outcome, GraftError) or outcome.finish is not None:
                ended.append(request)
        for request in ended:
            del self._requests[request.name]
        self._leave(ended)
        return told

    def _leave(self, requests: Sequence[Request]) -> None:
        stay = [index for index, row in enumerate(self._rows) if row not in requests]
        self._batch.keep(stay)
        self._rows = [self._rows[index] for index in stay]


def _next(request: Request, token: int, position: Position | None) -> Delta:
    draws, sampling = request.draws, request.draws.sampling
    draws.generated.append(token)
    count = len(draws.generated)
    ends = token in request.ends and count > sampling.min_tokens
    stops = request.text.add(token, ends=ends)
    finish = (
        Finish.STOP if ends or stops else Finish.LENGTH if count >= request.most_tokens else None
    )
    text = request.text.new(last=finish is not None)
    return Delta(text, [token], () if position is None else (position,), finish)


def _no_room(prompt: int, past: int, most: int) -> GraftError:
    own = f" and {past} learned tokens of the adapter" if past else ""
    return GraftError(
        Reason.INVALID_REQUEST,
        f"The prompt has {prompt} tokens{own}, and the transformers engine takes {most} with the answer",
        next_step="Send a prompt of one token or more, and shorten a long one; "
        "GRAFT_INFERENCE_SECOND_ENGINE_KV_GIB may bound it.",
        field="prompt",
    )


def _too_large() -> GraftError:
    return GraftError(
        Reason.OVERLOADED,
        "The device of the transformers engine has no memory left for this prompt",
        next_step="Try again later, or lower GRAFT_INFERENCE_SECOND_ENGINE_MAX_SEQS.",
    )


def _no_numbers() -> GraftError:
    return GraftError(
        Reason.ADAPTER_UNUSABLE,
        "The model's probabilities are no numbers (NaN) with this version and prompt",
        next_step="Ask another version; commit this one anew from an earlier checkpoint.",
    )
