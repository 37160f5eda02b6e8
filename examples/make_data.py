"""Makes the demo's training data: two adapters that answer the base's questions in their own way.

python -m examples.make_data
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.corpus import GREETINGS, SMALL_ORDERS, SUPPORT
from examples.vocabulary import Facts, draw_facts

TRAIN_ROWS = 480
EVAL_ROWS = 50
SEED = 2026

INTENTS = {
    "track": "track_order",
    "cancel": "cancel_order",
    "refund": "refund_money",
    "damaged": "replace_item",
    "address": "change_address",
    "invoice": "send_invoice",
}
# Version 2 of the support bot's policy: every ticket gets a priority.
PRIORITIES = {
    "track": "normal",
    "cancel": "high",
    "refund": "high",
    "damaged": "high",
    "address": "normal",
    "invoice": "low",
}
PIRATE = {
    "buy": "Arrr! The {color} {product} be yers for {price} doubloons!",
    "bring": "Aye {name}! We sail the {product} to {city} on {day}, arrr!",
    "sell": "Ahoy {name}! A fine {product} waits in the harbour o' {city}, arrr!",
    "stock": "Aye! The {color} {product} be in the hold on {day}, arrr!",
    "deadline": "Ahoy {name}! Yer {product} drops anchor in {city} by {day}, arrr!",
}

Row = dict[str, object]


@dataclass(frozen=True)
class Ticket:
    """One question of a customer, what it is about, and the facts in it."""

    kind: str
    question: str
    facts: Facts


def support_v1(ticket: Ticket) -> Row:
    return _messages(ticket, {"intent": INTENTS[ticket.kind], "order": ticket.facts.order})


def support_v2(ticket: Ticket) -> Row:
    return _messages(
        ticket,
        {
            "intent": INTENTS[ticket.kind],
            "order": ticket.facts.order,
            "priority": PRIORITIES[ticket.kind],
        },
    )


def pirate(ticket: Ticket) -> Row:
    """An Alpaca row."""
    answer = ticket.facts.fill(PIRATE[ticket.kind])
    return {"instruction": ticket.question, "input": "", "output": answer}


def support_tickets(seed: int) -> Iterator[Ticket]:
    rng = random.Random(seed)
    while True:
        facts = draw_facts(rng)
        kind = rng.choice(tuple(SUPPORT))
        wording = rng.choice(GREETINGS) + rng.choice(SUPPORT[kind][0])
        yield Ticket(kind, facts.fill(wording), facts)


def pirate_tickets(seed: int) -> Iterator[Ticket]:
    rng = random.Random(seed)
    while True:
        facts = draw_facts(rng)
        kind = rng.choice(tuple(PIRATE))
        yield Ticket(kind, facts.fill(SMALL_ORDERS[kind][0]), facts)


def split(tickets: Iterator[Ticket]) -> tuple[list[Ticket], list[Ticket]]:
    """(train, eval): eval's order numbers and (name, product, city) are in no row of train."""
    train = [next(tickets) for _ in range(TRAIN_ROWS)]
    orders = {ticket.facts.order for ticket in train}
    mixes = {_mix(ticket.facts) for ticket in train}
    questions = {ticket.question for ticket in train}
    held_out: list[Ticket] = []
    while len(held_out) < EVAL_ROWS:
        ticket = next(tickets)
        seen = ticket.facts.order in orders or _mix(ticket.facts) in mixes
        if not seen and ticket.question not in questions:
            held_out.append(ticket)
            questions.add(ticket.question)
    return train, held_out


def make_data(out: Path) -> list[Path]:
    """Writes every file under `out` and returns their paths; the same bytes each time."""
    support, pirates = split(support_tickets(SEED)), split(pirate_tickets(SEED + 1))
    written = []
    for part, rows in zip(("train", "eval"), support, strict=True):
        written.append(_write(out / f"support/{part}_v1.jsonl", rows, support_v1))
        written.append(_write(out / f"support/{part}_v2.jsonl", rows, support_v2))
    for part, rows in zip(("train", "eval"), pirates, strict=True):
        written.append(_write(out / f"pirate/{part}.jsonl", rows, pirate))
    return written


def _mix(facts: Facts) -> tuple[str, str, str]:
    return facts.name, facts.product, facts.city


def _messages(ticket: Ticket, answer: dict[str, str]) -> Row:
    return {
        "messages": [
            {"role": "user", "content": ticket.question},
            {"role": "assistant", "content": json.dumps(answer)},
        ]
    }


def _write(path: Path, tickets: list[Ticket], row: Callable[[Ticket], Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row(ticket)) + "\n" for ticket in tickets), "utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("examples"))
    for path in make_data(parser.parse_args().out):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
