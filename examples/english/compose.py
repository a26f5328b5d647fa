"""Composed sentences: what a dictionary's phrases lack.

Owns the templates: questions, dialogue, small talk, numbers, dates, times, money, names and
abbreviations, as they are written. A sentence is a function of the seed and its number alone.
Knows nothing of speech.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
W = SimpleNamespace(**yaml.safe_load((HERE / "words.yaml").read_text("utf-8")))


@dataclass(frozen=True)
class Words:
    """Common words of each kind, from the dictionary: they take the templates' open places."""

    noun: Sequence[str]
    adjective: Sequence[str]
    adverb: Sequence[str]
    verb: Sequence[str]


class Composer:
    """Sentences by number. Two composers of the same seed and words make the same ones."""

    def __init__(self, words: Words, seed: int) -> None:
        self._words = words
        self._seed = seed
        self._kinds: list[tuple[float, Callable[[random.Random], str]]] = [
            (0.22, self._question),
            (0.16, self._dialogue),
            (0.30, self._statement),
            (0.06, self._short),
            (0.06, self._date),
            (0.05, self._time),
            (0.05, self._money),
            (0.06, self._amount),
            (0.04, self._name),
        ]

    def sentence(self, number: int) -> str:
        """The sentence of this number, capitalised, with its punctuation."""
        # random() and what rests on it keep their sequence between versions of Python for a string
        # seed (version 2 of seeding).
        rng = random.Random(f"compose {self._seed} {number}")
        make = self._kind(rng.random())
        text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", make(rng))
        return text[0].upper() + text[1:]

    def _kind(self, at: float) -> Callable[[random.Random], str]:
        for share, make in self._kinds[:-1]:
            at -= share
            if at < 0:
                return make
        return self._kinds[-1][1]

    # Places in the templates

    def _noun(self, rng: random.Random) -> str:
        if rng.random() < 0.4:
            return _pick(rng, W.thing)
        noun = _pick(rng, self._words.noun)
        return f"{_pick(rng, self._words.adjective)} {noun}" if rng.random() < 0.5 else noun

    def _person(self, rng: random.Random) -> str:
        return _pick(rng, W.first) if rng.random() < 0.4 else _pick(rng, W.person)

    def _clause(self, rng: random.Random) -> str:
        who, what = self._person(rng), self._noun(rng)
        return _pick(
            rng,
            (
                lambda: f"{who} {_pick(rng, W.past)} the {what}",
                lambda: f"{who} {_pick(rng, W.past)} the {what} {_pick(rng, W.where)}",
                lambda: f"{who} {_pick(rng, W.past)} the {what} {_pick(rng, W.when)}",
                lambda: f"I {_pick(rng, W.past)} the {what} {_pick(rng, W.where)}",
                lambda: f"we saw the {what} {_pick(rng, W.where)} {_pick(rng, W.when)}",
                lambda: f"they wanted to {_pick(rng, self._words.verb)} {_pick(rng, W.when)}",
                lambda: f"she felt {_pick(rng, W.feel)} {_pick(rng, W.when)}",
                lambda: (
                    f"the {what} was {_pick(rng, self._words.adverb)} "
                    f"{_pick(rng, self._words.adjective)}"
                ),
                lambda: f"he likes {_pick(rng, W.food)} with {_pick(rng, W.food)}",
                lambda: f"you should {_pick(rng, W.going)}",
                lambda: f"it is too {_pick(rng, self._words.adjective)} to {_pick(rng, W.going)}",
                lambda: f"{who} was {_pick(rng, W.feel)} because of the {what}",
                lambda: f"there is a {what} {_pick(rng, W.where)}",
                lambda: f"{who} went to {_pick(rng, W.places)} {_pick(rng, W.when)}",
                lambda: f"the {what} and the {self._noun(rng)} are {_pick(rng, W.where)}",
                lambda: f"I would like to {_pick(rng, W.base)} the {what}",
            ),
        )()

    # Kinds of sentences

    def _statement(self, rng: random.Random) -> str:
        text = self._clause(rng)
        if rng.random() < 0.25:
            text = _pick(rng, W.openers) + text
        while rng.random() < 0.3 and len(text.split()) < 18:
            text += _pick(rng, W.joiners) + self._clause(rng)
        return text + ("!" if rng.random() < 0.07 else ".")

    def _question(self, rng: random.Random) -> str:
        who, what = self._person(rng), self._noun(rng)
        return _pick(
            rng,
            (
                lambda: f"where did {who} {_pick(rng, W.base)} the {what}?",
                lambda: f"why did you {_pick(rng, W.base)} my {what}?",
                lambda: f"do you want to {_pick(rng, W.going)} {_pick(rng, W.when)}?",
                lambda: f"can you {_pick(rng, W.going)}, or are you too {_pick(rng, W.feel)}?",
                lambda: f"is the {what} {_pick(rng, W.where)}?",
                lambda: f"who wants to {_pick(rng, W.base)} the {what}?",
                lambda: f"how often do you {_pick(rng, W.going)}?",
                lambda: f"would you like {_pick(rng, W.food)} or {_pick(rng, W.food)}?",
                lambda: f"when will {who} {_pick(rng, W.going)}?",
                lambda: f"have you ever been to {_pick(rng, W.places)}?",
                lambda: f"what is a {what}?",
                lambda: f"does {who} know how to {_pick(rng, self._words.verb)}?",
                lambda: f"which {what} is more {_pick(rng, self._words.adjective)}?",
                lambda: f"how many of them {_pick(rng, W.past)} the {what}?",
                lambda: f"could I {_pick(rng, W.base)} your {what}, please?",
                lambda: f"are you {_pick(rng, W.feel)}, {_pick(rng, W.first)}?",
                lambda: f"isn't that the {what} from {_pick(rng, W.places)}?",
                lambda: f"what did {who} say about the {what}?",
            ),
        )()

    def _dialogue(self, rng: random.Random) -> str:
        who = self._person(rng)
        said = self._question(rng) if rng.random() < 0.3 else self._clause(rng)
        said = said[0].upper() + said[1:]
        spoke = _pick(rng, ("said", "asked", "whispered", "shouted", "answered", "told us"))
        return _pick(
            rng,
            (
                lambda: f'"{said.rstrip("?")}," {spoke} {who}.',
                lambda: f'{who} {spoke}, "{said.rstrip("?")}."',
                lambda: f"I don't think that {self._clause(rng)}.",
                lambda: f"don't {_pick(rng, W.base)} the {self._noun(rng)}, {_pick(rng, W.first)}!",
                lambda: f"let's {_pick(rng, W.going)} and {_pick(rng, W.going)}.",
                lambda: f"I'm {_pick(rng, W.feel)}, but I'll {_pick(rng, W.going)} anyway.",
                lambda: f"you can't {_pick(rng, W.going)} {_pick(rng, W.where)}.",
                lambda: f"please {_pick(rng, W.going)} before {who} comes back.",
                lambda: f"{_pick(rng, W.first)}, could you {_pick(rng, W.going)}?",
                lambda: f"we'd better {_pick(rng, W.going)}, it's getting {_pick(rng, W.feel)}.",
                lambda: f"{_pick(rng, W.short)} {said.rstrip('?')}.",
            ),
        )()

    def _short(self, rng: random.Random) -> str:
        if rng.random() < 0.3:
            return _pick(rng, W.short)
        what = self._noun(rng)
        return _pick(
            rng,
            (
                f"the {what}.",
                f"a {what}?",
                f"{_pick(rng, self._words.adverb)}.",
                f"{_pick(rng, self._words.adjective)} {_pick(rng, self._words.noun)}.",
                f"my {what}!",
                f"no {what}.",
                f"{_pick(rng, W.first)} {_pick(rng, W.last)}.",
                f"{_pick(rng, W.food)} and {_pick(rng, W.food)}.",
            ),
        )

    def _date(self, rng: random.Random) -> str:
        month, day = _pick(rng, W.months), 1 + int(rng.random() * 28)
        year = 1700 + int(rng.random() * 340)
        date = _pick(
            rng,
            (
                f"{month} {day}, {year}",
                f"{month} {_ordinal(day)}",
                f"the {_ordinal(day)} of {month}",
                f"{day} {month} {year}",
                f"{month} {year}",
                f"{year}",
            ),
        )
        return _pick(
            rng,
            (
                f"{self._person(rng)} was born in {year}.",
                f"the meeting is on {month} {_ordinal(day)}.",
                f"in {year}, {self._clause(rng)}.",
                f"what happened {'in' if date == str(year) else 'on'} {date}?",
                f"the {self._noun(rng)} dates from {year}.",
                f"we arrive on {month} {day} and leave on {month} {_ordinal(min(28, day + 3))}.",
            ),
        )

    def _time(self, rng: random.Random) -> str:
        hour, minute = 1 + int(rng.random() * 12), int(rng.random() * 12) * 5
        clock = f"{hour}:{minute:02d}"
        return _pick(
            rng,
            (
                f"the train leaves at {clock} {_pick(rng, ('a.m.', 'p.m.'))} "
                f"from {_pick(rng, W.places)}.",
                f"it is {clock} already.",
                f"{self._person(rng)} called at {clock} p.m.",
                f"the shop opens at {hour} o'clock.",
                f"wake me up at {clock}, please.",
                f"is it {clock} or {1 + hour % 12}:{minute:02d}?",
            ),
        )

    def _money(self, rng: random.Random) -> str:
        amount, cents = _number(rng), int(rng.random() * 100)
        sign = _pick(rng, ("$", "$", "$", "£", "€"))
        return _pick(
            rng,
            (
                f"the {self._noun(rng)} costs {sign}{amount % 1000}.{cents:02d}.",
                f"I paid {sign}{amount:,} for it.",
                f"they raised {sign}{1 + amount % 90} million in {_pick(rng, W.places)}.",
                f"you owe me {sign}{1 + amount % 100}, {_pick(rng, W.first)}.",
                f"a {_pick(rng, W.thing)} for {sign}{1 + amount % 50}? That is too much.",
            ),
        )

    def _amount(self, rng: random.Random) -> str:
        number, unit = _number(rng), _pick(rng, W.units)
        place = 1 + int(rng.random() * 31)
        return _pick(
            rng,
            (
                f"it is {2 + number % 998} {unit} from here.",
                f"we counted {number:,} {unit}.",
                f"about {1 + number % 99}% of them {_pick(rng, W.past)} the {self._noun(rng)}.",
                f"the answer is {number % 100}.{number % 7 + 1}.",
                f"{self._person(rng)} finished in {_ordinal(place)} place.",
                f"that makes {2 + number % 20} {unit} and {2 + number % 13} {_pick(rng, W.units)}.",
                f"chapter {place} has {2 + number % 300} pages.",
                f"add {_pick(rng, ('1/2', '1/3', '3/4', '2'))} cup of {_pick(rng, W.food)}.",
                f"my number is 555-{int(rng.random() * 10000):04d}.",
                f"we need {_pick(rng, ('twelve', 'forty', 'a hundred', 'two thousand'))} {unit}.",
            ),
        )

    def _name(self, rng: random.Random) -> str:
        person = f"{_pick(rng, W.titles)} {_pick(rng, W.last)}"
        street = f"{1 + int(rng.random() * 999)} {_pick(rng, W.last)} {_pick(rng, W.streets)}"
        return _pick(
            rng,
            (
                f"{person} lives at {street}.",
                f"have you met {person} from {_pick(rng, W.places)}?",
                f"{person} and {_pick(rng, W.titles)} {_pick(rng, W.last)} {_pick(rng, W.past)} "
                f"the {self._noun(rng)}.",
                f"this is {_pick(rng, W.first)} {_pick(rng, W.last)}, my colleague.",
                f"{_pick(rng, W.first)} and {_pick(rng, W.first)} moved to {_pick(rng, W.places)}.",
                f"a message for {person}: {self._clause(rng)}.",
            ),
        )


def _pick(rng: random.Random, items: Sequence[Any]) -> Any:
    return items[int(rng.random() * len(items))]


def _number(rng: random.Random) -> int:
    """Of 1 to 6 digits, small ones as often as large ones."""
    return 1 + int(10 ** (rng.random() * 6))


def _ordinal(number: int) -> str:
    ending = (
        "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number}{ending}"
