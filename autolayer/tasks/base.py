"""Defines `Task`: prompts in four disjoint splits, and a reward in TRL's signature.

`train` feeds RL, `probe` the probes, `select` every decision of the search. `eval` is read once, for the base and the
trained score. A split that leaks into another makes a number look better than it is, so this is checked for built-in
tasks and for the user's own alike.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autolayer.core.errors import DataError, RewardError
from autolayer.tasks.environment import MakeEnvironment
from autolayer.tasks.reward_functions import Judgement, call_rewards, checked_weights
from autolayer.tasks.rewards import PASSED_BY_TRL, as_completion, check_signature, show
from autolayer.tasks.suites import Decoding, check_suites

SPLITS = ("train", "probe", "select", "eval")
ADVISED_ROWS = 128
"""Rows below which the numbers of a split are noise: the race compares arms on this many prompts."""

Row = dict[str, Any]
"""A `prompt` (a text or a list of messages) and any further columns, which go to the reward."""

TRL_NAMES = frozenset((*PASSED_BY_TRL, "completion"))
"""Columns that could not reach the reward, because TRL passes something else under that name or drops them."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Prompts and the reward that judges what a model makes of them.

    Example:
        def reward(prompts, completions, answer, **kwargs):
            return [float(text.strip() == wanted) for text, wanted in zip(completions, answer)]

        rows = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(1000)]
        SUCCESSOR = Task(name="successor", splits=split_rows(rows), reward=reward, max_new_tokens=8)

    Raises:
        DataError: A split is missing, empty or shares a prompt with another, or a row is not usable.
        RewardError: The reward cannot be called with these columns.
    """

    name: str
    splits: Mapping[str, Sequence[Row]]
    """Rows of each of `SPLITS`, in an order that is kept: code that needs fewer rows takes the first ones."""
    reward: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None
    """TRL's signature: `reward(prompts=, completions=, completion_ids=, **columns)`, one number per completion, or
    several such functions, whose rewards are added up. None if an environment gives the rewards."""
    reward_weights: Sequence[float] | None = None
    """Weight of each reward function. None: all weigh 1."""
    reward_retries: int = 0
    """Times that a reward which has failed is called again before it ends the run."""
    max_new_tokens: int
    """Maximum tokens of a completion, or of each action in an environment."""
    environment: MakeEnvironment | None = None
    """Makes a new environment for every episode of a task of several turns."""
    max_turns: int = 1
    """Maximum number of actions in an episode."""
    max_context: int | None = None
    """Maximum tokens of a whole episode, prompt and observations included. None: all positions of the model."""
    is_well_formed: Callable[[str], bool] | None = None
    """Tells whether a text looks like an answer, so that calibration can tell 'badly formatted' from 'too hard'."""
    stop: str | None = None
    """Text that ends a completion, where a base model would invent the next question. The rewards see it."""
    num_eval: int | None = None
    """Rows of `eval` that are read; None means all. Each suite gives its proportional part, the first rows of it."""
    suites: Sequence[str] | None = None
    """The suite of each row of `eval`. The score is then the unweighted mean over suites of the mean over items."""
    samples: Mapping[str, int] = field(default_factory=dict)
    """Completions for each item of a suite, 1 by default. An item's reward is their mean."""
    eval_decoding: Decoding | None = None
    """Sampling parameters of `eval`. None: those of training."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    trainer_state: Any = None
    """The reward's argument in place of TRL's `TrainerState`; see `at`."""

    def __post_init__(self) -> None:
        if isinstance(self.splits, Mapping):  # a `datasets.Dataset` becomes rows: its slices are columns
            splits = {
                name: rows if isinstance(rows, list | tuple) else list(rows) for name, rows in self.splits.items()
            }
            object.__setattr__(self, "splits", splits)
        _check_splits(self.name, self.splits, by_row=self.environment is not None)
        for name in ("max_new_tokens", "max_turns", "max_context", "num_eval"):
            value = getattr(self, name)
            is_open = value is None and name in ("max_context", "num_eval")
            if not is_open and (not isinstance(value, int) or value < 1):
                raise DataError(f"task '{self.name}': {name} is {value!r}; give a whole number above 0.")
        check_suites(self.name, self.suites, self.samples, len(self.splits["eval"]))
        if self.reward is not None and self.environment is not None:
            raise DataError(f"task '{self.name}' has a reward and an environment, which gives rewards too: give one.")
        if self.stop is not None and (not isinstance(self.stop, str) or not self.stop or self.environment is not None):
            raise DataError(
                f"task '{self.name}': stop is {show(self.stop)}; give a text that ends a completion, or leave it out, "
                "as with an environment, whose actions end with the line or the message."
            )
        if self.environment is None:
            for function in self.rewards or (None,):
                check_signature(function, [name for name in self.splits["train"][0] if name != "prompt"])
        checked_weights(self.reward_weights, len(self.rewards))

    @property
    def rewards(self) -> tuple[Callable[..., Any], ...]:
        """The reward functions; none if an environment gives the rewards."""
        if isinstance(self.reward, list | tuple):
            return tuple(self.reward)
        return () if self.reward is None else (self.reward,)  # pyright: ignore[reportReturnType]

    @property
    def is_chat(self) -> bool:
        """True if the prompts are message lists, to which a chat template is applied."""
        return not isinstance(self.splits["train"][0]["prompt"], str)

    def at(self, trainer_state: Any) -> "Task":
        """Returns the task at another moment of training (TRL's `TrainerState`), which the reward may read."""
        task = copy.copy(self)  # the splits are checked already
        object.__setattr__(task, "trainer_state", trainer_state)
        return task

    def score(
        self,
        rows: Sequence[Row],
        texts: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[..., None] | None = None,
    ) -> list[float]:
        """Returns the rewards of completions, called and checked as in training; the arguments are those of `judge`."""
        return self.judge(rows, texts, completion_ids, log_metric)[0]

    def judge(
        self,
        rows: Sequence[Row],
        texts: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[..., None] | None = None,
        log_extra: Callable[..., None] | None = None,
    ) -> tuple[list[float], list[Judgement]]:
        """Returns the rewards of completions, and what each reward function returned for each of them.

        Args:
            rows: The row of each completion, so a row repeats for every completion of its group.
            texts: The completions.
            completion_ids: The tokens of each completion, for rewards that read them.
            log_metric: Called with a name and a number for each metric that the reward logs.
            log_extra: Called with a name and one value per completion for each column that the reward logs.

        Raises:
            RewardError: A reward raised, or returned something other than one finite number per completion, or no
                reward judges a completion.
        """
        if len(rows) != len(texts):
            raise RewardError(f"{len(texts)} completions for {len(rows)} rows: pass one row per completion.")
        if not rows:
            return [], []
        assert self.rewards, "an environment gives its rewards itself"
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        columns |= {
            "prompts": [row["prompt"] for row in rows],
            "completions": [as_completion(row["prompt"], text) for row, text in zip(rows, texts, strict=True)],
            "completion_ids": [[] for _ in rows] if completion_ids is None else list(completion_ids),
        }
        return call_rewards(
            self.rewards,
            columns,
            weights=self.reward_weights,
            retries=self.reward_retries,
            trainer_state=self.trainer_state,
            log_metric=log_metric,
            log_extra=log_extra,
        )


def as_prompt(text: str, chat: bool) -> Any:
    """Returns the text, or one user message, since many chat templates refuse two in a row."""
    return [{"role": "user", "content": text}] if chat else text


def split_of(prompt: str | Sequence[Mapping[str, Any]] | Row) -> str:
    """Returns the split of a prompt, 70/10/10/10, by its hash alone, so that a file that grows moves none to `eval`."""
    return SPLITS[max(0, prompt_hash(prompt) % 10 - 6)]


def split_rows(rows: Iterable[Row], *, by_row: bool = False) -> dict[str, list[Row]]:
    """Distributes rows by `split_of`, each split in the order of the hash.

    With `by_row` the whole row is hashed, for environments whose prompt is the same in every episode.
    """
    # In the order of the hash, because files are often sorted, and code that needs fewer rows takes the first ones.
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}

    def key(row: Row) -> Any:
        return row if by_row else row["prompt"]

    for row in sorted(rows, key=lambda row: prompt_hash(key(row))):
        splits[split_of(key(row))].append(row)
    return splits


