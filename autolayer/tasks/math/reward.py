r"""Defines the prompt of a mathematical problem and the reward of its answer, for every data set with an answer.

The prompt asks for an answer in \boxed{}; `answers.final_answer` finds it and `answers.judge_answers` compares it.
"""

from collections.abc import Sequence
from typing import Any

from autolayer.tasks.base import Row, as_prompt
from autolayer.tasks.math.answer_pool import FAILURES
from autolayer.tasks.math.answers import final_answer, judge_answers
from autolayer.tasks.rewards import text_of

INSTRUCTION = r"Reason step by step, and put the final answer in \boxed{}."
NEXT_QUESTION = "\nQuestion:"  # a base model may continue with a problem of its own


def as_row(question: str, answer: str, chat: bool) -> Row:
    """Returns a problem as a message for a chat model, or as plain text that a base model can continue."""
    text = f"{question}\n\n{INSTRUCTION}" if chat else f"{INSTRUCTION}\n\nQuestion: {question}\nAnswer:"
    return {"prompt": as_prompt(text, chat), "answer": answer}


def math_reward(
    prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[str], log_metric: Any = None, **columns: Any
) -> list[float]:
    """Returns 1.0 for a final answer equal to `answer`, else 0.0, for any data with an `answer` column."""
    verdicts = judge_answers([final_answer(_own_part(text_of(c))) for c in completions], [str(a) for a in answer])
    if log_metric is not None:
        num_unjudged = sum(verdict in FAILURES for verdict in verdicts)
        log_metric("answers/unjudged", num_unjudged / max(1, len(verdicts)))
    return [float(verdict == "equal") for verdict in verdicts]


def ends_in_answer(text: str) -> bool:
    """Returns True if a completion ends in an answer that can be checked, right or wrong."""
    return final_answer(_own_part(text)) is not None


def _own_part(text: str) -> str:
    return text.partition(NEXT_QUESTION)[0]
