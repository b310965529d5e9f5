r"""Finds the final answers of mathematical texts, and checks them with math-verify.

Plain numbers, nearly all of GSM8K, are compared here, and everything else by math-verify in processes of its own
(`answer_pool`). An answer that cannot be judged in time, twice, counts as incorrect and is logged. Many of them are an
error.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal

from autolayer.core.errors import RewardError
from autolayer.tasks.math.answer_pool import FAILURES, compare
from autolayer.tasks.rewards import show
from autolayer.tasks.thinking import after_thinking

logger = logging.getLogger(__name__)

MAX_ANSWER = 300  # characters; nobody writes a longer answer, and sympy's time grows with it
MAX_UNJUDGED = 0.05  # share of a batch
CHUNK = 200  # answers between two moves of the progress bar, about a second

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
"""Words after a number that are not a unit: they change the number, or make several."""
_TYPED = str.maketrans({"°": r"^{\circ}", "€": "", "£": "", "~": " "})
"""Signs that math-verify does not read."""


def final_answer(text: str) -> str | None:
    r"""Returns the final answer of a text, or None.

    It is the last `\boxed{}` that is not empty, else what follows the last `####`, else what follows the last "answer
    is". Thoughts do not count, and thoughts that never end have no answer.
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
    r"""Returns the content of the last `\boxed{}`, `\fbox{}` or `\boxed 5` that is not empty; None if it stays open."""
    for box in reversed(list(_BOX.finditer(text))):
        after = text[box.end() :]
        if not box[1]:
            return re.split(r"[\s$]", after, maxsplit=1)[0].rstrip(".,;")
        if (held := _braced(after)) is None or held.strip():
            return held and held.strip()
    return None


def judge_answers(answers: Sequence[str | None], golds: Sequence[str]) -> list[str]:
    """Compares final answers with the right ones (1/2 equals 0.5), and refuses if too many cannot be judged.

    Returns 'equal', 'different', 'no answer', 'too long', or why an answer was not judged, one of `FAILURES`.
    """
    pairs = [(answer and _typed(answer), _typed(gold)) for answer, gold in zip(answers, golds, strict=True)]
    verdicts = {pair: _judge_here(*pair) for pair in pairs}
    # One group often agrees on one answer: each pair is asked about once.
    asked = [(answer, gold) for (answer, gold), verdict in verdicts.items() if answer is not None and not verdict]
    if asked:
        verdicts.update(zip(asked, compare(asked), strict=True))
    failed = [pair for pair in pairs if verdicts[pair] in FAILURES]
    for answer, gold in pairs:
        if verdicts[answer, gold] == "bad gold":
            raise RewardError(f"the right answer {show(gold)} is not mathematics: correct the 'answer' column.")
    for pair in failed:
        logger.warning("%s is counted as incorrect: judging it ended in a %s.", show(pair[0]), verdicts[pair])
    if len(failed) > max(2, MAX_UNJUDGED * len(pairs)):
        reasons = Counter(verdicts[pair] for pair in failed)
        raise RewardError(
            f"{len(failed)} of {len(pairs)} answers could not be judged "
            f"({', '.join(f'{n} {reason}' for reason, n in reasons.items())}), the first {show(failed[0][0])} against "
            f"{show(failed[0][1])}: the rewards would mean nothing. If the machine is overloaded, give it fewer jobs; "
            "else look at what the model writes."
        )
    return [verdicts[pair] for pair in pairs]


def unusable(golds: Iterable[str]) -> set[str]:
    """Returns the right answers that math-verify does not even find equal to themselves."""
    from rich.console import Console
    from rich.progress import track

    asked = [gold for gold in dict.fromkeys(golds) if plain_number(gold) is None]
    chunks = [asked[start : start + CHUNK] for start in range(0, len(asked), CHUNK)]
    bad: set[str] = set()
    for some in track(
        chunks, "checking answers", console=Console(stderr=True), transient=True, disable=len(chunks) < 2
    ):
        verdicts = compare([(gold, gold) for gold in some])
        bad |= {gold for gold, verdict in zip(some, verdicts, strict=True) if verdict != "equal"}
    return bad


def _judge_here(answer: str | None, gold: str) -> str:
    """Returns the verdict of the cheap cases, or '' if math-verify has to decide."""
    if answer is None:
        return "no answer"
    wanted, number = plain_number(gold), plain_number(answer)
    if wanted is not None and number is not None:
        return "equal" if number == wanted else "different"
    if wanted is not None and wanted == plain_number(without_unit(answer)):
        return "equal"
    return "too long" if len(answer) > MAX_ANSWER else ""


def plain_number(text: str) -> Decimal | None:
    """Returns the value of a plain number such as `-1,234.50`, with or without dollar signs, or None."""
    text = text.replace("\\$", "").replace("$", "").replace("\\!", "").replace("{,}", ",").replace("\\,", ",")
    text = text.strip().rstrip(".")
    return Decimal(text.replace(",", "")) if text.lstrip("+-") and _NUMBER.fullmatch(text) else None


def without_unit(text: str) -> str:
    r"""Returns the number of `18 dollars per day`, `\text{5 apples}`, `42 (apples)` or `50\%`; other texts unchanged.

    math-verify reads bare words as products of letters. A word that makes it another number (`3 million`) stays.
    """
    text = re.sub(r"\\(?:text|mathrm)\s*\{([^{}]*)\}", r"\1", text).strip()
    found = _UNIT.fullmatch(text)
    if found is None or _COUNTS & set(found["unit"].strip("(). !").lower().split()):
        return text
    return found["number"]


def _typed(text: str) -> str:
    return text.translate(_TYPED).replace(r"\varnothing", r"\emptyset")


def _braced(text: str) -> str | None:
    r"""Returns what is before the brace that closes `\boxed{`, or None."""
    depth = 1
    for found in re.finditer(r"\\.|[{}]", text, flags=re.DOTALL):  # a backslash takes what follows: \} and \\ are one
        depth += (found[0] == "{") - (found[0] == "}")
        if depth == 0:
            return text[: found.start()]
    return None


def _first_line(text: str) -> str | None:
    lines = text.strip().splitlines()
    return lines[0].strip(" *$") or None if lines else None
