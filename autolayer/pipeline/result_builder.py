"""Collects what the stages found into one PickResult."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autolayer.core.arms import Arm
from autolayer.core.budget import final_layers, full_run
from autolayer.core.costs import Cost
from autolayer.core.run_folder import ADAPTER
from autolayer.core.statistics import paired_interval
from autolayer.models import lora
from autolayer.pipeline.stages import Stages
from autolayer.probes import PROBES
from autolayer.probes.predictor import MIN_BASES
from autolayer.probes.probe_report import ProbeReport
from autolayer.reporting.results import Baseline, Gain, PickResult, RankingRow, Rung, SetRow, StageCost
from autolayer.rollouts.evaluation import Evaluation, suite_scores
from autolayer.search import records
from autolayer.training.calibration import Calibration

PACKAGES = ("autolayer", "torch", "transformers", "trl", "peft", "optuna", "scikit-learn", "numpy")
FINDING = ("calibrate", "probe", "search")
"""The stages that `--budget` pays for."""


@dataclass
class Summary:
    """Filled stage by stage; `result` may be asked for after any of them."""

    stages: Stages
    costs: dict[str, Cost] = field(default_factory=dict)
    full_run: Cost = field(default_factory=Cost)
    """Cost of one full run of the final training: planned, and as measured once it is over."""
    found: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    complete: bool = False
    """The final training has done all its steps."""
    ahead: Cost = field(default_factory=Cost)
    """Part of the search's cost: what idle workers ran ahead and nobody asked for."""

    @property
    def spent(self) -> Cost:
        """What finding the layer has cost so far."""
        return sum((self.costs[name] for name in FINDING if name in self.costs), Cost())

    def add_calibration(self, calibration: Calibration, cost: Cost) -> Calibration:
        self.costs["calibrate"] = cost
        units = self.stages.units(calibration)
        self.full_run = full_run(self.stages.config, units, final_layers(self.stages.config, self.stages.candidates))
        if calibration.truncated > 0.2:
            self.notes.append(f"{calibration.truncated:.0%} of the base model's completions hit the token limit")
        return calibration

    def add_probes(self, probed: ProbeReport, cost: Cost) -> ProbeReport:
        self.costs["probe"] = cost
        self.notes += probed.notes
        if self.stages.config.history is not None and not probed.learned_from:
            self.notes.append(
                f"--history was not used: it takes {MIN_BASES} measured bases to learn from, each with probe scores"
            )
        rows = [
            RankingRow(layer=layer, predicted=predicted, predicted_low=low, predicted_high=high)
            for layer, predicted, low, high in zip(
                probed.layers, probed.predicted, probed.low, probed.high, strict=True
            )
        ]
        rows.sort(key=lambda row: -(row.predicted or 0.0))
        depth = len(self.stages.bench.layers)
        self.found |= {
            "ranking": tuple(rows),
            "best_layers": (rows[0].layer,),
            "probes": {
                name: [dict(zip(probed.layers, scores, strict=True)).get(layer) for layer in range(depth)]
                for name, scores in probed.scores.items()
            },
            "baselines": _baselines(probed, rows),
        }
        self._probed = probed
        return probed

    def add_search(self, outcome: records.Outcome, cost: Cost) -> records.Outcome:
        self.costs["search"], self.ahead = cost, outcome.ahead
        best_at = _best_gains(outcome)
        single = self.stages.config.top_k == 1
        rows: tuple[Any, ...]
        if single:
            predicted = {row.layer: row for row in self.found["ranking"]}
            rows = tuple(_row(row, predicted[row.layers[0]], best_at) for row in outcome.ranking)
            raced = {row.layers[0] for row in outcome.ranking}
            ranking = rows + tuple(row for row in self.found["ranking"] if row.layer not in raced)
            self.found |= {"ranking": ranking, "baselines": _baselines(self._probed, ranking)}
        else:
            rows = tuple(
                _row(row, SetRow(layers=row.layers, predicted=row.predicted), best_at) for row in outcome.ranking
            )
            self.found["sets"] = rows
        if len(outcome.best) < self.stages.config.top_k:
            self.notes.append(
                f"only {len(outcome.best)} candidate layers move the policy: no more can be trained together"
            )
        self.notes += [
            f"{records.name_layers(row.layers)}: a short run failed ({row.failed})"
            for row in outcome.ranking
            if row.failed
        ]
        flat = sorted({row.measured_steps for row in rows if row.measured_steps and row.measured is None})
        if flat:
            steps = " and ".join(map(str, flat))
            self.notes.append(f"no layer had gained by step {steps}: such short runs say nothing about contribution")
        tied = sorted({*(layers[0] for layers in outcome.tied), *outcome.best}) if outcome.tied and single else ()
        self.found |= {
            "best_layers": outcome.best,
            "tied_layers": tuple(tied),
            "verdict": outcome.verdict,
            "stop_reason": outcome.stop_reason,
            "expected_regret": outcome.expected_regret,
            "learning_rate": outcome.winner.learning_rate,
            "contribution_reference": "best" if any(row.measured is not None for row in rows) else None,
        }
        return outcome

    def add_training(self, arm: Arm, base: Evaluation, trained: Evaluation, cost: Cost) -> Arm:
        self.costs["train"] = cost
        self.full_run = self.stages.bench.training_cost(arm)
        steps = self.stages.config.steps or 0
        self.complete = arm.step >= steps
        if arm.boosted:
            boosted = records.name_layers(arm.boosted)
            self.notes.append(f"all parameters were trained, {boosted} at {arm.boost:g} times the learning rate")
        if self.stages.config.adapter is not None:
            self.notes.append(f"LoRA adapters of rank {lora.RANK} were trained: the folder {ADAPTER} has them")
        if not self.complete:
            self.notes.append(f"--hours ended the training after {arm.step} of {steps} steps; the same command goes on")
            self.full_run *= steps / max(1, arm.step)
        interval = paired_interval(trained.rewards_I, base.rewards_I, suites_I=base.suites_I)
        if interval.low == interval.high:
            self.notes.append(
                f"all {interval.num_items} items changed by the same amount, so the interval has no width: that is no "
                "certainty, evaluate on more items"
            )
        layers = tuple(range(len(self.stages.bench.layers))) if arm.layers == "full" else arm.layers
        self.found |= {
            "trained_layers": layers,
            "best_layers": self.found.get("best_layers") if self._searched else layers,
            "learning_rate": arm.learning_rate,
            "base_score": base.score,
            "trained_score": trained.score,
            "suites": suite_scores(self.stages.bench.task, base, trained),
            "reward_metrics": {"base": dict(base.metrics), "trained": dict(trained.metrics)} if base.metrics else None,
            "gain": Gain(
                value=interval.value,
                low=interval.low,
                high=interval.high,
                level=interval.level,
                num_items=interval.num_items,
            ),
        }
        return arm

    @property
    def _searched(self) -> bool:
        return "verdict" in self.found

    def result(self) -> PickResult:
        """The result so far; fields of later stages are None."""
        stages, bench = self.stages, self.stages.bench
        rate = bench.exchange_rate()
        full = bench.costs.total(self.full_run, rate)
        share = bench.costs.total(self.spent, rate) / full if full else None
        notes, budget = [*standing_notes(stages), *self.notes], stages.config.budget or 0.0
        finds = "trained_layers" not in self.found or self._searched
        extra = bench.costs.total(self.ahead, rate) / full if full else 0.0
        if extra:
            notes.append(
                f"idle workers ran second seeds ahead that the race did not ask for: {extra:.0%} of one full run, on "
                "top of the budget"
            )
        if share is not None and share - extra > budget and finds:
            digits = 0 if f"{share:.0%}" != f"{budget:.0%}" else 2
            notes.append(
                f"finding cost {share - extra:.{digits}%} of one full run, more than the {budget:.{digits}%} asked "
                f"for: {stages.config.steps} steps of {stages.config.prompts_per_step} prompts are too few to probe "
                "for less"
            )
        if bench.effective:
            mean = sum(bench.effective) / len(bench.effective)
            notes.append(
                f"correcting for vLLM's numerics leaves an effective sample of {mean:.1%} of the tokens in the mean of "
                f"the batches, {min(bench.effective):.1%} in the worst"
            )
        return PickResult(
            status="ok" if self.complete else "incomplete",
            model=stages.config.model,
            task=bench.task.name,
            algorithm=stages.config.algorithm,
            num_layers=len(bench.layers),
            candidates=stages.candidates,
            cost={
                name: StageCost(
                    generated_tokens=cost.generated_tokens,
                    layer_tokens=bench.costs.total(cost, rate),
                    seconds=cost.seconds,
                )
                for name, cost in self.costs.items()
            },
            cost_share_of_full_run=share,
            seed=stages.config.seed,
            signature=stages.signature,
            versions={name: importlib.metadata.version(name) for name in PACKAGES},
            notes=tuple(notes),
            **self.found,
        )


