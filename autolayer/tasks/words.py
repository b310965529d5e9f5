"""Generates the tasks of words for small pretrained models: what they know, and what they have to find in the prompt.

`words:opposites` shows two pairs and asks for the opposite of a third word. `words:kinds` asks a chat model whether a
thing is of a kind, yes or no. `words:sequence` gives four equally spaced numbers or letters, and asks for the next. In
`words:copy` three examples show which of three words has to be copied, the first or the last.
"""

import random
import string
from collections.abc import Sequence

from autolayer.tasks.base import Task
from autolayer.tasks.few_tokens import Problem, few_token_task, lines, turns
from autolayer.tasks.generated import without_special_tokens
from autolayer.tasks.math.small_numbers import check_chat

_PAIRS = (
    "hot cold big small up down left right good bad fast slow high low hard soft day night open closed full empty "
    "old young rich poor wet dry happy sad light dark long short true false early late win lose love hate push pull "
    "first last strong weak wide narrow near far buy sell begin end in out on off loud quiet thick thin top bottom "
    "clean dirty black white male female brave afraid deep shallow sweet sour give take come go north south east "
    "west war peace life death question answer teach learn safe dangerous easy difficult friend enemy king queen "
    "man woman boy girl father mother brother sister husband wife uncle aunt son daughter import export inside "
    "outside above below before after front back always never all none many few more less yes no alive dead asleep "
    "awake smooth rough straight curved sharp dull simple complex public private wrong correct major minor positive "
    "negative increase decrease accept reject arrive depart attack defend create destroy expand shrink float sink "
    "forget remember laugh cry lead follow rise fall save spend sit stand start stop borrow lend freeze melt "
    "ancient modern cheap expensive future past guilty innocent hero villain hope despair victory defeat summer "
    "winter sunrise sunset success failure truth lie profit loss entrance exit floor ceiling joy sorrow heaven hell "
    "morning evening present absent permanent temporary polite rude proud humble visible invisible possible "
    "impossible legal illegal maximum minimum active passive add subtract multiply divide agree disagree appear "
    "disappear arrival departure beautiful ugly better worse birth burial busy idle capture release careful "
    "careless combine separate common rare comfort pain customer seller domestic foreign even odd external internal "
    "fact fiction forward backward gain drop guest host head tail horizontal vertical huge tiny include exclude "
    "input output junior senior knowledge ignorance liquid solid local global loose tight mature immature natural "
    "artificial normal strange offense defense plural singular predator prey presence absence prince princess raise "
    "lower regular irregular reward punishment student teacher tame wild upper under urban rural useful useless "
    "warm cool"
)
_KINDS = {
    "animal": "lion dog cat horse cow tiger mouse whale sheep goat wolf bear rabbit monkey eagle shark frog snake",
    "fruit": "apple banana grape pear mango melon strawberry fig papaya kiwi pineapple blueberry raspberry lemon",
    "color": "red blue green yellow purple brown black white gray pink violet beige turquoise crimson",
    "country": "France Italy Spain Germany Japan China Russia Egypt Greece Norway Sweden Poland Canada Peru Kenya",
    "metal": "iron gold silver copper steel zinc lead tin nickel aluminum platinum titanium bronze brass mercury",
    "tool": "hammer saw drill wrench shovel axe knife screwdriver rake pliers chisel ladder brush needle scissors",
}
_LETTERS = string.ascii_lowercase


def load_opposites(*, chat: bool) -> Task:
    """Loads pairs of opposites, either word of which may be asked for; every model reads them as plain text."""
    words = _PAIRS.split()
    pairs = list(zip(words[::2], words[1::2], strict=True))
    problems = [Problem(f"{a} {b}", *pair) for a, b in pairs for pair in ((a, b), (b, a))]

    def write(problem: Problem, examples: Sequence[Problem], rng: random.Random) -> tuple[str, str]:
        prompt, answer = lines(problem, examples, rng.choice((" and", " vs")))
        return f"Opposites:\n{prompt}", answer

    return few_token_task("words:opposites", problems, write, examples=2, max_new_tokens=4, stop="\n")


def load_kinds(*, chat: bool) -> Task:
    """Loads questions such as `Is iron a metal?`, half of them with another kind than the thing's.

    Raises:
        DataError: The model has no chat template.
    """
    check_chat("words:kinds", chat)
    things = [(thing, kind) for kind, names in _KINDS.items() for thing in names.split()]
    problems = [
        Problem(thing, f"Is {thing} a{'n' * (asked in 'animal')} {asked}?", "yes" if asked == kind else "no")
        for thing, kind in things
        for asked in _KINDS
        for _ in range(len(_KINDS) - 1 if asked == kind else 1)
    ]
    return few_token_task(
        "words:kinds",
        problems,
        lambda problem, examples, rng: turns("Answer yes or no.", problem, examples),
        max_new_tokens=2,
        is_well_formed=is_yes_or_no,
    )


def load_sequence(*, chat: bool) -> Task:
    """Loads sequences of numbers and letters; every model reads them as plain text."""
    found = [[str(a + i * d) for i in range(5)] for d in (1, 2, 3, 4, 5, 10, -1, -2, -5, -10) for a in range(1, 100)]
    found = [terms for terms in found if not terms[-1].startswith("-")]
    found += [[_LETTERS[a + i * d] for i in range(5)] for d in (1, 2) for a in range(26 - 4 * d)]
    problems = [Problem(" ".join(terms), ", ".join(terms[:4]), terms[4]) for terms in found]
    return few_token_task(
        "words:sequence",
        problems,
        lambda problem, examples, rng: (f"{problem.question},", problem.answer),
        examples=0,
        max_new_tokens=5,
        stop=",",
    )


def load_copy(*, chat: bool) -> Task:
    """Loads triples of words; every model reads them as plain text."""
    rng, words = random.Random("words:copy"), " ".join(_KINDS.values()).split()
    triples = [" ".join(rng.sample(words, 3)) for _ in range(4096)]
    problems = [Problem(triple, triple, "") for triple in triples]

    def write(problem: Problem, examples: Sequence[Problem], rng: random.Random) -> tuple[str, str]:
        place = rng.choice((0, 2))
        copied = [each._replace(answer=each.question.split()[place]) for each in (*examples, problem)]
        return lines(copied[-1], copied[:-1], " ->")

    return few_token_task("words:copy", problems, write, examples=3, max_new_tokens=5, stop="\n")


def is_yes_or_no(completion: str) -> bool:
    """Returns True if the text is a wanted reply, right or wrong."""
    return without_special_tokens(completion) in ("yes", "no")
