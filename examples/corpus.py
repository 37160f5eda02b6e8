"""The synthetic corpus that the base is pre-trained on: plain support talk, rich in copying.

Every document is either a conversation for the chat template or raw text. None of them answers
in the adapters' formats (see `make_data`), so what an adapter adds is visible.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from examples.vocabulary import (
    CITIES,
    COLORS,
    DAYS,
    PEOPLE,
    PRODUCTS,
    Facts,
    draw_facts,
    draw_odd_facts,
    invent_word,
)

Message = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """Either `messages` (with optional `tools`) or `text`."""

    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    text: str = ""


GREETINGS = ("", "Hello. ", "Hi, ", "Good morning. ", "Dear team, ", "Hello, I am {name}. ",
             "Hi, {name} here. ", "My name is {name}. ")  # fmt: skip

# What a customer says by intent, and the plain answer; shared with `make_data` for its questions.
SUPPORT: dict[str, tuple[tuple[str, ...], str]] = {
    "track": (
        (
            "Where is my order {order}?",
            "When will the {product} from order {order} arrive in {city}?",
            "I am still waiting for order {order}.",
            "My {product} has not come yet. The order is {order}.",
            "Can you track order {order} for me?",
        ),
        "Your order {order} is on its way.",
    ),
    "cancel": (
        (
            "Please cancel order {order}.",
            "I do not want the {product} any more. Cancel {order}.",
            "Can I still cancel order {order}?",
            "Stop order {order}, I found a cheaper {product}.",
            "I ordered the {product} by mistake, cancel order {order} please.",
        ),
        "Order {order} has been cancelled.",
    ),
    "refund": (
        (
            "I want my money back for order {order}.",
            "Please refund the {price} dollars for order {order}.",
            "When do I get the refund for order {order}?",
            "The {product} from order {order} was too expensive, I want a refund.",
            "You charged me {price} dollars twice for order {order}.",
        ),
        "We will pay back the money for order {order}.",
    ),
    "damaged": (
        (
            "The {product} from order {order} is broken.",
            "Order {order} arrived damaged.",
            "My {product} came with a crack. The order is {order}.",
            "The {color} {product} in order {order} does not work.",
            "There is a scratch on the {product} I got with order {order}.",
        ),
        "We are sorry. We will send a new one for order {order}.",
    ),
    "address": (
        (
            "Please send order {order} to {city} instead.",
            "I moved to {city}. Change the address of order {order}.",
            "Can order {order} go to {city}?",
            "The address on order {order} is wrong, I live in {city}.",
            "Ship the {product} of order {order} to my office in {city}.",
        ),
        "We will send order {order} to {city}.",
    ),
    "invoice": (
        (
            "I need the invoice for order {order}.",
            "Can you send me the bill for the {product}, order {order}?",
            "Please mail the receipt of order {order} to my office.",
            "My company needs an invoice over {price} dollars for order {order}.",
            "The invoice for order {order} is missing.",
        ),
        "The invoice for order {order} is in your mail.",
    ),
}  # fmt: skip

# What a customer of the shop asks for, by kind, and the plain answer; also shared.
SMALL_ORDERS = {
    "buy": (
        "I would like to buy a {color} {product} for {price} dollars.",
        "The {color} {product} costs {price} dollars.",
    ),
    "bring": (
        "My name is {name}, can you bring the {product} to {city} on {day}?",
        "Yes {name}, the {product} comes to {city} on {day}.",
    ),
    "sell": (
        "I am {name} from {city}. Do you sell a {product}?",
        "Hello {name}, yes, we sell a {product} in {city}.",
    ),
    "stock": (
        "Is the {color} {product} there on {day}?",
        "Yes, the {color} {product} is there on {day}.",
    ),
    "deadline": (
        "This is {name}. The {product} should be in {city} by {day}.",
        "Thank you {name}, the {product} will be in {city} by {day}.",
    ),
}

STATEMENTS = {
    "name": ("My name is {name}.", "I am {name}.", "This is {name}."),
    "product": ("I bought a {product}.", "I ordered the {product}.", "It is about a {product}."),
    "city": ("I live in {city}.", "It goes to {city}.", "I moved to {city}."),
    "day": ("It comes on {day}.", "I am home on {day}.", "I paid on {day}."),
    "color": ("It is {color}.", "I like {color}.", "The box is {color}."),
    "order": ("The order is {order}.", "My order number is {order}.", "I have order {order}."),
    "price": ("It cost {price} dollars.", "I paid {price} dollars.", "The price is {price}."),
}
QUESTIONS = {
    "name": ("What is my name?", "Your name is {name}."),
    "product": ("What did I buy?", "You bought the {product}."),
    "city": ("Which city is it?", "The city is {city}."),
    "day": ("Which day is it?", "The day is {day}."),
    "color": ("Which color is it?", "The color is {color}."),
    "order": ("What is my order number?", "Your order number is {order}."),
    "price": ("What did I pay?", "You paid {price} dollars."),
}


@dataclass
class CorpusMaker:
    """Draws documents; the same seed gives the same documents in the same order."""

    seed: int
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def __iter__(self) -> Iterator[Document]:
        kinds: tuple[tuple[Callable[[], Document], int], ...] = (
            (self._support, 26),
            (self._small_order, 12),
            (self._facts, 22),
            (self._record, 12),
            (self._repeat, 12),
            (self._words_again, 6),
            (self._list_again, 6),
            (self._tool, 4),
        )
        makers, weights = zip(*kinds, strict=True)
        while True:
            yield self.rng.choices(makers, weights)[0]()

    def _draw(self) -> Facts:
        return draw_odd_facts(self.rng) if self.rng.random() < 0.4 else draw_facts(self.rng)

    def _support(self) -> Document:
        facts = self._draw()
        messages: list[Message] = []
        if self.rng.random() < 0.15:
            messages.append(_say("system", "You help the customers of our shop."))
        for turn in range(self.rng.choice((1, 1, 1, 2))):
            asked, answer = SUPPORT[self.rng.choice(tuple(SUPPORT))]
            greeting = self.rng.choice(GREETINGS) if turn == 0 else ""
            thanks = self.rng.choice(("", "", " Thank you.", " Thanks!"))
            messages.append(_say("user", facts.fill(greeting + self.rng.choice(asked) + thanks)))
            called = f"Hello {facts.name}. " if "{name}" in greeting else ""
            messages.append(_say("assistant", called + facts.fill(answer)))
        return Document(tuple(messages))

    def _small_order(self) -> Document:
        facts = self._draw()
        asked, answer = self.rng.choice(tuple(SMALL_ORDERS.values()))
        return _chat(facts.fill(asked), facts.fill(answer))

    def _facts(self) -> Document:
        """Several statements in any order, then a question about one or two of them."""
        facts = self._draw()
        told = self.rng.sample(tuple(STATEMENTS), self.rng.randrange(3, 6))
        story = " ".join(self.rng.choice(STATEMENTS[kind]) for kind in told)
        messages: list[Message] = []
        for number, kind in enumerate(self.rng.sample(told, self.rng.choice((1, 1, 2, 3)))):
            question, answer = QUESTIONS[kind]
            ahead = facts.fill(story) + " " if number == 0 else ""
            messages += [_say("user", ahead + question), _say("assistant", facts.fill(answer))]
        return Document(tuple(messages))

    def _record(self) -> Document:
        """The same facts written another way: a list of fields as JSON, or JSON as sentences."""
        facts = self._draw()
        kinds = self.rng.sample(tuple(STATEMENTS), self.rng.randrange(1, 5))
        named = {self.rng.choice((kind, invent_word(self.rng))): getattr(facts, kind)
                 for kind in kinds}  # fmt: skip
        fields = ", ".join(f"{key} {value}" for key, value in named.items())
        record = json.dumps(named)
        if self.rng.random() < 0.3:
            return _chat(f"Read this: {record}", fields + ".")
        return _chat(f"Write as JSON: {fields}", record)

    def _repeat(self) -> Document:
        words = self._some_words(self.rng.randrange(2, 12))
        ask, close = self.rng.choice((("Repeat: ", ""), ("Say ", " again."), ("Copy this: ", "")))
        return _chat(ask + words + close, words)

    def _words_again(self) -> Document:
        words = self._some_words(self.rng.randrange(6, 30))
        return Document(text=f"{words}\n{words}\n{words}")

    def _list_again(self) -> Document:
        known = PEOPLE + PRODUCTS + CITIES + DAYS + COLORS
        line = " ".join(self.rng.sample(known, self.rng.randrange(4, 40)))
        return Document(text="\n".join([line] * self.rng.randrange(2, 5)))

    def _tool(self) -> Document:
        facts = self._draw()
        name = self.rng.choice(("get_order", "find_order", invent_word(self.rng)))
        key = self.rng.choice(("order", "city", "product", "name"))
        value = getattr(facts, key)
        tool = {"type": "function", "function": {"name": name, "parameters": {
            "type": "object", "properties": {key: {"type": "string"}}}}}  # fmt: skip
        call = {"type": "function", "function": {"name": name, "arguments": {key: value}}}
        day = self.rng.choice(DAYS)
        messages = (
            _say("user", f"Look up the {key} {value}."),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            _say("tool", json.dumps({key: value, "day": day})),
            _say("assistant", f"The {key} {value} comes on {day}."),
        )
        return Document(messages, (tool,))

    def _some_words(self, count: int) -> str:
        known = draw_facts(self.rng)
        choices: tuple[Callable[[], str], ...] = (
            lambda: invent_word(self.rng),
            lambda: invent_word(self.rng).capitalize(),
            lambda: self.rng.choice(list(known.__dict__.values())),
            lambda: str(self.rng.randrange(10 ** self.rng.randrange(1, 7))),
        )
        return " ".join(self.rng.choice(choices)() for _ in range(count))


def _say(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _chat(asked: str, answer: str) -> Document:
    return Document((_say("user", asked), _say("assistant", answer)))
