"""Reads `--data FILE.jsonl`, the user's own prompts.

Each line is a JSON object with a `prompt` (a text or a list of messages), any other columns for the reward, and
optionally a `split`. Left out on purpose: other formats, each with its own rules about types and missing values.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autolayer.core.errors import DataError
from autolayer.tasks.base import SPLITS, Row, Task, prompt_hash, prompt_problem, split_of
from autolayer.tasks.rewards import show

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024
MAX_SHOWN = 5  # broken lines named in one message


def check_path(path: str) -> None:
    """Refuses a file that does not exist or is not JSON lines. Reads nothing."""
    file = Path(path)
    if file.is_dir():
        raise DataError(f"--data {path} is a folder, and a --reward goes with a .jsonl file: give the file.")
    if file.suffix.lower() != ".jsonl":
        raise DataError(
            f"--data {path}: only .jsonl is read, one JSON object a line. To convert another format: "
            f"pandas.read_{file.suffix[1:] or 'csv'}(FILE).to_json('data.jsonl', orient='records', lines=True)."
        )
    if not file.is_file():
        raise DataError(f"--data {path} does not exist (looked for {file.absolute()}): give the path of a .jsonl file.")


def load_jsonl(path: str, rewards: Sequence[Callable[..., Any]], weights: Sequence[float] | None = None) -> Task:
    """Loads the task of `--data` and `--reward`.

    Rows go to the split that their `split` column names, which the reward does not see, or else to that of their
    prompt's hash. Each split is in the order of the hash.
    """
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in sorted(_read_rows(path), key=lambda row: prompt_hash(row["prompt"])):
        splits[row.pop("split", None) or split_of(row["prompt"])].append(row)
    return Task(
        name=Path(path).stem,
        splits=splits,
        reward=rewards,
        reward_weights=weights,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _read_rows(path: str) -> list[Row]:
    """Returns every row of the file, all with the same columns. A column that a row lacks is None there."""
    rows: list[Row] = []
    problems = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                rows.append(_row(line, rows))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    if problems:
        more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        raise DataError(f"--data {path} has lines that cannot be used: {'; '.join(problems[:MAX_SHOWN])}{more}.")
    if not rows:
        raise DataError(f"--data {path} is empty: give one JSON object with a 'prompt' a line.")
    columns = dict.fromkeys(name for row in rows for name in row)
    for name in columns:
        if lacking := sum(name not in row for row in rows):
            logger.warning("--data %s: %d of %d rows have no '%s': it is None there.", path, lacking, len(rows), name)
    if repeated := len(rows) - len({prompt_hash(row["prompt"]) for row in rows}):
        logger.warning("--data %s: %d of %d rows repeat another row's prompt.", path, repeated, len(rows))
    return [{name: row.get(name) for name in columns} for row in rows]


def _row(line: bytes, before: list[Row]) -> Row:
    """Returns a line as a row like the first of those `before` it, or raises a ValueError that says what is wrong."""
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason}): save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"{show(row, 60)} is not a JSON object")
    if "prompt" not in row:
        raise ValueError(f"it has no 'prompt' (its columns: {', '.join(row) or 'none'})")
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


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON; use null or a number")
