r"""Reads the public formats of mathematical problems.

Each function takes a row of one data set and returns its `MathProblem`, or the reason why the row is left out: a
problem without an answer that can be checked cannot be trained on.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from autolayer.core.errors import DataError
from autolayer.tasks.math.answers import MAX_ANSWER, last_boxed


class MathProblem(NamedTuple):
    """A question and its right answer."""

    question: str
    answer: str


Found = MathProblem | str
"""A problem, or why the row is left out, as an end of the message 'left out: 12 ...'."""

_PROOF = re.compile(r"\bprove\b|\bshow that\b", re.IGNORECASE)
_CHOICES = re.compile(  # "Let A: 1, B: 2" in the middle of a line are no choices
    r"\bA\s*[.)].*?\bB\s*[.)].*?\bC\s*[.)]|^\W*A\s*:.*?^\W*B\s*:.*?^\W*C\s*:", re.DOTALL | re.MULTILINE
)
_LETTERS = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?\s*\(?[A-F](?:[,\s]*[A-F])*\)?\.?\s*\}?")
_INSTRUCTION = re.compile(r"\s*(?:Please|Let's)\b[^\n]*\\boxed\{\}[^\n]*$")


def gsm8k(row: Mapping[str, Any]) -> Found:
    """Reads `question`, and `answer` ending in '#### 1,234' (GSM8K)."""
    if "####" not in row["answer"]:
        raise DataError(
            f"openai/gsm8k as found here has an answer without '####' ({row['answer'][:80]!r}): this is not GSM8K. "
            "Remove that copy and load it again."
        )
    return _problem(row["question"], row["answer"].rpartition("####")[2].strip().replace(",", ""))


def solved(row: Mapping[str, Any]) -> Found:
    r"""Reads `problem`, and `solution` with the answer in its last \boxed{} (MATH)."""
    return _problem(row["problem"], last_boxed(row["solution"]))


def numina(row: Mapping[str, Any]) -> Found:
    r"""Reads the same columns as `solved`, without proofs and multiple choice, which have no answer to check."""
    answer = last_boxed(row["solution"])
    if _PROOF.search(row["problem"]):
        return "proofs"
    if _CHOICES.search(row["problem"]) or (answer is not None and _LETTERS.fullmatch(answer)):
        return "with multiple choice"
    return _problem(row["problem"], answer)


def answered(row: Mapping[str, Any]) -> Found:
    """Reads `problem` (or `question`) and `answer` (MATH500, DeepScaleR, AMC)."""
    return _problem(row["problem"] if "problem" in row else row["question"], row["answer"])


def olympiad(row: Mapping[str, Any]) -> Found:
    """Reads `question`, after its `context` if it has one, and the list `final_answer` (OlympiadBench)."""
    context = (row.get("context") or "").strip()
    return _problem(f"{context}\n\n{row['question']}" if context else row["question"], ", ".join(row["final_answer"]))


def skywork(row: Mapping[str, Any]) -> Found:
    """Reads `prompt`, one message, and `reward_model.ground_truth`, a JSON list of answers (Skywork-OR1)."""
    truth = row["reward_model"]["ground_truth"]
    try:
        answers = json.loads(truth)
    except json.JSONDecodeError:  # a bare answer
        answers = truth
    answers = answers if isinstance(answers, list) else [truth]
    if len(answers) > 1:
        return "with several right answers"
    question = _INSTRUCTION.sub("", row["prompt"][-1]["content"])
    return _problem(question, str(answers[0]) if answers else None)


def _problem(question: str, answer: Any) -> Found:
    answer = "" if answer is None else str(answer).strip()
    # OlympiadBench writes "$2$"; "$1$ and $2$" stays as it is.
    inner = answer[1:-1]
    answer = inner.strip() if answer[:1] == answer[-1:] == "$" and "$" not in inner else answer
    if not answer:
        return "without an answer"
    if len(answer) > MAX_ANSWER:
        return f"with an answer of more than {MAX_ANSWER} characters"
    return MathProblem(question.strip(), answer) if question.strip() else "without a question"
