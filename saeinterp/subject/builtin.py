"""Corpora that need no network: the Python language reference and a generator of arithmetic word problems.

`builtin:python-reference` is `pydoc_data.topics`, which every CPython carries and which differs between
Python versions, so its content hash enters recipes. The surprising choice: its long topics contain the short
ones, so a paragraph seen in a shorter topic is left out of longer ones; otherwise a fifth of the held-out
text would also be training text.

`builtin:word-problems` imitates GSM8K: a question, a worked answer with `<<48/2=24>>` annotations, and a last
line `#### 24`. Every annotation is computed, never typed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

from saeinterp.errors import ConfigError
from saeinterp.subject.paragraphs import group_paragraphs, paragraphs

PYTHON_REFERENCE = "builtin:python-reference"
WORD_PROBLEMS = "builtin:word-problems"
BUILTIN = (PYTHON_REFERENCE, WORD_PROBLEMS)
DEFAULT_PROBLEMS = 400
_GENERATOR = 1  # raise when the same seed gives other problems


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_NAMES = _words(
    "Ada, Amir, Bela, Bruno, Chen, Clara, Dario, Dina, Elena, Emil, Farid, Fiona, Goran, Greta, Hana, Hugo, "
    "Ines, Ivan, Jada, Jonas, Kaito, Kira, Lena, Luca, Maya, Milan, Nadia, Noah, Olga, Omar, Paula, Pedro, "
    "Quinn, Rosa, Ravi, Sara, Sami, Tara, Theo, Uma, Viktor, Wanda, Xenia, Yara, Yusuf, Zoe"
)
_OBJECTS = _words(
    "apples, marbles, stickers, books, pencils, coins, shells, cookies, postcards, beads, oranges, stamps, "
    "buttons, candles, ribbons, tickets, eggs, tomatoes, badges, crayons"
)
_PLACES = _words("the market, the library, the school fair, the farm, the museum, the bakery, the harbour, the club")
_GOODS = (
    ("notebook", "notebooks"),
    ("lamp", "lamps"),
    ("mug", "mugs"),
    ("scarf", "scarves"),
    ("plant", "plants"),
    ("poster", "posters"),
    ("cushion", "cushions"),
    ("kite", "kites"),
    ("basket", "baskets"),
    ("bottle", "bottles"),
)
_JOBS = _words("tutoring, gardening, painting fences, walking dogs, washing cars, delivering papers, repairing bikes")
_DAYS = _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")


def builtin_documents(name: str, *, seed: int, limit: int | None) -> Iterator[str]:
    """The documents of a built-in corpus.

    Raises:
        ConfigError: No such corpus.
    """
    if name == PYTHON_REFERENCE:
        return _python_reference()
    if name == WORD_PROBLEMS:
        return word_problems(seed=seed, count=DEFAULT_PROBLEMS if limit is None else limit)
    raise ConfigError("no such built-in corpus", field="corpus.sources.name", got=name, expected=" or ".join(BUILTIN))


def builtin_fingerprint(name: str, *, seed: int, limit: int | None) -> str:
    """What determines the content: a hash of the text, or the generator's version, seed and count.

    Raises:
        ConfigError: No such corpus.
    """
    if name == WORD_PROBLEMS:
        return f"generator-{_GENERATOR}:{seed}:{DEFAULT_PROBLEMS if limit is None else limit}"
    digest = hashlib.sha256()
    for text in builtin_documents(name, seed=seed, limit=limit):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def builtin_characters(name: str, *, seed: int, limit: int | None) -> int:
    """Characters of a built-in corpus."""
    return sum(len(text) for text in builtin_documents(name, seed=seed, limit=limit))


def _python_reference() -> Iterator[str]:
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for _, text in sorted(topics.items(), key=lambda item: (len(item[1]), item[0])):
        fresh = []
        for paragraph in paragraphs(text):
            key = " ".join(paragraph.split())
            if key not in seen:
                fresh.append(paragraph)
                seen.add(key)
        yield from group_paragraphs(fresh)


def word_problems(*, seed: int, count: int) -> Iterator[str]:
    """`count` problems; problem i depends on the seed and i alone."""
    for index in range(count):
        source = random.Random(f"{seed}:{index}")
        yield source.choice(_TEMPLATES)(source)


class _Working:
    """The worked answer, line by line; every figure in it comes out of `step`."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def step(self, expression: str, value: int, sentence: str) -> int:
        """Add a line; `sentence` has `{}` where the annotated result goes."""
        self._lines.append(sentence.format(f"{expression} = <<{expression.replace(' ', '')}={value}>>{value}"))
        return value

    def problem(self, question: str, answer: int) -> str:
        return "\n".join([question, *self._lines, f"#### {answer}"])


