"""Loads `math` (GSM8K with its own test set) and `math:NAME`: public data, evaluated on the sets of arXiv 2607.01232.

The training set is cut by hash into `train`, `probe` and `select`, a tenth each for the last two. Problems of the
evaluation are removed from it; two problems are the same if they differ only in case, spaces and punctuation. Left out
on purpose: a search for paraphrases.
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from autolayer.core.errors import DataError
from autolayer.tasks.base import Row, Task, prompt_hash
from autolayer.tasks.hub import read_hub
from autolayer.tasks.math.answers import unusable
from autolayer.tasks.math.datasets import EVAL_DECODING, MAX_NEW_TOKENS, SAMPLES, SUITES, TRAINING, Source
from autolayer.tasks.math.formats import MathProblem
from autolayer.tasks.math.reward import NEXT_QUESTION, as_row, ends_in_answer, math_reward

logger = logging.getLogger(__name__)

MAX_PROBLEMS = 50_000
"""Problems taken from a training set, by hash: as many as the paper trained on (4 epochs, 391 steps of 512)."""
MAX_HELD_OUT = 2048
"""Maximum number of rows of `probe` and of `select`."""


def load_gsm8k(*, chat: bool) -> Task:
    """Loads the task `math`: GSM8K (Cobbe et al. 2021), whose public test split is `eval`."""
    evaluation = read_problems(SUITES["gsm8k"], "math")
    evaluation.sort(key=lambda problem: prompt_hash(problem.question))
    return Task(
        name="math",
        splits=cut(read_problems(TRAINING["gsm8k"], "math", evaluation), evaluation, chat),
        reward=math_reward,
        max_new_tokens=1024,
        is_well_formed=ends_in_answer,
        num_eval=512,
        stop=None if chat else NEXT_QUESTION,
    )


def load_public(name: str, *, chat: bool) -> Task:
    """Loads the training set that `datasets.TRAINING` has under this name as a task."""
    suites = {suite: read_problems(source, suite) for suite, source in SUITES.items()}
    evaluation = [(suite, problem) for suite, problems in suites.items() for problem in problems]
    problems = read_problems(
        TRAINING[name], f"math:{name}", [problem for _, problem in evaluation], max_problems=MAX_PROBLEMS
    )
    return Task(
        name=f"math:{name}",
        splits=cut(problems, [problem for _, problem in evaluation], chat),
        reward=math_reward,
        max_new_tokens=MAX_NEW_TOKENS,
        is_well_formed=ends_in_answer,
        num_eval=len(evaluation),
        suites=[suite for suite, _ in evaluation],
        samples=SAMPLES,
        eval_decoding=EVAL_DECODING,
        stop=None if chat else NEXT_QUESTION,
    )


def read_problems(
    source: Source, name: str, held_out: Collection[MathProblem] = (), max_problems: int | None = None
) -> list[MathProblem]:
    """Returns the problems of a public split that are not held out, each once, ordered by a hash of the question."""
    columns = {source.split: {source.question, source.answer}}
    parts: list[Any] = [
        read_hub(source.repository, configuration, columns)[source.split] for configuration in source.configurations
    ]
    places = [
        (prompt_hash(question), part, index)
        for part in parts
        for index, question in enumerate(part[source.question])  # a whole row would bring its long solution along
    ]
    places.sort(key=lambda place: place[0])
    taken = {_key(problem.question) for problem in held_out}
    found: dict[str, MathProblem] = {}
    left_out: Counter[str] = Counter()
    for _, part, index in places:
        problem = source.read(part[index])
        if isinstance(problem, str):
            left_out[problem] += 1
        elif (key := _key(problem.question)) in taken:
            left_out["in the evaluation as well"] += 1
        elif found.setdefault(key, problem) is not problem:
            left_out["there twice"] += 1
        if len(found) == max_problems:
            break
    # This takes seconds per thousand problems. In the middle of a run such an answer would end it.
    bad = unusable(problem.answer for problem in found.values())
    for key in [key for key, problem in found.items() if problem.answer in bad]:
        del found[key]
        left_out["with an answer that math-verify cannot check"] += 1
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        logger.warning("%s: %d problems of %s; left out: %s.", name, len(found), source.repository, reasons)
    if not found:
        raise DataError(
            f"{source.repository} as found here has no problem that can be used ({reasons if left_out else 'no row'}): "
            "this is not what it should hold. Remove that copy and load it again."
        )
    return list(found.values())


def cut(problems: Sequence[MathProblem], evaluation: Sequence[MathProblem], chat: bool) -> dict[str, list[Row]]:
    """Cuts problems into the four splits, by their question, so that base and chat models get the same ones."""
    ordered = sorted(problems, key=lambda problem: prompt_hash(problem.question))
    share = min(MAX_HELD_OUT, max(1, len(ordered) // 10))
    parts = {"probe": ordered[:share], "select": ordered[share : 2 * share], "train": ordered[2 * share :]}
    parts["eval"] = list(evaluation)
    return {name: [as_row(*problem, chat) for problem in part] for name, part in parts.items()}


def _key(question: str) -> str:
    """Returns a question without case, spaces and punctuation. Signs stay: `x-1` is not `x+1`."""
    return re.sub(r"[\s.,;:!?$'\"`]+", "", question).casefold()
