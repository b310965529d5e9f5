"""Loads `reasoning-gym:NAME`: any of the data sets that reasoning-gym generates (Stojanovski et al. 2025), offline.

The questions are those of one fixed seed, each once, cut into the four splits. The reward is the data set's own
`score_answer`, between 0 and 1, on the content of <answer></answer>. It runs in processes that can be killed, without
`eval` (math/disarm.py): some of these functions would run what a model writes. Left out on purpose: the curricula,
whose difficulty would change during a comparison, and `codeio`, which runs programs out of a data file.
"""

import base64
import functools
import importlib.util
import logging
import pickle
from collections import Counter
from collections.abc import Sequence
from typing import Any

from autolayer.core.errors import ConfigError, DataError, RewardError, unknown
from autolayer.tasks.base import Row, Task
from autolayer.tasks.math import answer_pool
from autolayer.tasks.math.disarm import disarm
from autolayer.tasks.math.reward import NEXT_QUESTION
from autolayer.tasks.rewards import show, text_of

logger = logging.getLogger(__name__)

PREFIX = "reasoning-gym:"
PACKAGE = '"autolayer[reasoning-gym]"'
SHARES = {"train": 8, "probe": 1, "select": 1, "eval": 2}
"""Share of each split, in twelfths of the questions."""
NUM_QUESTIONS, MIN_QUESTIONS = 3072, 768
"""Number of different questions to take, and the minimum: 64 for the smallest split."""
SEED = 0
"""Seed of the questions: a task is the same in every run."""
MAX_NEW_TOKENS = 1024
INSTRUCTION = (
    "Reason step by step, then give the final answer alone between <answer> and </answer>, in the form that the "
    "question asks for."
)
REFUSED = {"codeio": "making its questions runs programs out of a data file, unsandboxed"}
MAX_KILLED = 0.05  # share of a batch

unscored: Counter[str] = Counter()
"""Counts the answers on which `score_answer` failed in this process, by reason: 'timeout', 'crash' or 'error'."""


def check_reasoning_gym(name: str) -> None:
    """Refuses a name that reasoning-gym does not have. Imports reasoning-gym.

    Raises:
        ConfigError: reasoning-gym is not installed, or the data set is not safe to make.
        UnknownNameError: There is no data set of this name.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ConfigError(f"--task {PREFIX}{name} needs the package reasoning-gym: `pip install {PACKAGE}`.")
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise unknown("reasoning-gym data set", name, sorted(DATASETS))
    if name in REFUSED:
        raise ConfigError(f"--task {PREFIX}{name} is refused ({REFUSED[name]}): take another of its data sets.")


def load_reasoning_gym(name: str, *, chat: bool) -> Task:
    """Loads a generated data set as a task.

    Args:
        name: Name of the data set in reasoning-gym, such as `chain_sum`.
        chat: Makes message prompts, for a model with a chat template, rather than plain text for a base model.

    Raises:
        AutolayerError: reasoning-gym is not installed, or the data set does not exist, cannot be made with its default
            settings, or has too few different questions.
    """
    check_reasoning_gym(name)
    entries = _entries(name)
    golds = [_packed(name, entry) for entry in entries]

    def reward(
        prompts: Sequence[Any], completions: Sequence[Any], entry: Sequence[int], log_metric: Any = None, **columns: Any
    ) -> list[float]:
        answers = [_answer(text_of(completion)) for completion in completions]
        return _score(answers, [golds[index] for index in entry], log_metric)

    return Task(
        name=PREFIX + name,
        splits=_cut([_row(index, entry, chat) for index, entry in enumerate(entries)]),
        reward=reward,
        max_new_tokens=MAX_NEW_TOKENS,
        is_well_formed=lambda text: _answer(text) is not None,
        num_eval=512,
        stop=None if chat else NEXT_QUESTION,
    )


def serve() -> None:
    """Runs in a worker of `answer_pool`: scores answers for a pickled (name, entry)."""
    import reasoning_gym

    disarm("reasoning_gym")

    @functools.lru_cache(maxsize=64)
    def entry_of(gold: str) -> tuple[str, dict[str, Any]]:
        return pickle.loads(base64.b64decode(gold))  # made by the parent: nothing of a model's is in it

    dataset = functools.cache(lambda name: reasoning_gym.create_dataset(name, size=NUM_QUESTIONS, seed=SEED))

    def score(answer: str, gold: str) -> str:
        name, entry = entry_of(gold)
        return str(float(dataset(name).score_answer(answer, entry)))

    answer_pool.answer_requests(score)


def _entries(name: str) -> list[dict[str, Any]]:
    """Returns the first different questions, up to `NUM_QUESTIONS` of them."""
    import reasoning_gym

    size = 2 * NUM_QUESTIONS  # some come twice
    found: dict[str, dict[str, Any]] = {}
    try:
        dataset = reasoning_gym.create_dataset(name, size=size, seed=SEED)
        for index in range(size):
            entry = dataset[index]
            found.setdefault(entry["question"].strip(), entry)
            if len(found) == NUM_QUESTIONS:
                break
    except Exception as error:  # whatever that generator raises
        raise DataError(
            f"reasoning-gym cannot make '{name}' with its default settings ({type(error).__name__}: {error}): take "
            "another of its data sets."
        ) from error
    if len(found) < MIN_QUESTIONS:
        raise DataError(
            f"reasoning-gym's '{name}' has {len(found)} different questions among {size}, too few for four splits that "
            f"share none ({MIN_QUESTIONS} are needed): take another of its data sets."
        )
    return list(found.values())


def _row(index: int, entry: dict[str, Any], chat: bool) -> Row:
    question = entry["question"].strip()
    text = f"{question}\n\n{INSTRUCTION}" if chat else f"{INSTRUCTION}\n\nQuestion: {question}\nAnswer:"
    return {"prompt": [{"role": "user", "content": text}] if chat else text, "entry": index}


def _cut(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Cuts the rows into splits, one after the other: the generator's order is random already."""
    unit, start = len(rows) // sum(SHARES.values()), 0
    splits = {}
    for split, share in SHARES.items():
        splits[split] = list(rows[start : start + share * unit])
        start += share * unit
    return splits