def prompt_hash(prompt: Any) -> int:
    """Returns a hash of 64 bits of a prompt or a row, the same on every machine and in every process."""
    text = json.dumps(prompt, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and torch
        return value.tolist()
    raise DataError(
        f"a row holds {show(value)}, a {type(value).__name__}: rows tell episodes apart and may be moved to another "
        "process, so give only texts, numbers, lists and dictionaries."
    )


def prompt_problem(prompt: Any) -> str | None:
    """Returns what is wrong with a prompt, or None."""
    if isinstance(prompt, str):
        return _text_problem(prompt) if prompt.strip() else "its 'prompt' is empty"
    if not isinstance(prompt, list):
        return f"its 'prompt' is a {type(prompt).__name__}, neither a text nor a list of messages"
    if not prompt:
        return "its 'prompt' is an empty list"
    for message in prompt:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            return f"its 'prompt' holds {show(message, 60)}, no message such as {{'role': 'user', 'content': '...'}}"
        if problem := _text_problem(role + content):
            return problem
    return None


def _text_problem(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"its 'prompt' holds half of a character ({ascii(text[error.start])}, in {ascii(text[:40])}): texts were "
            "cut in the middle of an emoji; drop the half, or cut elsewhere"
        )
    return None


def _check_splits(task: str, splits: Mapping[str, Sequence[Row]], *, by_row: bool) -> None:
    """Refuses missing, empty and overlapping splits, and unusable rows. `by_row`: episodes may have the same prompt."""
    if not isinstance(splits, Mapping) or set(splits) != set(SPLITS):
        found = ", ".join(map(str, splits)) if isinstance(splits, Mapping) else type(splits).__name__
        raise DataError(f"task '{task}' needs the splits {', '.join(SPLITS)}; it has: {found or 'none'}.")
    if empty := [name for name in SPLITS if not len(splits[name])]:
        counts = ", ".join(f"{name} {len(splits[name])}" for name in SPLITS)
        raise DataError(
            f"task '{task}' has no row in {' and '.join(empty)} ({counts}): give more rows ({ADVISED_ROWS} in each "
            f"split are advised), or say in a 'split' column which row is {', '.join(SPLITS)}."
        )
    first = splits["train"][0]
    split_of_episode: dict[int, str] = {}
    for name in SPLITS:
        for index, row in enumerate(splits[name]):
            if problem := _row_problem(row, first):
                raise DataError(f"task '{task}', row {index} of '{name}': {problem}.")
            episode = row if by_row else row["prompt"]
            other = split_of_episode.setdefault(prompt_hash(episode), name)
            if other != name:
                raise DataError(
                    f"task '{task}': the {'row' if by_row else 'prompt'} {show(episode)} is in '{other}' and in "
                    f"'{name}'. The splits must be disjoint, or a result would be measured on what it was fitted to: "
                    "keep it in one of them."
                )
    if taken := sorted(TRL_NAMES.intersection(first)):
        raise DataError(f"task '{task}': TRL uses the column name {', '.join(taken)} itself: rename it.")


def _row_problem(row: Any, first: Row) -> str | None:
    if not isinstance(row, Mapping) or "prompt" not in row:
        return f"{show(row)} is no dictionary with a 'prompt'"
    if problem := prompt_problem(row["prompt"]):
        return problem
    if isinstance(row["prompt"], str) != isinstance(first["prompt"], str):
        return "texts and message lists are mixed; make every 'prompt' the same kind"
    if set(row) != set(first):
        differing = ", ".join(sorted(map(str, set(row) ^ set(first))))
        return f"it differs from the first row in the columns {differing}: give all rows the same"
    return None
