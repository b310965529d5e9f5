"""Reads from a run folder, beside result.json, how to repeat the run, and the final run's rewards and completions.

A damaged file is as one that is not there: no report depends on it.
"""

import shlex
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from autolayer.core.config import TABLES, Config
from autolayer.core.errors import RunFolderError
from autolayer.core.run_folder import ARMS, COMPLETIONS, CONFIG, RunFolder
from autolayer.reporting.results import PickResult


def repeat_command(folder: Path) -> str | None:
    """Returns the command that repeats a run on the same or another machine, or None if config.json is not there."""
    recorded = _read(folder, CONFIG)
    if recorded is None:
        return None
    defaults = {name: field.default for name, field in Config.model_fields.items()}
    changed = {name: recorded[name] for name in defaults if name in recorded and recorded[name] != defaults[name]}
    words = ["autolayer", recorded.get("verb", "pick")]
    for name, value in changed.items():
        option = "--" + name.replace("_", "-")
        if name in TABLES or (name, value) == ("rollouts", "vllm"):
            continue
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif name == "reward":
            words += [word for one in ([value] if isinstance(value, str) else value) for word in (option, one)]
        elif isinstance(value, list):
            words += [option, ",".join("=".join(one) if isinstance(one, list) else str(one) for one in value)]
        else:
            words += [option, str(value)]
    tables = [
        f"[{name}]" for name in TABLES if name in changed and changed[name] != defaults[name].model_dump(mode="json")
    ]
    notes = [f"{', '.join(tables)} of {CONFIG} in a --config file"] if tables else []
    if changed.get("rollouts") == "vllm":  # config.json holds no address of a server
        notes.append("--rollouts vllm, or the URLs of vLLM servers")
    return shlex.join(words) + (f"  # with {', and '.join(notes)}" if notes else "")


def training_rewards(folder: Path, result: PickResult) -> list[float]:
    """Returns the mean training reward of each step of the final run, the short runs it went on from included."""
    arm = _final_arm(folder, result)
    history = {} if arm is None else _read(folder, f"{ARMS}/{arm}/final/history.json") or {}
    return [fmean(rewards) for rewards in history.get("rewards", ()) if rewards]


def first_and_last_completions(folder: Path, result: PickResult) -> list[dict[str, Any]]:
    """Returns one completion each of the first three prompts of the first and the last step kept of the final run.

    Step 1 is sampled from the base model. The prompts of the two steps differ.
    """
    arm = _final_arm(folder, result)
    if arm is None or not (folder / COMPLETIONS).is_file():
        return []
    from pyarrow import parquet

    columns = ["step", "prompt", "completion", "reward"]
    try:
        rows = parquet.read_table(folder / COMPLETIONS, columns=columns, filters=[("arm", "=", arm)]).to_pylist()
    except Exception:  # whatever pyarrow raises about a damaged file
        return []
    ends = {min(row["step"] for row in rows), max(row["step"] for row in rows)} if rows else ()
    found: list[dict[str, Any]] = []
    for step in sorted(ends):
        by_prompt = {row["prompt"]: row for row in reversed(rows) if row["step"] == step}
        found += list(reversed(by_prompt.values()))[:3]
    return found


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    with suppress(RunFolderError):
        return RunFolder(folder).read(name)
    return None


def _final_arm(folder: Path, result: PickResult) -> str | None:
    if not result.trained_layers or result.learning_rate is None:
        return None
    found = sorted(folder.glob(f"{ARMS}/*_rate-{result.learning_rate:.9g}_seed-*/final/history.json"))
    return found[0].parents[1].name if len(found) == 1 else None
