"""The people, products, places and numbers that the examples talk about, and how to draw them.

Only words: what is asked and answered about them is in `corpus` (the base) and `make_data` (the adapters).
"""

from __future__ import annotations

import random
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words(
    "Ada Ben Carla David Elena Felix Greta Hugo Irene Jonas Karin Leo Mara Nora Oscar Paula "
    "Quinn Rosa Simon Tara Ulrich Vera Walter Xenia Yusuf Zoe Amir Bianca Cesar Dora Emil Fiona "
    "Goran Helena Ivan Julia Kofi Lena Marco Nina Otto Petra Rafael Sofia Tomas Uma Viktor Wendy"
)
PRODUCTS = _words(
    "kettle lamp chair desk camera printer toaster blender keyboard monitor speaker radio clock "
    "jacket backpack tent bicycle helmet guitar drone tablet router mixer heater fan mirror sofa "
    "carpet pillow blanket teapot pan knife scale drill ladder hammer vase frame charger"
)
CITIES = _words(
    "Lisbon Madrid Paris Berlin Vienna Prague Warsaw Oslo Dublin London Rome Athens Zurich Munich "
    "Hamburg Lyon Porto Seville Turin Milan Naples Geneva Krakow Riga Tallinn Helsinki Bergen "
    "Boston Chicago Denver Austin Seattle Toronto Lima Quito Cairo Nairobi Tokyo Osaka Seoul"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
COLORS = _words("red blue green black white yellow grey brown silver orange purple pink")
_CONSONANTS = _words("b c d f g h j k l m n p r s t v w z")
_VOWELS = _words("a e i o u")


@dataclass(frozen=True)
class Facts:
    """One customer's facts; every one of them can be asked about or copied into an answer."""

    name: str
    product: str
    city: str
    day: str
    color: str
    order: str  # five digits
    price: str  # whole dollars

    def fill(self, template: str) -> str:
        """The template with {name}, {product}, ... replaced; braces are doubled to stay."""
        return template.format(**self.__dict__)


def draw_facts(rng: random.Random) -> Facts:
    return Facts(
        name=rng.choice(PEOPLE),
        product=rng.choice(PRODUCTS),
        city=rng.choice(CITIES),
        day=rng.choice(DAYS),
        color=rng.choice(COLORS),
        order=str(rng.randrange(10_000, 100_000)),
        price=str(rng.randrange(5, 1000)),
    )


def draw_odd_facts(rng: random.Random) -> Facts:
    """Facts whose words are invented, so that copying is learned and not the lists above."""
    return Facts(
        name=invent_word(rng).capitalize(),
        product=invent_word(rng),
        city=invent_word(rng).capitalize(),
        day=rng.choice(DAYS),
        color=rng.choice(COLORS),
        order=str(rng.randrange(10 ** rng.randrange(3, 8))),
        price=str(rng.randrange(5, 1000)),
    )


def invent_word(rng: random.Random) -> str:
    syllables = rng.randrange(2, 4)
    return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables))
