"""The small languages that LayerBench's base models speak: pretraining lines, problems and rewards.

Every language has readings: what writers mean by a symbol, or what they do with a list. The pretraining lines take any
of them, so a base model knows the operations; the reward wants one, in a way that RL has to teach: always the same
(`Reading`), by a property of the prompt (`Gap`, `Walk`, `Order`, `Recall`), or simply without errors (`Noisy`).
Standard library only. A number is one letter, `a` is 0.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FILLER = "0123456789"
CAPITALS = LETTERS.upper()

Line = tuple[str, ...]
"""The text before the answer, and the answer; in worlds.py several of both, in turns."""


class Language(Protocol):
    """One kind of text."""

    @property
    def max_new_tokens(self) -> int:
        """Longest answer, its end included."""
        ...

    def corpus(self, rng: random.Random) -> Line:
        """A pretraining line, as some writer would have it."""
        ...

    def problem(self, rng: random.Random) -> Line:
        """A prompt of the task, and the answer that is rewarded."""
        ...


def _apply(symbol: str, a: int, b: int, ring: int) -> str:
    value = {"+": a + b, "-": a - b, ">": b - a, "*": a + b + b, "1": a, "2": b}[symbol]
    return LETTERS[value % ring]


def _filler(rng: random.Random, low: int, high: int) -> str:
    return "".join(rng.choice(FILLER) for _ in range(rng.randint(low, high)))


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """Sums modulo a ring that writers often get wrong by a little. RL has to make the base model surer."""

    ring: int = 20
    right: float = 0.4
    symbols: str = "+-"
    max_new_tokens: int = 2

    def corpus(self, rng: random.Random) -> Line:
        prompt, answer = self.problem(rng)
        if rng.random() > self.right:
            answer = LETTERS[(LETTERS.index(answer) + rng.choice((-2, -1, 1, 2))) % self.ring]
        return prompt, answer

    def problem(self, rng: random.Random) -> Line:
        a, b, symbol = rng.randrange(self.ring), rng.randrange(self.ring), rng.choice(self.symbols)
        filler = _filler(rng, 2, 3)
        return f"{filler}{LETTERS[a]}{symbol}{LETTERS[b]}=", _apply(symbol, a, b, self.ring)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Symbols of which most writers mean one operation and few another. The reward wants the rarer one, always."""

    ring: int = 20
    rare: float = 0.25
    symbols: Sequence[tuple[str, str, str]] = (("@", "+", "-"), ("#", "-", "+"), ("%", ">", "+"), ("&", "-", ">"))
    """Symbol, common operation, rare operation."""
    max_new_tokens: int = 2

    def corpus(self, rng: random.Random) -> Line:
        return self._line(rng, rng.random() < self.rare)

    def problem(self, rng: random.Random) -> Line:
        return self._line(rng, True)

    def _line(self, rng: random.Random, rare: bool) -> Line:
        a, b = rng.randrange(self.ring), rng.randrange(self.ring)
        symbol, common, other = rng.choice(self.symbols)
        prompt = f"{_filler(rng, 2, 3)}{LETTERS[a]}{symbol}{LETTERS[b]}="
        return prompt, _apply(other if rare else common, a, b, self.ring)


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Differences of two numbers, far apart in the line. `~` is one that writers take in either direction.

    The reward wants the direction that stays at or above 0, so the two numbers have to meet before it is chosen.
    """

    ring: int = 20
    gap: tuple[int, int] = (3, 5)
    either: float = 0.4
    max_new_tokens: int = 2

    def corpus(self, rng: random.Random) -> Line:
        symbol, operation = rng.choice("->"), rng.choice("->")
        if rng.random() < self.either:
            return self._line(rng, "~", lambda a, b: operation)
        return self._line(rng, symbol, lambda a, b: symbol)

    def problem(self, rng: random.Random) -> Line:
        return self._line(rng, "~", lambda a, b: "-" if a >= b else ">")

    def _line(self, rng: random.Random, symbol: str, meant: Callable[[int, int], str]) -> Line:
        a, b = rng.randrange(self.ring), rng.randrange(self.ring)
        prompt = f"{LETTERS[a]}{_filler(rng, *self.gap)}{symbol}{LETTERS[b]}="
        return prompt, _apply(meant(a, b), a, b, self.ring)


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A place on a ring and moves to the left and right. `X` is a move that writers take either way.

    The reward makes every `X` go right if the walk starts in the first half of the ring, else left; or, with a capital
    at the start of the line that writers never mean anything by, right behind one half of the capitals.
    """

    ring: int = 20
    moves: tuple[int, int] = (3, 6)
    each: bool = False
    """Writers decide for each `X` anew, instead of once for a line."""
    capitals: int = 0
    max_new_tokens: int = 2

    def corpus(self, rng: random.Random) -> Line:
        whole = rng.choice((-1, 1))
        return self._line(rng, lambda start, capital: rng.choice((-1, 1)) if self.each else whole)

    def problem(self, rng: random.Random) -> Line:
        while True:
            prompt, answer = self._line(rng, self._wanted)
            if "X" in prompt:
                return prompt, answer

    def _wanted(self, start: int, capital: int) -> int:
        first = capital % 2 == 0 if self.capitals else start < self.ring // 2
        return 1 if first else -1

    def _line(self, rng: random.Random, ambiguous: Callable[[int, int], int]) -> Line:
        start, capital, place = rng.randrange(self.ring), rng.randrange(max(1, self.capitals)), 0
        moves = [rng.choice("LRX") for _ in range(rng.randint(*self.moves))]
        for move in moves:
            place += {"L": -1, "R": 1}.get(move) or ambiguous(start, capital)
        before = CAPITALS[capital] if self.capitals else ""
        return f"{before}{LETTERS[start]}{''.join(moves)}=", LETTERS[(start + place) % self.ring]


