r"""Final answers of mathematical texts: finding them, and checking them with math-verify.

Plain numbers, nearly all of GSM8K, are compared here; everything else by math-verify in processes of its own
(`answer_pool`). What cannot be judged in time, twice, counts as incorrect, is logged and counted in `unjudged`; when
that happens often it is an error.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from autolayer.core.errors import RewardError
from autolayer.tasks.math.answer_pool import FAILURES, compare
from autolayer.tasks.rewards import show
from autolayer.tasks.thinking import after_thinking

logger = logging.getLogger(__name__)

MAX_ANSWER = 300  # characters; nobody writes a longer answer, and sympy's time grows with it
MAX_UNJUDGED = 0.05  # share of a batch
CHUNK = 200  # answers between two moves of the progress bar, about a second

unjudged: Counter[str] = Counter()
"""Answers that could not be judged in this process, by reason: 'timeout', 'crash' or 'error'."""

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
_PHRASE = re.compile(r"answer is:?|final answer:", re.IGNORECASE)
_BOX = re.compile(r"\\f?box(?:ed)?\s*(\{|(?=[^\s{\\$]))")
_UNIT = re.compile(
    r"(?P<number>[^A-Za-z]*?\d\.?)(?:\s+|(?=[\\(%]))(?P<unit>(?:[A-Za-z][A-Za-z ]*|\([A-Za-z ]+\)|\\?%)[.!]?)"
)
_COUNTS = {
    "or", "and", "hundred", "thousand", "million", "billion", "trillion", "dozen", "percent", "half",
    "e", "i", "pi", "x", "y", "z", "n", "k",
}  # fmt: skip
"""Words after a number that are no unit: they make it another one, or several."""


@dataclass(frozen=True)
class Verdict:
    """How one answer compares with the right one."""

    correct: bool
    reason: str
    """'equal', 'different', 'no answer', 'too long', or why it was not judged: 'timeout', 'crash', 'error'."""


def final_answer(text: str) -> str | None:
    r"""The answer that a text commits itself to, or None.

    The last `\boxed{}` with something in it, else what follows the last `####`, else what follows the last "answer is".
    With thinking, only what comes after it counts; thinking that never ends has no answer.
    """
    said = after_thinking(text)
    if said is None:
        return None
    if _BOX.search(said):
        return last_boxed(said)
    if "####" in said:
        return _first_line(said.rpartition("####")[2])
    if phrases := list(_PHRASE.finditer(said)):
        # The end of the sentence, but not the point of 0.5.
        return _first_line(re.split(r"[.!](?:\s|$)", said[phrases[-1].end() :].lstrip(" :*"), maxsplit=1)[0])
    return None


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{}` of a text holds, empty ones passed over; `\boxed 5` and `\fbox{5}` are boxes too.

    None if there is none, or the last is never closed.
    """
    for box in reversed(list(_BOX.finditer(text))):
        after = text[box.end() :]
        if not box[1]:
            return re.split(r"[\s$]", after, maxsplit=1)[0].rstrip(".,;")
        if (held := _braced(after)) is None or held.strip():
            return held and held.strip()
    return None


def has_answer(text: str) -> bool:
    """Whether a text ends in something that can be checked, right or wrong."""
    return final_answer(text) is not None


def judge(answers: Sequence[str | None], golds: Sequence[str]) -> list[Verdict]:
    """Compares final answers with the right ones, 1/2 being 0.5.

    Raises:
        RewardError: A right answer is not mathematics, or too many answers could not be judged.
    """
    pairs = list(zip(answers, golds, strict=True))
    verdicts = {pair: _judge_here(*pair) for pair in pairs}
    # One group often agrees on one answer: each pair is asked about once.
    asked = [(answer, gold) for (answer, gold), verdict in verdicts.items() if answer is not None and verdict is None]
    if asked:
        for pair, reason in zip(asked, compare(asked), strict=True):
            if reason == "bad gold":
                raise RewardError(f"the right answer {show(pair[1])} is not mathematics: mend the 'answer' column.")
            verdicts[pair] = Verdict(reason == "equal", reason)
    result = [verdict for pair in pairs if (verdict := verdicts[pair]) is not None]
    failed = [i for i, verdict in enumerate(result) if verdict.reason in FAILURES]
    for i in failed:
        unjudged[result[i].reason] += 1
        logger.warning("%s is counted as incorrect: judging it ended in a %s.", show(answers[i]), result[i].reason)
    if len(failed) > max(2, MAX_UNJUDGED * len(result)):
        reasons = Counter(result[i].reason for i in failed)
        raise RewardError(
            f"{len(failed)} of {len(result)} answers could not be judged "
            f"({', '.join(f'{n} {reason}' for reason, n in reasons.items())}), the first {show(answers[failed[0]])} "
            f"against {show(golds[failed[0]])}: the rewards would mean nothing. If the machine is overloaded, "
            "give it fewer jobs; else look at what the model writes."
        )
    return result


def unusable(golds: Iterable[str]) -> set[str]:
    """The right answers that no answer could ever be found equal to, themselves included."""
    from rich.console import Console
    from rich.progress import track

    asked = [gold for gold in dict.fromkeys(golds) if as_number(gold) is None]
    bad: set[str] = set()
    starts, console = range(0, len(asked), CHUNK), Console(stderr=True)
    for start in track(starts, "checking answers", console=console, transient=True, disable=len(starts) < 2):
        some = asked[start : start + CHUNK]
        reasons = compare([(gold, gold) for gold in some])
        bad |= {gold for gold, reason in zip(some, reasons, strict=True) if reason != "equal"}
    return bad


def _judge_here(answer: str | None, gold: str) -> Verdict | None:
    """The cheap cases; None if math-verify has to decide."""
    if answer is None:
        return Verdict(False, "no answer")
    wanted, number = as_number(gold), as_number(answer)
    if wanted is not None and number is not None:
        return Verdict(number == wanted, "equal" if number == wanted else "different")
    if wanted is not None and wanted == as_number(without_unit(answer)):
        return Verdict(True, "equal")
    return Verdict(False, "too long") if len(answer) > MAX_ANSWER else None


def as_number(text: str) -> Decimal | None:
    """The value of a plain number such as `-1,234.50`, with or without dollar signs; None for anything else."""
    text = text.replace("\\$", "").replace("$", "").replace("\\!", "").replace("{,}", ",").replace("\\,", ",")
    text = text.strip().rstrip(".")
    return Decimal(text.replace(",", "")) if text.lstrip("+-") and _NUMBER.fullmatch(text) else None


def without_unit(text: str) -> str:
    r"""The number of `18 dollars per day`, `\text{5 apples}`, `42 (apples)` or `50\%`; any other text as it is.

    math-verify reads bare words as products of letters. A word that makes it another number (`3 million`) stays.
    """
    text = re.sub(r"\\(?:text|mathrm)\s*\{([^{}]*)\}", r"\1", text).strip()
    found = _UNIT.fullmatch(text)
    if found is None or _COUNTS & set(found["unit"].strip("(). !").lower().split()):
        return text
    return found["number"]


def _braced(text: str) -> str | None:
    r"""What stands before the brace that closes `\boxed{`; None if it is never closed."""
    depth = 1
    for i, character in enumerate(text):
        escaped = i > 0 and text[i - 1] == "\\"
        depth += 0 if escaped else (character == "{") - (character == "}")
        if depth == 0:
            return text[:i]
    return None


def _first_line(text: str) -> str | None:
    lines = text.strip().splitlines()
    return lines[0].strip(" *$") or None if lines else None
