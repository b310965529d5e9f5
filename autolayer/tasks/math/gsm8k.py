r"""Loads `math`: grade-school word problems (GSM8K, Cobbe et al. 2021), answered in \boxed{}.

The public test split is `eval`. The public train split is cut 80/10/10, by hash, into `train`, `probe` and `select`.
"""

from autolayer.tasks.base import Task, prompt_hash
from autolayer.tasks.math.datasets import SUITES, TRAINING
from autolayer.tasks.math.public import cut, read_problems
from autolayer.tasks.math.reward import INSTRUCTION, NEXT_QUESTION, ends_in_answer, math_reward

__all__ = ["INSTRUCTION", "load_math", "math_reward"]


def load_math(name: str = "math", *, chat: bool) -> Task:
    """Loads GSM8K as a task.

    Args:
        name: Name of the task.
        chat: Makes message prompts, for a model with a chat template, rather than plain text for a base model.

    Raises:
        DataError: The data set is neither reachable nor in a local cache.
    """
    evaluation = read_problems(SUITES["gsm8k"], name)
    evaluation.sort(key=lambda problem: prompt_hash(problem.question))
    return Task(
        name=name,
        splits=cut(read_problems(TRAINING["gsm8k"], name, evaluation), evaluation, chat),
        reward=math_reward,
        max_new_tokens=1024,
        is_well_formed=ends_in_answer,
        num_eval=512,
        stop=None if chat else NEXT_QUESTION,
    )
