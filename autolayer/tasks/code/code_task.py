"""Loads `code` and its variants: programs that a model writes, judged by hidden tests in the sandbox.

`code` trains on DeepCoder and is evaluated on HumanEval and the sanitized test split of MBPP. `code:mbpp` trains on
MBPP's own training splits. `code:humaneval`, 164 problems without a training split, is cut by hash. `code:small` ships.
A public data set that cannot be read is an error and never replaced by another one.
"""

import functools
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autolayer.core.errors import DataError
from autolayer.tasks.base import Row, Task, prompt_hash, split_rows
from autolayer.tasks.code import public
from autolayer.tasks.code.grade import grade
from autolayer.tasks.code.problems import parse_problem
from autolayer.tasks.code.programs import FENCE, OPENING, is_answer, program_of
from autolayer.tasks.code.public import Question
from autolayer.tasks.code.sandbox.open_sandbox import open_sandbox
from autolayer.tasks.rewards import text_of

logger = logging.getLogger(__name__)

SMALL = Path(__file__).resolve().parents[2] / "data" / "code" / "small.jsonl"
INSTRUCTION = "Put the complete Python program in one ```python block."


def load_code(*, chat: bool, allow_unsandboxed: bool = False, share: bool = False) -> Task:
    """Loads `code`: DeepCoder for training, HumanEval and MBPP for the evaluation. `share`: see `make_code_reward`."""
    reward = make_code_reward(allow_unsandboxed=allow_unsandboxed, share=share)
    evaluation = public.humaneval() + public.mbpp("sanitized", ("test",))
    return _task("code", _cut(public.deepcoder(), evaluation, chat), reward, chat, max_new_tokens=4096)


def load_mbpp(*, chat: bool, allow_unsandboxed: bool = False, share: bool = False) -> Task:
    """Loads MBPP: training, validation and prompt splits for training, the sanitized test split for the evaluation."""
    reward = make_code_reward(allow_unsandboxed=allow_unsandboxed, share=share)
    training = public.mbpp("full", ("train", "validation", "prompt"))
    return _task("code:mbpp", _cut(training, public.mbpp("sanitized", ("test",)), chat), reward, chat)


def load_humaneval(*, chat: bool, allow_unsandboxed: bool = False, share: bool = False) -> Task:
    """Loads HumanEval, cut by hash."""
    reward = make_code_reward(allow_unsandboxed=allow_unsandboxed, share=share)
    return _task("code:humaneval", split_rows([_row(q, chat) for q in public.humaneval()]), reward, chat)


def load_small(*, chat: bool, allow_unsandboxed: bool = False, share: bool = False) -> Task:
    """Loads the packaged problems, a sixth of them in each of `probe`, `select` and `eval`."""
    reward = make_code_reward(allow_unsandboxed=allow_unsandboxed, share=share)
    questions = sorted(small_questions(), key=lambda question: prompt_hash(question.text))
    num = len(questions) // 6
    return _task("code:small", _cut(questions[num:], questions[:num], chat, share=num), reward, chat)


def make_code_reward(*, allow_unsandboxed: bool = False, share: bool = False) -> Callable[..., list[float]]:
    """Makes the reward of these tasks, for any data with a `problem` column (see `problems`).

    A program that passes all tests earns 1.0, another one 0.0, or with `share` the share of the tests that it passes.
    """
    open_sandbox(allow_unsandboxed=allow_unsandboxed)  # a missing one is an error here, not in the middle of a run

    def code_reward(
        prompts: Sequence[Any], completions: Sequence[Any], problem: Sequence[Any], log_metric: Any = None, **_: Any
    ) -> list[float]:
        problems = [parse_problem(given) for given in problem]
        programs = [
            program_of(prompt, text_of(completion), given.prefix)
            for prompt, completion, given in zip(prompts, completions, problems, strict=True)
        ]
        scores = grade(programs, problems, open_sandbox(allow_unsandboxed=allow_unsandboxed), share=share)
        if log_metric is not None:
            for reason, num in Counter(score.reason for score in scores).items():
                log_metric(f"programs/{reason.replace(' ', '_')}", num / len(scores))
        return [score.share if share else float(score.passed) for score in scores]

    code_reward.check_row = _check_row  # type: ignore[attr-defined]
    return code_reward


def _check_row(row: Row) -> None:
    parse_problem(row.get("problem"))


def small_questions() -> list[Question]:
    """Returns the packaged problems."""
    questions = []
    for line in SMALL.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        example = f"Your code should pass tests such as this one:\n\n{row['tests'][0]}"
        problem = {"tests": row["tests"], "entry_point": row["entry_point"]}
        questions.append(Question(f"{row['text']}\n{example}", json.dumps(problem)))
    return questions


def _task(
    name: str, splits: dict[str, list[Row]], reward: Callable[..., Any], chat: bool, max_new_tokens: int = 1024
) -> Task:
    return Task(
        name=name,
        splits=splits,
        reward=reward,
        max_new_tokens=max_new_tokens,
        is_well_formed=functools.partial(is_answer, chat=chat),
        num_eval=512,
        stop=None if chat else FENCE,
    )


def _row(question: Question, chat: bool) -> Row:
    parse_problem(question.problem)
    text = question.text or f"Complete this program:\n\n{OPENING}{question.prefix}```"
    if chat:
        prompt: Any = [{"role": "user", "content": f"{text}\n\n{INSTRUCTION}"}]
    else:
        prompt = question.prefix or f"{text}\n\n{OPENING}"
    return {"prompt": prompt, "problem": question.problem}


def _cut(
    training: Sequence[Question], evaluation: Sequence[Question], chat: bool, share: int | None = None
) -> dict[str, list[Row]]:
    """Cuts `train`, `probe` and `select` from the training questions, ordered by hash; `eval` is the evaluation."""
    asked = {prompt_hash(_key(question)) for question in evaluation}
    unique = {key: q for q in training if (key := prompt_hash(_key(q))) not in asked}
    if len(unique) < 3:
        raise DataError(f"{len(unique)} different problems to train on are too few: three splits are cut from them.")
    if dropped := len(training) - len(unique):
        logger.warning("%d problems are there twice, or in the evaluation too: left out of training.", dropped)
    rows = [_row(unique[key], chat) for key in sorted(unique)]
    share = share or max(1, len(rows) // 10)
    return {
        "probe": rows[:share],
        "select": rows[share : 2 * share],
        "train": rows[2 * share :],
        "eval": [_row(question, chat) for question in sorted(evaluation, key=lambda q: prompt_hash(_key(q)))],
    }


def _key(question: Question) -> str:
    return f"{question.text}\n{question.prefix}"
