"""Reads `--data FILE.jsonl`, the user's own prompts.

Each line is a JSON object with a `prompt` (a text or a list of messages), any other columns for the reward, and
optionally a `split`. Left out on purpose: other formats, each with its own rules about types and missing values.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from autolayer.core.errors import DataError
from autolayer.tasks.base import SPLITS, Row, Task, prompt_hash, prompt_problem, split_rows
from autolayer.tasks.rewards import show

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024
MAX_SHOWN = 5  # broken lines named in one message


def load_jsonl(path: str, reward: Callable[..., Any]) -> Task:
    """Loads the task of `--data` and `--reward`.

    Raises:
        DataError: The file cannot be used; the message names the lines.
    """
    return Task(
        name=Path(path).stem,
        splits=_split(path, read_rows(path)),
        reward=reward,
        max_new_tokens=MAX_NEW_TOKENS,
    )


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


def read_rows(path: str) -> list[Row]:
    """Returns every row of the file, all with the same columns. A column that a row lacks is None there."""
    check_path(path)
    rows, problems = [], []
    for number, line in _lines(path):
        try:
            row = _row(line)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        rows.append(row)
        if isinstance(row["prompt"], str) != isinstance(rows[0]["prompt"], str):
            problems.append(
                f"line {number}: texts and message lists are mixed; the first row's 'prompt' is of the other kind"
            )
        if ("split" in row) != ("split" in rows[0]):
            problems.append(f"line {number}: some rows have a 'split' and others do not; give it to all or to none")
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


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Yields the number and text of every line that is not blank."""
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"--data {path}, line {number}: not UTF-8 ({error.reason}): save the file as UTF-8."
            ) from None
        if text:
            yield number, text


def _row(line: str) -> Row:
    """Returns one line as a row, or raises a ValueError that says what is wrong with it."""
    try:
        row = json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at character {error.pos + 1})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{show(row, 60)} is not a JSON object")
    if "prompt" not in row:
        raise ValueError(f"it has no 'prompt' (its columns: {', '.join(row) or 'none'})")
    if problem := prompt_problem(row["prompt"]):
        raise ValueError(problem)
    if "split" in row and row["split"] not in SPLITS:
        raise ValueError(f"its 'split' is {show(row['split'], 40)}, none of {', '.join(SPLITS)}")
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON; use null or a number")


def _split(path: str, rows: list[Row]) -> dict[str, list[Row]]:
    """Splits by the `split` column, which the reward does not see, or by hash, and orders by hash in both cases."""
    if "split" not in rows[0]:
        return split_rows(rows)
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in sorted(rows, key=lambda row: prompt_hash(row["prompt"])):
        splits[row["split"]].append({name: value for name, value in row.items() if name != "split"})
    return splits
