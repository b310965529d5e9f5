"""Shared part of the tasks for small pretrained models, whose prompts and completions have a few tokens.

A prompt shows one or two worked examples and one open problem. Problems, not prompts, are split: all prompts of a
problem are in one split, and worked examples come from `train`.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from autolayer.tasks.base import SPLITS, Row, Task
from autolayer.tasks.generated import exact_reward, split_of_line
from autolayer.tasks.rewards import text_of

SIZES = {"train": 2048, "probe": 512, "select": 512, "eval": 1024}


class Problem(NamedTuple):
    """One problem; those with equal keys share a split, such as 3 + 4 and 4 + 3."""

    key: str
    question: str
    answer: str


def few_token_task(
    name: str,
    problems: Sequence[Problem],
    write: Callable[[Problem, Sequence[Problem], random.Random], tuple[Any, str]],
    *,
    examples: int = 1,
    stop: str | None = None,
    **settings: Any,
) -> Task:
    """Makes a task from problems.

    Args:
        name: Name of the task.
        problems: All problems.
        write: Returns a prompt and its answer, given a problem, the worked examples, and a random state for the shape.
        examples: Number of worked examples.
        stop: Text that ends a completion, and is no part of the answer.
        **settings: Further fields of the task.
    """
    by_split = {split: [p for p in problems if split_of_line(f"{name}/{p.key}") == split] for split in SPLITS}
    splits: dict[str, list[Row]] = {}
    for split, size in SIZES.items():
        rng, own = random.Random(f"{name}/{split}"), by_split[split]
        rows = splits[split] = []
        rng.shuffle(own)
        for index in range(size):
            problem = own[index % len(own)]
            shown: dict[str, Problem] = {problem.key: problem}
            while len(shown) <= examples:
                example = rng.choice(by_split["train"])
                shown.setdefault(example.key, example)
            prompt, answer = write(problem, list(shown.values())[1:], rng)
            rows.append({"prompt": prompt, "answer": answer})

    def exactly_the_answer(completions: Sequence[Any], **columns: Any) -> list[float]:
        texts = map(text_of, completions)
        return exact_reward(completions=[text.partition(stop)[0] if stop else text for text in texts], **columns)

    return Task(name=name, splits=splits, reward=exactly_the_answer, num_eval=512, stop=stop, **settings)


def lines(problem: Problem, examples: Sequence[Problem], sign: str) -> tuple[str, str]:
    """Writes each example as a line of question, sign and answer, and last the open problem."""
    shown = [f"{each.question}{sign} {each.answer}" for each in examples]
    return "\n".join([*shown, f"{problem.question}{sign}"]), problem.answer


def turns(instruction: str, problem: Problem, examples: Sequence[Problem], form: str = "{}") -> tuple[Any, str]:
    """Writes messages for the chat template: an instruction, each example as a question and a reply, and a question."""
    messages = [{"role": "system", "content": instruction}]
    for each in examples:
        messages.append({"role": "user", "content": each.question})
        messages.append({"role": "assistant", "content": form.format(each.answer)})
    return [*messages, {"role": "user", "content": problem.question}], form.format(problem.answer)