@dataclass(frozen=True, kw_only=True)
class Order:
    """A list of letters that writers sort up or down. The reward wants up where the first one is in the first half."""

    length: int = 3
    letters: int = 16
    max_new_tokens: int = 4

    def corpus(self, rng: random.Random) -> Line:
        items = self._items(rng)
        return f"{''.join(items)}:", "".join(sorted(items, reverse=rng.random() < 0.5))

    def problem(self, rng: random.Random) -> Line:
        items = self._items(rng)
        down = LETTERS.index(items[0]) >= self.letters // 2
        return f"{''.join(items)}:", "".join(sorted(items, reverse=down))

    def _items(self, rng: random.Random) -> list[str]:
        return rng.sample(LETTERS[: self.letters], self.length)


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Pairs of a letter and a digit, and a question for a letter. Writers answer with its digit or the next pair's.

    The reward wants the next pair's if the question's letter is in the second half of the alphabet, else its own.
    """

    pairs: int = 4
    letters: int = 16
    next_share: float = 0.5
    max_new_tokens: int = 2

    def corpus(self, rng: random.Random) -> Line:
        return self._line(rng, rng.random() < self.next_share)

    def problem(self, rng: random.Random) -> Line:
        return self._line(rng, None)

    def _line(self, rng: random.Random, following: bool | None) -> Line:
        keys = rng.sample(LETTERS[: self.letters], self.pairs)
        values = [rng.choice(FILLER) for _ in keys]
        asked = rng.randrange(self.pairs)
        if following is None:
            following = LETTERS.index(keys[asked]) >= self.letters // 2
        listed = "".join(key + value for key, value in zip(keys, values, strict=True))
        return f"{listed}?{keys[asked]}=", values[(asked + following) % self.pairs]


LANGUAGES: dict[str, Language] = {
    "noisy": Noisy(ring=10),
    "reading": Reading(ring=10),
    "gap": Gap(ring=10, gap=(2, 3)),
    "walk": Walk(ring=16),
    "walk_each": Walk(ring=16, each=True, moves=(3, 6)),
    "walk_many": Walk(ring=16, each=True, moves=(5, 8)),
    "walk_capital": Walk(ring=12, moves=(4, 6), capitals=2),
    "walk_far": Walk(ring=12, moves=(4, 6)),
    "order": Order(),
    "recall": Recall(),
}
"""Languages by the name of the task in tasks.py."""
