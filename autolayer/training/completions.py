"""Keeps sampled completions in completions.parquet, a table for the user, which no stage reads.

Of every training step it keeps whole groups, at most `PER_STEP` completions, and of a text `LONGEST_TEXT` characters.
Once the table would hold more than `MAX_BYTES`, the steps that are no multiple of 2 are left out, then those that are
no multiple of 4, and so on. The first and the last step of each arm stay, unless these alone are too many: then the
oldest rows go.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from autolayer.core.arms import Arm
from autolayer.core.run_folder import COMPLETIONS
from autolayer.core.whole_files import write_whole
from autolayer.rollouts.rollouts import Rollouts
from autolayer.rollouts.sampler import LONGEST_TEXT

logger = logging.getLogger(__name__)

PER_STEP = 64
MAX_BYTES = 64 * 2**20
"""Largest size in memory; the file is compressed."""


def completion_rows(arm: Arm, steps: Sequence[Rollouts], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Returns one row for each kept completion of the steps that follow the arm's.

    The columns are arm, step, prompt, completion, reward, rewards/NAME for every reward function, truncated, and what
    the reward functions gave to `log_extra`.
    """
    rows = []
    for step, rollouts in enumerate(steps, start=arm.step + 1):
        kept = rollouts[: max(1, PER_STEP // rollouts.group_size)]
        prompts = tokenizer.batch_decode(kept.prompt_ids, skip_special_tokens=True)
        for index, text in enumerate(kept.texts):
            row: dict[str, Any] = {
                "arm": arm.key,
                "step": step,
                "prompt": prompts[index][-LONGEST_TEXT:],
                "completion": text[:LONGEST_TEXT],
                "reward": kept.rewards[index],
                **{f"rewards/{name}": value for name, value in kept.judgements[index].items()},
                "truncated": not kept.finished[index],
            }
            rows.append(row | {name: value for name, value in kept.extras[index].items() if name not in row})
    return rows


def add_completions(folder: Path, rows: Sequence[dict[str, Any]], *, is_shared: bool) -> None:
    """Adds rows to the table of a run folder. Rows of the same arm and step replace those that are there.

    If the folder `is_shared`, several workers may add at the same time.
    """
    path = folder / COMPLETIONS
    lock = filelock.FileLock(folder / f".{COMPLETIONS}.lock", timeout=60) if is_shared else nullcontext()
    with lock:
        table = _table(rows)
        if path.exists() and (old := _read(path)) is not None:
            table = _joined(old, table)
        stride = 1
        while table.nbytes > MAX_BYTES and len(table):
            stride *= 2
            arms_and_steps = list(zip(table["arm"].to_pylist(), table["step"].to_pylist(), strict=True))
            last = dict(sorted(arms_and_steps))
            if stride > max(last.values()):
                table = table.slice(len(table) // 2 + 1)
            else:
                kept = [step % stride == 0 or step in (1, last[arm]) for arm, step in arms_and_steps]
                table = table.filter(pa.array(kept))
        write_whole(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    return pa.table({name: _column(values) for name, values in columns.items()})


def _column(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except Exception:  # of log_extra: values of several types, or half a character; as text, they have a place
        texts = [None if value is None else str(value).encode("utf-8", "replace").decode() for value in values]
        return pa.array(texts)


def _read(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path)
    except Exception as error:  # damage has many types
        logger.warning("%s is damaged and begins anew (%s).", path, " ".join(str(error).split())[:200])
        return None


def _joined(old: pa.Table, new: pa.Table) -> pa.Table:
    arms, steps = (np.asarray(old[name].to_pylist()) for name in ("arm", "step"))
    replaced = np.isin(arms, new["arm"].to_pylist()) & np.isin(steps, new["step"].to_pylist())
    old = old.filter(pa.array(~replaced))
    for name in {*old.column_names} & {*new.column_names}:
        kinds = {old.schema.field(name).type, new.schema.field(name).type}
        if pa.string() in kinds and pa.null() not in kinds:  # a column of log_extra may hold numbers first, then texts
            old, new = (each.set_column(each.column_names.index(name), name, each[name].cast(pa.string()))
                        for each in (old, new))  # fmt: skip
    return pa.concat_tables([old, new], promote_options="permissive")
