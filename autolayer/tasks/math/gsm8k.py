r"""`math`: grade-school word problems (GSM8K, Cobbe et al. 2021), answered in \boxed{}.

The public test split is `eval`; the public train split is cut 80/10/10, by hash, into `train`, `probe` and `select`.
Read through `datasets`, from the network or a local cache. There is no stand-in for it: a score on generated problems
under this name would be taken for one on GSM8K.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from autolayer.errors import DataError
from autolayer.tasks.base import Row, Task, prompt_hash
from autolayer.tasks.hub import read_hub
from autolayer.tasks.math.answer_pool import FAILURES
from autolayer.tasks.math.answers import final_answer, has_answer, judge
from autolayer.tasks.rewards import text_of

logger = logging.getLogger(__name__)

REPOSITORY, CONFIGURATION = "openai/gsm8k", "main"
INSTRUCTION = r"Reason step by step, and put the final answer in \boxed{}."
NEXT_QUESTION = "\nQuestion:"  # where a base model goes on by inventing the next problem


def load_math(*, chat: bool) -> Task:
    """GSM8K as a task.

    Args:
        chat: Message prompts, for a model with a chat template; else plain text that a base model can go on with.

    Raises:
        DataError: The data set is neither reachable nor in a local cache.
    """
    public = _read()
    return Task(
        name="math",
        splits=_splits(public, chat),
        reward=math_reward,
        max_new_tokens=1024,
        is_well_formed=_is_well_formed,
        num_eval=512,
    )


def math_reward(
    prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[str], log_metric: Any = None, **columns: Any
) -> list[float]:
    """1.0 for a final answer equal to `answer`, else 0.0. Serves any data with an `answer` column."""
    verdicts = judge([final_answer(_own_part(text_of(c))) for c in completions], [str(a) for a in answer])
    if log_metric is not None:
        num_unjudged = sum(verdict.reason in FAILURES for verdict in verdicts)
        log_metric("answers/unjudged", num_unjudged / max(1, len(verdicts)))
    return [float(verdict.correct) for verdict in verdicts]


def _is_well_formed(text: str) -> bool:
    return has_answer(_own_part(text))


def _own_part(text: str) -> str:
    return text.partition(NEXT_QUESTION)[0]


def _splits(public: Mapping[str, Sequence[Mapping[str, str]]], chat: bool) -> dict[str, list[Row]]:
    evaluation = [_row(row, chat) for row in public["test"]]
    seen = {prompt_hash(row["prompt"]) for row in evaluation}
    rows = [row for row in (_row(row, chat) for row in public["train"]) if prompt_hash(row["prompt"]) not in seen]
    if dropped := len(public["train"]) - len(rows):
        logger.warning("math: %d rows of %s's train split are in its test split too: left out.", dropped, REPOSITORY)
    # Twice the same question must not fall on both sides of a cut.
    unique = list({prompt_hash(row["prompt"]): row for row in rows}.values())
    # Ordered by the question, so that base and chat models get the same problems in each split.
    train = sorted(unique, key=lambda row: prompt_hash(row["question"]))
    evaluation.sort(key=lambda row: prompt_hash(row["question"]))
    share = max(1, len(train) // 10)
    return {
        "probe": _without_question(train[:share]),
        "select": _without_question(train[share : 2 * share]),
        "train": _without_question(train[2 * share :]),
        "eval": _without_question(evaluation),
    }


def _row(row: Mapping[str, str], chat: bool) -> Row:
    question, answer = row["question"].strip(), row["answer"].rpartition("####")[2].strip().replace(",", "")
    if chat:
        prompt: Any = [{"role": "user", "content": f"{question}\n\n{INSTRUCTION}"}]
    else:
        prompt = f"{INSTRUCTION}\n\nQuestion: {question}\nAnswer:"
    return {"prompt": prompt, "answer": answer, "question": question}


def _without_question(rows: Sequence[Row]) -> list[Row]:
    return [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows]


def _read() -> Mapping[str, Sequence[Mapping[str, str]]]:
    """The public splits, checked for the format that everything here relies on."""
    columns = {"question", "answer"}
    public = read_hub(REPOSITORY, CONFIGURATION, {"train": columns, "test": columns})
    for split in public.values():
        if bad := next((row for row in split if "####" not in row["answer"]), None):
            raise DataError(
                f"{REPOSITORY} as found here has an answer without '####' ({bad['answer'][:80]!r}): this is not "
                "GSM8K. Remove it from the cache and load it again."
            )
    return public