def _inventory(source: random.Random) -> str:
    name, other = source.sample(_NAMES, 2)
    things, place, day = source.choice(_OBJECTS), source.choice(_PLACES), source.choice(_DAYS)
    have = source.randrange(12, 90)
    story = [f"On {day}, {name} has {have} {things}."]
    work = _Working()
    for _ in range(source.randint(2, 5)):
        kind = source.choice(("buy", "give", "double", "share", "lose"))
        if kind == "buy":
            packs, each = source.randint(2, 6), source.randint(3, 12)
            story.append(f"At {place}, {name} buys {packs} bags with {each} {things} in each.")
            more = work.step(f"{packs} * {each}", packs * each, f"The {packs} bags hold {{}} {things}.")
            have = work.step(f"{have} + {more}", have + more, f"Now {name} has {{}} {things}.")
        elif kind == "double" and have < 200:
            story.append(f"Then {other} doubles the number of {things} {name} has.")
            have = work.step(f"{have} * 2", have * 2, f"Doubling gives {{}} {things}.")
        elif kind == "share" and have % 2 == 0 and have > 8:
            story.append(f"Then {name} gives half of the {things} to {other}.")
            have = work.step(f"{have} / 2", have // 2, f"After sharing, {name} keeps {{}} {things}.")
        else:
            gone = source.randint(1, max(1, have // 3))
            verb = "gives away" if kind == "give" else "loses"
            story.append(f"Later {name} {verb} {gone} {things}.")
            have = work.step(f"{have} - {gone}", have - gone, f"That leaves {{}} {things}.")
    story.append(f"How many {things} does {name} have in the end?")
    return work.problem(" ".join(story), have)


def _earnings(source: random.Random) -> str:
    name, job = source.choice(_NAMES), source.choice(_JOBS)
    first, second = source.sample(_DAYS, 2)
    wage, early, late = source.randint(6, 25), source.randint(2, 9), source.randint(2, 9)
    story = [
        f"{name} earns ${wage} an hour by {job}.",
        f"On {first} {name} works {early} hours and on {second} {late} hours.",
    ]
    work = _Working()
    hours = work.step(f"{early} + {late}", early + late, f"{name} works {{}} hours.")
    total = work.step(f"{hours} * {wage}", hours * wage, f"For these hours {name} earns ${{}}.")
    if source.random() < 0.6:
        tip = source.randint(5, 30)
        story.append(f"A customer adds a tip of ${tip}.")
        total = work.step(f"{total} + {tip}", total + tip, "With the tip it is ${}.")
    if source.random() < 0.6:
        cost = source.randint(3, total // 2)
        story.append(f"The bus and lunch cost ${cost}.")
        total = work.step(f"{total} - {cost}", total - cost, "After these costs ${} remain.")
    story.append(f"How much money does {name} have from this work?")
    return work.problem(" ".join(story), total)


def _shopping(source: random.Random) -> str:
    name, place = source.choice(_NAMES), source.choice(_PLACES)
    chosen = source.sample(_GOODS, source.randint(2, 3))
    work = _Working()
    parts, costs = [], []
    for one, many in chosen:
        count, price = source.randint(2, 9), source.randint(2, 24)
        parts.append(f"{count} {many} at ${price} per {one}")
        costs.append(work.step(f"{count} * {price}", count * price, f"The {many} cost ${{}}."))
    total = work.step(" + ".join(map(str, costs)), sum(costs), "Together that is ${}.")
    paid = (total // 50 + 1) * 50
    change = work.step(f"{paid} - {total}", paid - total, f"{name} gets back ${{}}.")
    listing = ", ".join(parts[:-1]) + f" and {parts[-1]}"
    question = f"At {place}, {name} buys {listing}. How much change does {name} get from ${paid}?"
    return work.problem(question, change)


def _journey(source: random.Random) -> str:
    name = source.choice(_NAMES)
    vehicle, low, high = source.choice((("train", 60, 140), ("car", 40, 110), ("bicycle", 12, 25), ("boat", 8, 30)))
    legs = [(source.randint(low, high), source.randint(1, 5)) for _ in range(source.randint(2, 3))]
    work = _Working()
    distances = []
    for number, (speed, hours) in enumerate(legs, 1):
        line = f"Part {number} is {{}} kilometres long."
        distances.append(work.step(f"{speed} * {hours}", speed * hours, line))
    total = work.step(" + ".join(map(str, distances)), sum(distances), "The whole way is {} kilometres.")
    told = ", then ".join(f"{hours} hours at {speed} kilometres per hour" for speed, hours in legs)
    story = f"{name} travels by {vehicle}: {told}."
    if source.random() < 0.5:
        goal = total + source.randint(10, 120)
        left = work.step(f"{goal} - {total}", goal - total, "There are {} kilometres left.")
        question = f"{story} The goal is {goal} kilometres away. How many kilometres are left?"
        return work.problem(question, left)
    return work.problem(f"{story} How many kilometres is that altogether?", total)


def _seats(source: random.Random) -> str:
    name, place = source.choice(_NAMES), source.choice(_PLACES)
    rows, seats = source.randint(4, 20) * 5, source.randint(2, 10) * 4
    percent = source.choice((10, 20, 25, 40, 50, 60, 75, 80))
    price = source.randint(3, 15)
    work = _Working()
    total = work.step(f"{rows} * {seats}", rows * seats, "There are {} seats.")
    sold = work.step(f"{total} * {percent} / 100", total * percent // 100, "Of these, {} are sold.")
    if source.random() < 0.5:
        empty = work.step(f"{total} - {sold}", total - sold, "So {} seats stay empty.")
        ask, answer = "How many seats stay empty?", empty
    else:
        money = work.step(f"{sold} * {price}", sold * price, "The tickets bring in ${}.")
        ask, answer = f"A ticket costs ${price}. How much money comes in?", money
    question = (
        f"{name} sets up chairs at {place}: {rows} rows of {seats} seats. {percent}% of the seats are sold. {ask}"
    )
    return work.problem(question, answer)


def _comparison(source: random.Random) -> str:
    first, second, third = source.sample(_NAMES, 3)
    things = source.choice(_OBJECTS)
    base, factor, less = source.randint(4, 40) * 2, source.randint(2, 5), source.randint(1, 7)
    work = _Working()
    more = work.step(f"{base} * {factor}", base * factor, f"{second} collects {{}} {things}.")
    half = work.step(f"{base} / 2", base // 2, f"Half of what {first} has is {{}} {things}.")
    story = f"{first} collects {base} {things}. {second} collects {factor} times as many."
    if half > less:
        story += f" {third} collects {less} fewer than half of what {first} has."
        half = work.step(f"{half} - {less}", half - less, f"{third} collects {{}} {things}.")
    else:
        story += f" {third} collects half as many as {first}."
    total = work.step(f"{base} + {more} + {half}", base + more + half, f"All three have {{}} {things}.")
    return work.problem(f"{story} How many {things} do they have altogether?", total)


_TEMPLATES: tuple[Callable[[random.Random], str], ...] = (
    _inventory,
    _earnings,
    _shopping,
    _journey,
    _seats,
    _comparison,
)
