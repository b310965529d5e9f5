"""A pick of the packaged model, made short."""

from pathlib import Path
from typing import Any

import autolayer
from autolayer.reporting.results import PickResult

SHORT: dict[str, Any] = {"model": "tiny", "task": "math:arith", "steps": 40, "prompts_per_step": 8, "num_eval": 200,
         "device": "cpu", "budget": 1.0}  # fmt: skip


def short_pick(out: Path, **options: Any) -> PickResult:
    settings: dict[str, Any] = {**SHORT, "out": str(out), **options}
    return autolayer.pick(**settings)


def decisions(result: PickResult) -> dict:
    """Everything that must not depend on the folder, the clock or an interruption."""
    values = result.to_dict()
    values.pop("cost_share_of_full_run")  # the price of a generated token is measured
    values["notes"] = [note for note in values["notes"] if not note.startswith("finding cost")]  # of the same price
    values["cost"] = {stage: cost["generated_tokens"] for stage, cost in values["cost"].items()}
    return values