def _packed(name: str, entry: dict[str, Any]) -> str:
    """Returns what a worker needs to score an answer. JSON would turn the tuples in an entry into lists."""
    return base64.b64encode(pickle.dumps((name, entry))).decode()


def _answer(text: str) -> str | None:
    """Returns the content of the last complete <answer></answer>, as reasoning-gym reads it."""
    from reasoning_gym.utils import extract_answer

    return extract_answer(text.partition(NEXT_QUESTION)[0])


def _score(answers: Sequence[str | None], golds: Sequence[str], log_metric: Any) -> list[float]:
    """Returns scores: 0.0 without an answer, and if scoring failed, which is logged and counted.

    Raises:
        RewardError: Too many answers had to be killed.
    """
    asked = list(dict.fromkeys((a, gold) for a, gold in zip(answers, golds, strict=True) if a))
    pool = answer_pool.pool("autolayer.tasks.reasoning_gym", PACKAGE)
    said = dict(zip(asked, pool.compare(asked) if asked else [], strict=True))
    reasons = [said.get((answer or "", gold), "0.0") for answer, gold in zip(answers, golds, strict=True)]
    failed = [reason for reason in reasons if reason in answer_pool.FAILURES]
    unscored.update(failed)
    if failed:
        first = next(pair[0] for pair, reason in said.items() if reason in answer_pool.FAILURES)
        counts = ", ".join(f"{count} {reason}" for reason, count in Counter(failed).items())
        logger.warning(
            "%d answers score 0 because scoring failed (%s), the first %s.", len(failed), counts, show(first)
        )
    if log_metric is not None:
        log_metric("answers/unjudged", len(failed) / max(1, len(reasons)))
    # An 'error' means that the scorer cannot read nonsense. A killed scorer may have had a right answer.
    killed = len(failed) - failed.count("error")
    if killed > max(2, MAX_KILLED * len(reasons)):
        raise RewardError(
            f"{killed} of {len(reasons)} answers could not be scored in {answer_pool.TIME_LIMIT:g} seconds: the "
            "rewards would mean nothing. If the machine is overloaded, give it fewer jobs; else take another data set."
        )
    return [0.0 if reason in answer_pool.FAILURES else float(reason) for reason in reasons]
