"""Boundary-aware inputs: values around a program's own constants, empties, duplicates, both parities, both cases."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def constants_of(code: str) -> tuple[list[int], list[str]]:
    """Integers and string literals in a piece of code, each once and sorted."""
    numbers = sorted({int(number) for number in re.findall(r"\b\d+\b", code)})
    texts = sorted({text for text in re.findall(r'"([^"]*)"', code) if text})
    return numbers, texts


def _interesting_numbers(numbers: Sequence[int]) -> list[int]:
    around = {number + shift for number in numbers for shift in (-1, 0, 1)}
    around |= {2 * number + shift for number in numbers for shift in (0, 1)} | {-number for number in numbers}
    return sorted(around | {-3, -2, -1, 0, 1, 2})


def _interesting_letters(texts: Sequence[str]) -> str:
    own = {letter for text in texts for letter in text if letter.isalpha()}
    near = {
        ALPHABET[(ALPHABET.index(letter) + shift) % 26] for letter in own if letter in ALPHABET for shift in (-1, 1)
    }
    return "".join(sorted(own | near | {letter.upper() for letter in own}))


class Inputs:
    """Draws arguments of each input kind for a program with the given constants."""

    def __init__(self, code: str, rng: random.Random) -> None:
        numbers, texts = constants_of(code)
        self.rng = rng
        self.numbers = _interesting_numbers(numbers)
        self.letters = _interesting_letters(texts)
        # Letters that the program names must be frequent, or a wrong letter goes unnoticed.
        self.text_pool = self.letters * 4 + "aeiouAEbkmzBKZ" + "059"
        self.word_pool = self.letters + "aeiobkm"
        self.sizes = [*range(0, 15), *[number for number in self.numbers if 0 <= number <= 60], 20, 27]

    def number(self) -> int:
        random = self.rng.random
        if random() < 0.6:
            return self.numbers[int(random() * len(self.numbers))]
        return int(random() * 35) - 9

    def numbers_list(self, longest: int = 8) -> list[int]:
        random = self.rng.random
        values = [self.number() for _ in range(int(random() * (longest + 1)))]
        form = random()
        if values and form < 0.2:
            values[int(random() * len(values))] = values[int(random() * len(values))]
        elif values and form < 0.4:  # few different values, so that a rare filter keeps many of them
            values = self.rng.choices(values[:2], k=longest + 1)
        elif form < 0.55:
            values = [abs(value) for value in values]
        elif form < 0.65:
            values.sort()
        elif form < 0.8:  # small steps, so that a sum can meet a limit exactly
            values = [int(random() * 8) for _ in values]
        return values

    def text(self) -> str:
        letters = "".join(self.rng.choices(self.text_pool, k=int(self.rng.random() * 10)))
        if letters and self.rng.random() < 0.3:
            letters = letters.replace(letters[0], letters[-1])
        return letters

    def word(self) -> str:
        word = "".join(self.rng.choices(self.word_pool, k=1 + int(self.rng.random() * 7)))
        return word + word[::-1] if len(word) < 4 and self.rng.random() < 0.3 else word

    def words(self) -> str:
        words = [self.word() for _ in range(int(self.rng.random() * 8))]
        if words and self.rng.random() < 0.4:
            words.append(words[0])
        return " ".join(words)

    def draw(self, kind: str) -> Any:
        """A random argument. Raises ValueError for a kind that no frame has."""
        rng = self.rng
        if kind == "ints":
            return self.numbers_list()
        if kind == "text":
            return self.text()
        if kind == "words":
            return self.words()
        if kind == "number":
            return self.number()
        if kind == "size":
            return rng.choice(self.sizes)
        if kind == "small":
            return int(rng.random() * 13)
        if kind == "rows":
            return [self.numbers_list(5) for _ in range(rng.randint(0, 4))]
        if kind == "positions":
            return [rng.randint(-2, 8) for _ in range(rng.randint(0, 6))]
        if kind == "digits":  # not larger: a wrong program may count up to it
            return rng.choice([rng.randint(1, 99), rng.randint(100, 999), rng.randint(1000, 9999)])
        raise ValueError(f"kind: got {kind!r}, want one of the input kinds of a frame's arguments")

    def edges(self, kind: str) -> list[Any]:
        """Small inputs of a kind, the ones that a careful tester writes first."""
        if kind == "ints":
            singles = [[number] for number in self.numbers]
            return [[], self.numbers[::2], self.numbers[1::2][::-1], *self.rng.sample(singles, 4), [1, 1], [2, 2, 2]]
        if kind == "rows":
            return [[], [[]], [self.numbers[::2], []], [self.numbers[1::3], self.numbers[::3]]]
        if kind == "positions":
            return [[], [0], [-1, 0, 1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 0]]
        if kind == "text":
            return ["", "a", self.letters[:10], self.letters[::-1][:10], "aBcDe", "xyz12", "AAbb"]
        if kind == "words":
            return ["", "a", "ab abc abcd abcde abcdef", "bob ab bob", "level on noon a"]
        if kind == "number":
            return self.numbers
        if kind == "size":
            return [0, 1, 2, 3, *[number for number in self.numbers if 3 < number <= 45]]
        if kind == "small":
            return [0, 1, 2, 5]
        return [1, 7, 10, 11, 90, 123, 9876]


def input_pool(kinds: Sequence[str], code: str, rng: random.Random, size: int) -> list[list[Any]]:
    """`size` different argument lists (fewer if the kinds have fewer), edge cases first."""
    inputs = Inputs(code, rng)
    pool: list[list[Any]] = []
    seen: set[str] = set()

    def add(arguments: list[Any]) -> None:
        key = repr(arguments)
        if key not in seen and len(pool) < size:
            seen.add(key)
            pool.append(arguments)

    edges = [inputs.edges(kind) for kind in kinds]
    if len(kinds) == 1:
        for edge in edges[0]:
            add([edge])
    else:
        for position in range(max(len(edge) for edge in edges)):
            add([rng.choice(edge) if position >= len(edge) else edge[position] for edge in edges])
    for _ in range(4 * size):
        if len(pool) == size:
            break
        add([inputs.draw(kind) for kind in kinds])
    return pool
