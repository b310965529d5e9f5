"""Any data set of reasoning-gym (arXiv 2505.24760) whose scorer compares texts, generated offline.

pip install reasoning-gym
autolayer pick --model Qwen/Qwen3-1.7B --task examples/reasoning_gym_tasks.py:basic_arithmetic

Data sets with a scorer of their own, such as countdown, are refused: some of these evaluate what a model writes, in
this process. To use one, read its `score_answer` first.
"""

from functools import partial
from typing import Any

import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS
from reasoning_gym.utils import extract_answer

from autolayer.tasks import Task, split_rows
from autolayer.tasks.base import as_prompt
from autolayer.tasks.rewards import text_of

INSTRUCTION = "Reason step by step, then give the final answer alone between <answer> and </answer>."


def make(name: str, chat: bool) -> Task:
    """The data set as a task: its questions of one fixed seed, each once."""
    dataset: Any = reasoning_gym.create_dataset(name, size=4096, seed=0)
    entries = {entry["question"]: entry for entry in dataset}
    rows = [
        {"prompt": as_prompt(f"{question}\n\n{INSTRUCTION}", chat), "answer": entry["answer"]}
        for question, entry in entries.items()
    ]

    def reward(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
        answers = [extract_answer(text_of(completion)) for completion in completions]
        return [dataset.score_answer(given, {"answer": wanted}) for given, wanted in zip(answers, answer, strict=True)]

    return Task(name=f"reasoning-gym:{name}", splits=split_rows(rows), reward=reward, max_new_tokens=1024)


for _name, (_dataset, _) in DATASETS.items():
    if _dataset.score_answer is ProceduralDataset.score_answer:
        globals()[_name] = partial(make, _name)