def _best_gains(outcome: records.Outcome) -> dict[int, float]:
    """The largest short-run gain at each step, whoever went further: the unit of contribution among runs so long."""
    best: dict[int, float] = {}
    for rung in (rung for row in outcome.ranking for rung in row.rungs):
        best[rung.steps] = max(best.get(rung.steps, 0.0), rung.gain)
    return best


def standing_notes(stages: Stages) -> list[str]:
    """A plain word where not all of a run was made with the same files, or not all of the model is as it was."""
    files, notes = " and ".join(stages.changed), []
    if files:
        notes.append(f"the {files} file was changed during the run: parts of it were made with the old one")
    if stages.config.frozen is not None:
        bits = stages.config.frozen.removesuffix("bit")
        notes.append(
            f"{stages.packed:.0%} of the parameters, none of them trained, were held in {bits} bits, for both scores "
            "as well: the merged checkpoint, in full precision, scores a little differently"
        )
    return notes


def _row(row: records.RankingRow, predicted: Any, best_at: dict[int, float]) -> Any:
    """A row of the race in contribution: gains relative to the best one after equally many steps."""
    unit = best_at.get(row.measured_steps or 0, 0.0)

    def share(gain: float | None) -> float | None:
        return gain / unit if gain is not None and unit > 0 else None

    return replace(
        predicted,
        measured=share(row.measured),
        measured_low=share(row.measured_low),
        measured_high=share(row.measured_high),
        measured_steps=row.measured_steps,
        probability_best=row.probability_best,
        rungs=tuple(
            Rung(
                steps=rung.steps,
                learning_rate=rung.learning_rate,
                seed=rung.seed,
                gain=rung.gain,
                low=rung.low,
                high=rung.high,
                num_items=rung.num_items,
            )
            for rung in row.rungs
        ),
    )


def _baselines(probed: ProbeReport, rows: Sequence[RankingRow]) -> dict[str, Baseline]:
    """The layer each baseline would have taken, and what is known about it."""
    by_layer = {row.layer: row for row in rows}
    found = {}
    for name, probe in PROBES.items():
        if probe.is_baseline:
            scores = probed.scores[name]
            row = by_layer[probed.layers[scores.index(max(scores))]]
            found[name] = Baseline(layer=row.layer, predicted=row.predicted, measured=row.measured)
    return found
