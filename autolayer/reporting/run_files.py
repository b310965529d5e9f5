"""What a report reads from a run folder beside result.json: the command that repeats it, the final run's rewards."""

import shlex
from pathlib import Path

from autolayer.core.config import TABLES, Config
from autolayer.core.run_folder import ARMS, CONFIG, RunFolder
from autolayer.reporting.results import PickResult


def repeat_command(folder: Path) -> str | None:
    """Returns the command that repeats a run on the same or another machine, or None if config.json is not there."""
    recorded = RunFolder(folder).read(CONFIG)
    if recorded is None:
        return None
    defaults = {name: field.default for name, field in Config.model_fields.items()}
    changed = {name: recorded[name] for name in defaults if name in recorded and recorded[name] != defaults[name]}
    words = ["autolayer", recorded.get("verb", "pick")]
    for name, value in changed.items():
        option = "--" + name.replace("_", "-")
        if name in TABLES:
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
    return shlex.join(words) + (f"  # with {', '.join(tables)} of {CONFIG} in a --config file" if tables else "")


def training_rewards(folder: Path, result: PickResult) -> list[float]:
    """Returns the mean training reward of each step of the final run, the short runs it went on from included."""
    if not result.trained_layers or result.learning_rate is None:
        return []
    found = RunFolder(folder)
    arms = sorted(folder.glob(f"{ARMS}/*_rate-{result.learning_rate:.9g}_seed-*/final/history.json"))
    history = found.read(str(arms[0].relative_to(folder))) if len(arms) == 1 else None
    return [sum(rewards) / len(rewards) for rewards in (history or {}).get("rewards", ()) if rewards]
