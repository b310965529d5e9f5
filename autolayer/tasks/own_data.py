"""Makes the task of `--data` and `--reward`, the user's own prompts and rewards.

Each row has a `prompt` (a text or a list of messages), any other columns for the rewards, and optionally a `split`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autolayer.core.config import Config
from autolayer.core.errors import DataError
from autolayer.tasks.base import SPLITS, Row, Task, prompt_hash, prompt_problem, split_of
from autolayer.tasks.data_files import read_rows
from autolayer.tasks.rewards import show

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024
MAX_SHOWN = 5  # broken rows named in one message


def load_own_data(config: Config, rewards: Sequence[Callable[..., Any]]) -> Task:
    """Loads the rows of `--data`, with these functions as their rewards.

    Rows go to the split that their `split` column names, which the rewards do not see, or else to that of their
    prompt's hash. Each split is in the order of the hash.
    """
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in sorted(_checked_rows(config), key=lambda row: prompt_hash(row["prompt"])):
        splits[row.pop("split", None) or split_of(row["prompt"])].append(row)
    return Task(
        name=config.task_name,
        splits=splits,
        reward=rewards,
        reward_weights=config.reward_weights,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _checked_rows(config: Config) -> list[Row]:
    """Returns every row of the data, all with the same columns. A column that a row lacks is None there."""
    path, named = config.data, dict(config.columns or ())
    rows: list[Row] = []
    problems, own_columns = [], {}
    for place, found in read_rows(str(path), config.split):
        try:
            if isinstance(found, ValueError):
                raise found
            own_columns |= dict.fromkeys(found)
            rows.append(_row(found, rows, named))
        except ValueError as error:
            problems.append(f"{place}: {error}")
    if problems:
        more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        kind, from_0 = ("rows", ", counted from 0,") if problems[0].startswith("row") else ("lines", "")
        shown = "; ".join(problems[:MAX_SHOWN])
        raise DataError(f"--data {path} has {kind}{from_0} that cannot be used: {shown}{more}.")
    if not rows:
        raise DataError(f"--data {path} is empty: give rows with a 'prompt'.")
    columns = dict.fromkeys(name for row in rows for name in row)
    if missing := [f"{ours}={theirs}" for ours, theirs in named.items() if ours not in columns]:
        raise DataError(f"--columns {','.join(missing)} names no column of {path}: it has {', '.join(own_columns)}.")
    for name in columns:
        if lacking := sum(name not in row for row in rows):
            logger.warning("--data %s: %d of %d rows have no '%s': it is None there.", path, lacking, len(rows), name)
    if repeated := len(rows) - len({prompt_hash(row["prompt"]) for row in rows}):
        logger.warning("--data %s: %d of %d rows repeat another row's prompt.", path, repeated, len(rows))
    return [{name: row.get(name) for name in columns} for row in rows]


def _row(found: Row, before: Sequence[Row], named: Mapping[str, str]) -> Row:
    """Returns a row like the first of those `before` it, or raises a ValueError that says what is wrong."""
    kept = {name: value for name, value in found.items() if name not in named and name not in named.values()}
    row = {ours: found[theirs] for ours, theirs in named.items() if theirs in found} | kept
    if "prompt" not in row:
        source, columns = named.get("prompt", "prompt"), ", ".join(found) or "none"
        raise ValueError(f"it has no '{source}' (its columns: {columns}); --columns prompt=COLUMN names another")
    if isinstance(messages := row["prompt"], list):
        row["prompt"] = [_message(each) if isinstance(each, dict) else each for each in messages]
    if problem := prompt_problem(row["prompt"]):
        raise ValueError(problem)
    if "split" in row and row["split"] not in SPLITS:
        raise ValueError(f"its 'split' is {show(row['split'], 40)}, none of {', '.join(SPLITS)}")
    first = before[0] if before else row
    if isinstance(row["prompt"], str) != isinstance(first["prompt"], str):
        raise ValueError("texts and message lists are mixed; the first row's 'prompt' is of the other kind")
    if ("split" in row) != ("split" in first):
        raise ValueError("some rows have a 'split' and others do not; give it to all or to none")
    return row


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a message without the nulls that tables fill in, and with a list of text parts as one text.

    A message that only calls tools has no content; the templates read an empty one.
    """
    kept = {name: value for name, value in message.items() if value is not None}
    if kept.get("tool_calls"):
        kept.setdefault("content", "")
    parts = kept.get("content")
    if isinstance(parts, list):
        for part in parts:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"its 'prompt' holds the part {show(part, 60)}; only parts of type 'text' can be read")
        kept["content"] = "".join(part["text"] for part in parts)  # as chat templates do
    return kept
