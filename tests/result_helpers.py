"""Finished records to read, write and print."""

from typing import Any

from autolayer.reporting.contribution import ArmGain, Contribution
from autolayer.reporting.results import Baseline, Gain, PickResult, RankingRow, Rung, StageCost, SuiteScore


def finished() -> PickResult:
    rung = Rung(steps=8, learning_rate=1e-3, seed=0, gain=0.1, low=0.05, high=0.15)
    return PickResult(
        status="ok", model="tiny", task="math:arith", algorithm="grpo", num_layers=3, candidates=(0, 1, 2),
        best_layers=(1,), tied_layers=(), trained_layers=(1,), verdict="clear", stop_reason="the leader is clear",
        expected_regret=0.01, learning_rate=1e-3, base_score=0.4, trained_score=0.6,
        gain=Gain(value=0.2, low=0.1, high=0.3, level=0.95, num_items=100), contribution_reference="best",
        suites={"math:arith": SuiteScore(num_items=100, samples=1, base_score=0.4, trained_score=0.6,
                                         base_truncated=0.2, trained_truncated=0.1, base_well_formed=0.8)},
        ranking=(
            RankingRow(layer=1, predicted=0.9, predicted_low=0.7, predicted_high=1.1, measured=1.0, measured_low=0.8,
                       measured_high=1.2, measured_steps=8, probability_best=0.97, rungs=(rung,)),
            RankingRow(layer=2, predicted=0.5, predicted_low=0.3, predicted_high=0.7, probability_best=0.02),
            RankingRow(layer=0, predicted=0.2, predicted_low=0.0, predicted_high=0.4, probability_best=0.01),
        ),
        baselines={"middle": Baseline(layer=1, predicted=0.9, measured=1.0)},
        probes={"gradient_norm": (1.0, 2.0, None)},
        cost={"probe": StageCost(generated_tokens=10.0, layer_tokens=100.0, seconds=1.5)}, cost_share_of_full_run=0.2,
        seed=0, signature="0123456789", versions={"autolayer": "0.1.0"}, notes=("a note",),
    )  # fmt: skip


def record(**changes: Any) -> Contribution:
    arm = ArmGain(learning_rate=1e-3, gains=(0.1, 0.2), value=0.5, low=0.3, high=0.7)
    values: dict[str, Any] = {
        "model": "tiny", "base": "ab", "architecture": "qwen3", "num_parameters": 10, "task": "math:arith",
        "algorithm": "grpo", "num_layers": 8, "steps": 3, "prompts_per_step": 2, "group_size": 8, "seeds": (0, 1),
        "num_items": 9, "base_score": 0.4, "full": arm, "layers": {1: arm, 4: arm}, "best_layers": (1,), "level": 0.95,
        "seed_sd": 0.01, "ceiling": 0.9, "estimator": "as told", "rates": (1e-3,), "probes": {"first": (2.0, 1.0)},
    }  # fmt: skip
    return Contribution(**{**values, **changes})


def result(num_layers: int = 6, **changes: Any) -> PickResult:
    """Returns a finished run with a made-up ranking, whose best layer is 3; `changes` replace fields of it."""
    order = [3, 2, 4, *(layer for layer in range(num_layers) if layer not in (2, 3, 4))]
    ranking = [
        RankingRow(
            layer=layer, predicted=1 - place / num_layers, predicted_low=-0.2, predicted_high=1.2,
            measured=0.9 if place < 4 else None, measured_low=0.5 if place < 4 else None,
            measured_high=1.3 if place < 4 else None, measured_steps=16 if place < 4 else None,
            probability_best=0.9 / 2**place, expected=0.8, expected_low=0.6, expected_high=1.0,
            relative_cost=1 - layer / (2 * num_layers),
        )
        for place, layer in enumerate(order)
    ]  # fmt: skip
    baselines = {"random": 1, "first": 0, "middle": num_layers // 2, "last": num_layers - 1}
    fields: dict[str, Any] = {
        "status": "ok", "model": "tiny", "task": "math:arith", "algorithm": "grpo", "num_layers": num_layers,
        "candidates": sorted(order), "best_layers": (3,), "tied_layers": (), "trained_layers": (3,), "verdict": "clear",
        "stop_reason": "the leader is clear", "expected_regret": 0.02, "learning_rate": 1e-3, "base_score": 0.41,
        "trained_score": 0.63, "gain": Gain(value=0.22, low=0.17, high=0.27, level=0.95, num_items=256),
        "contribution_reference": "best", "ranking": ranking,
        "baselines": {name: Baseline(layer=layer) for name, layer in baselines.items()},
        "probes": {"gradient_norm": [0.1] * num_layers},
        "cost": {"search": StageCost(generated_tokens=12345, layer_tokens=2.3e7, seconds=75)},
        "cost_share_of_full_run": 0.24, "seed": 0, "signature": "0123456789", "versions": {"autolayer": "0.1.0"},
    }  # fmt: skip
    return PickResult(**(fields | changes))
