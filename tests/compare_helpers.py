"""Predictions and measurements made up for `compare`, saved as files, and the report that is shown of them."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from result_helpers import finished
from rich.console import Console

from autolayer.comparison.comparison import Comparison, JudgedRanking, Judgement
from autolayer.comparison.comparison_report import ComparisonReport
from autolayer.reporting.contribution import ArmGain, Contribution
from autolayer.reporting.results import PickResult, RankingRow

TRUTH = (0.3, 0.5, 1.1, 0.8, 0.7, 0.6, 0.2, 0.1)
FULL_GAIN = 0.2


def contribution(
    truth: Any = TRUTH, *, noise: float = 0.05, seeds: int = 3, seed: int = 0, **changes: Any
) -> Contribution:
    """A measured file: every seed is the truth and noise. A dict measures only some layers."""
    truth = truth if isinstance(truth, dict) else dict(enumerate(truth))
    generator = np.random.default_rng(seed)
    layers = {}
    for layer, value in truth.items():
        gains = tuple(float(FULL_GAIN * (value + noise * generator.normal())) for _ in range(seeds))
        mean = float(np.mean(gains)) / FULL_GAIN
        layers[layer] = ArmGain(
            learning_rate=1e-3, gains=gains, value=mean, low=mean - 2 * noise, high=mean + 2 * noise
        )
    full = ArmGain(learning_rate=1e-3, gains=(FULL_GAIN,) * seeds, value=FULL_GAIN, low=0.1, high=0.3)
    fields: dict[str, Any] = {
        "model": "tiny", "base": "abc", "architecture": "qwen3", "num_parameters": 1000, "task": "math:arith",
        "algorithm": "grpo", "num_layers": 8, "steps": 50, "prompts_per_step": 8, "group_size": 8,
        "seeds": tuple(range(seeds)), "num_items": 256, "base_score": 0.4, "full": full, "layers": layers,
        "best_layers": (2,), "level": 0.95, "seed_sd": 0.01, "ceiling": 0.9 if seeds > 1 else None,
        "estimator": "made up for a test", "rates": (1e-3,),
        "probes": {"sign_gain": tuple(range(len(layers))), "last": tuple(range(len(layers)))},
    }  # fmt: skip
    return Contribution(**(fields | changes))


def picked(predicted: Any = TRUTH, **changes: Any) -> PickResult:
    """A run stopped after `probe`: predictions with 80% intervals of half width .4, and two probes."""
    predicted = predicted if isinstance(predicted, dict) else dict(enumerate(predicted))
    rows = [
        RankingRow(layer=layer, predicted=value, predicted_low=value - 0.4, predicted_high=value + 0.4)
        for layer, value in sorted(predicted.items(), key=lambda item: -item[1])
    ]
    num_layers = changes.get("num_layers", 8)
    probes = {name: [sign * float(layer) if layer in predicted else None for layer in range(num_layers)]
              for name, sign in (("gradient_norm", 1), ("sign_gain", -1), ("random", 1))}  # fmt: skip
    later = dict.fromkeys(("tied_layers", "trained_layers", "verdict", "stop_reason", "expected_regret", "base_score",
                           "trained_score", "gain", "contribution_reference", "baselines"))  # fmt: skip
    fields: dict[str, Any] = {**later, "status": "incomplete", "num_layers": 8, "candidates": tuple(sorted(predicted)),
                              "best_layers": (rows[0].layer,), "ranking": tuple(rows), "probes": probes}  # fmt: skip
    return replace(finished(), **(fields | changes))


def rows(judged: Judgement) -> dict[str, JudgedRanking]:
    return {row.name: row for row in judged.rows}


def saved(folder: Path, value: PickResult | Contribution) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = "result.json" if isinstance(value, PickResult) else "contribution.json"
    (folder / name).write_text(json.dumps(value.to_dict()))
    return folder


def shown(found: Comparison, width: int = 140) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(ComparisonReport(found))
    return stream.getvalue()


def files(count: int = 4) -> list[Contribution]:
    return [contribution(np.roll(TRUTH, place // 2), seed=place, task=f"task-{place}") for place in range(count)]
