"""The stages of a run, each of which leaves a file and takes up what an earlier, interrupted run left.

calibrate -> calibration.json, probe -> probe.json, search -> search.json and study.db, train -> arms/. A stage reads
only the files of the stages before it; `pipeline.pick` strings them together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NoReturn

from autolayer.core import run_folder
from autolayer.core.arms import Arm, RungResult
from autolayer.core.budget import (
    UnitCosts,
    calibration_prompts,
    finding_budget,
    pays_for_race,
    plan_probes,
    search_seconds,
    select_items,
)
from autolayer.core.config import Config
from autolayer.core.costs import Cost
from autolayer.core.errors import AutolayerError, ConfigError, RunFolderError
from autolayer.core.layer_set import Layers
from autolayer.core.progress import Progress
from autolayer.models import lora
from autolayer.models.loading import model_path
from autolayer.models.patch import LayerPatch
from autolayer.pipeline.layer_sets import candidate_sets
from autolayer.probes import PROBES, known
from autolayer.probes.probe_report import ProbeReport, joint_rate
from autolayer.probes.run_probes import run_probes
from autolayer.reporting import results
from autolayer.reporting.html import write_html
from autolayer.reporting.results import PickResult
from autolayer.rollouts.evaluation import Evaluation
from autolayer.rollouts.types import Rollouts
from autolayer.search.looks import next_look
from autolayer.search.records import Candidate, Outcome, RaceConfig
from autolayer.search.study import run_search
from autolayer.search.turns import take_turn
from autolayer.training import checkpoints
from autolayer.training.calibration import Calibration, calibrate, refuse
from autolayer.training.workbench import Workbench

SEGMENT_STEPS = 25
"""Steps of the final run between two checkpoints: what an interruption can lose."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What all stages of one run share."""

    config: Config
    """Resolved: no field is open that a stage needs."""
    bench: Workbench
    candidates: tuple[int, ...]
    progress: Progress
    trained_layers: Layers
    """What `train` trains; `pick` has it chosen among the candidates."""
    signature: str
    started: float
    """`time.monotonic()` when the run began, for the deadline."""
    changed: tuple[str, ...] = ()
    """Kinds of the user's files (reward, data, task) that were changed while the run was under way."""
    packed: float = 0.0
    """Share of the parameters that --frozen has packed."""

    @property
    def folder(self) -> run_folder.RunFolder:
        return self.bench.folder

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """What is missing or wrong in a file of the run folder is the file's damage, not a bug."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.folder.damaged(name, f"{type(error).__name__}: {error}") from error

    def _once(self, name: str, work: Callable[[], None], is_done: Callable[[], bool]) -> None:
        """Has something done that is done once: here, or with --storage by one worker while the others wait."""
        if self.config.storage is not None:
            take_turn(self.config.storage, f"{self.signature} {name}", work, is_done)
        elif not is_done():
            work()

    # Calibrate

    def calibrate(self) -> tuple[Calibration, Cost]:
        """Samples the base model.

        Raises:
            NoSignalError: Its rewards do not vary; then only calibration.json is left.
        """
        self._once("calibrate", self._calibrate, self._is_calibrated)
        found = self.folder.read(run_folder.CALIBRATION) or {}
        with self._reading(run_folder.CALIBRATION):
            cost = Cost(**found.pop("cost"))
            return Calibration(**found), cost

    def _is_calibrated(self) -> bool:
        lost = not any((self.folder / name).exists() for name in (run_folder.ROLLOUTS, run_folder.PROBE))
        return self.folder.read(run_folder.CALIBRATION) is not None and not lost  # the probes need its rollouts

    def _calibrate(self) -> None:
        prompts = calibration_prompts(self.config)
        with self.progress.stage("calibrate", None) as bar:
            before = self.bench.spent
            try:
                calibration, rollouts = self.bench.passes.within_memory(
                    lambda: calibrate(self.bench, prompts, self.config.seed)
                )
            except AutolayerError:
                self.folder.give_up()
                raise
            cost = self.bench.spent - before
            bar.advance(1, f"mean reward {calibration.mean_reward:.3f}")
        found = {**calibration.to_dict(), "cost": asdict(cost)}
        if calibration.status != "ok":
            error = refuse(calibration, self.bench.task)
            self.folder.keep_only(run_folder.CALIBRATION, {**found, "message": str(error)})
            raise error
        self.folder.write(run_folder.ROLLOUTS, asdict(rollouts), indent=None)  # the probes use them, too
        self.folder.write(run_folder.CALIBRATION, found)

    def units(self, calibration: Calibration) -> UnitCosts:
        return UnitCosts(
            costs=self.bench.costs,
            group_size=self.config.group_size,
            prompt_tokens=calibration.mean_prompt_tokens,
            completion_tokens=calibration.mean_completion_tokens,
            prefill_tokens=calibration.mean_prefill_tokens,
            multiple=self.bench.ranks.num // math.gcd(self.bench.ranks.num, self.config.group_size),
        )

    # Probe

    def probe(self, calibration: Calibration, *, searches: bool = True) -> tuple[ProbeReport, Cost]:
        """Scores every candidate; `searches` where a race is to follow."""
        work = partial(self._probe, calibration, searches)
        self._once("probe", work, lambda: self.folder.read(run_folder.PROBE) is not None)
        found = self.folder.read(run_folder.PROBE) or {}
        with self._reading(run_folder.PROBE):
            cost = Cost(**found.pop("cost"))
            return ProbeReport.from_dict(found), cost

    def _probe(self, calibration: Calibration, searches: bool) -> None:
        config, units = self.config, self.units(calibration)
        budget = finding_budget(config, units, self.candidates)
        sizes = plan_probes(config, units, self.candidates, budget, searches=searches)
        with self._reading(run_folder.ROLLOUTS):
            rollouts = Rollouts.from_dict(self.folder.read(run_folder.ROLLOUTS) or {})
        with self.progress.stage("probe", len(PROBES)) as bar:
            before, started = self.bench.spent, time.perf_counter()
            report = self.bench.passes.within_memory(
                lambda: run_probes(
                    self.bench,
                    self.candidates,
                    rollouts,
                    sizes,
                    num_folds=config.probe.num_folds,
                    total_steps=config.steps or 0,
                    seed=config.seed,
                    known=self._known(),
                    on_probe=lambda name: bar.advance(1, name),
                )
            )
            bar.advance(0, f"{len(report.scores)} signals and baselines")
        # Linear algebra between the passes is charged as time only: on very small models it is most of it.
        cost = replace(self.bench.spent - before, seconds=time.perf_counter() - started)
        self.folder.write(run_folder.PROBE, {**report.to_dict(), "cost": asdict(cost)})

    def _known(self) -> list[known.KnownEnvironment]:
        """What the prediction may learn from: never from this very base, unless the user measured it."""
        found = known.packaged(without_base=self.bench.loaded.weight_hash)
        return found + (known.history(self.config.history) if self.config.history else [])

    # Search

    def search(self, calibration: Calibration, probed: ProbeReport, spent: Cost) -> tuple[Outcome, Cost]:
        """Races the candidates.

        Args:
            calibration: For the planned costs.
            probed: The prediction, which is the race's prior, and the rates to start from.
            spent: What calibration and probes have cost.
        """
        config, units, bench = self.config, self.units(calibration), self.bench
        self.adapt()
        left = finding_budget(config, units, self.candidates) - spent
        num_items = min(select_items(config), len(bench.task.splits["select"]))
        candidates = self._candidates(probed)
        races = len(candidates) > 1 and pays_for_race(config, units, self.candidates, left)
        base, base_cost = self._base_on_select(num_items) if races else ((), Cost())
        budget = replace(left - base_cost, seconds=0.0) if races else Cost()
        race = RaceConfig(
            signature=self.signature,
            seed=config.seed,
            num_layers=len(bench.layers),
            total_steps=config.steps or 0,
            budget=budget,
            step_cost=lambda layers: units.step(layers) * (config.prompts_per_step or 0),  # pyright: ignore
            eval_cost=units.generate_one * num_items,
            regret=config.regret,
            confidence=config.search.confidence,
            rate_span=config.search.rate_span,
            fixed_rate=config.learning_rate is not None,
        )
        with self.progress.stage("search", 1.0) as bar:
            done = Cost()

            def run(arm: Arm, to_step: int, rival_I: tuple[float, ...]) -> RungResult:
                result = self._rung(arm, to_step, rival_I)
                nonlocal done
                done += result.cost
                share = min(1.0, done.layer_tokens / max(1.0, budget.layer_tokens))
                bar.advance(max(0.0, share - bar.completed), f"layer {arm.name} to step {to_step}")
                return result

            storage = config.storage or f"sqlite:///{self.folder / 'study.db'}"
            deadline = self.started + search_seconds(config)
            outcome = run_search(race, candidates, base, run, storage=storage, deadline=deadline)
            bar.advance(0, "no clear winner" if outcome.verdict == "budget_spent" else outcome.verdict)
        return outcome, outcome.spent + outcome.ahead + base_cost

    def _base_on_select(self, num_items: int) -> tuple[tuple[float, ...], Cost]:
        """The base model's rewards on the items that every decision is made on."""

        def score() -> None:
            before = self.bench.spent
            rewards = self.bench.evaluate("select", num_items, seed=self.config.seed)
            cost = asdict(self.bench.spent - before)
            self.folder.write(run_folder.SEARCH, {"base_select_rewards": list(rewards), "cost": cost})

        self._once("score the base", score, lambda: self.folder.read(run_folder.SEARCH) is not None)
        found = self.folder.read(run_folder.SEARCH) or {}
        with self._reading(run_folder.SEARCH):
            return tuple(found["base_select_rewards"]), Cost(**found["cost"])

    def _rung(self, arm: Arm, to_step: int, rival_I: tuple[float, ...]) -> RungResult:
        """Takes an arm to a step, going on with what a process that died has left, and scores it until it has lost."""
        folder, found = self.folder.path, checkpoints.latest(self.folder.path, arm)
        paid = checkpoints.paid_for(folder, arm)
        trained = self._advance(found if found.step <= to_step else arm, to_step)
        before, look = self.bench.spent, partial(next_look, rival_I=rival_I)
        rewards = self.bench.evaluate("select", len(rival_I), seed=self.config.seed, arm=trained, look=look)
        return RungResult(
            arm=trained,
            select_rewards_I=rewards,
            train_rewards_P=checkpoints.training_rewards(folder, trained, arm.step),
            cost=checkpoints.paid_for(folder, trained) - paid + (self.bench.spent - before),
        )

    def _advance(
        self,
        arm: Arm,
        to_step: int,
        on_step: Callable[[float], None] | None = None,
        deadline: float = math.inf,
    ) -> Arm:
        """Trains on in segments: an interruption loses no more than one."""
        while arm.step < to_step and time.monotonic() < deadline:
            stop = min(to_step, (arm.step // SEGMENT_STEPS + 1) * SEGMENT_STEPS)
            arm = self.bench.train(arm, stop, on_step=on_step).arm
        return arm

    def _candidates(self, probed: ProbeReport) -> list[Candidate]:
        """The race's arms, single layers or sets. A layer that moves nothing cannot be trained, so it does not race."""
        factor = self.rate_factor()
        candidates = [
            Candidate(
                layers=(layer,),
                predicted=predicted,
                predicted_sd=probed.deviation,
                learning_rate=self.config.learning_rate or rate * factor,
            )
            for layer, predicted, rate in zip(probed.layers, probed.predicted, probed.learning_rates, strict=True)
            if rate is not None
        ]
        if not candidates:
            raise ConfigError(
                f"no candidate layer moves the policy at all ({list(probed.layers)}): give other --layers."
            )
        if self.config.top_k == 1:
            return candidates
        sets = candidate_sets(candidates, self.config.top_k, len(self.bench.layers))
        return [replace(each, learning_rate=self.config.learning_rate or each.learning_rate) for each in sets]

    def adapt(self) -> None:
        """With --adapter, puts the adapters in: after the probes, which look at whole layers."""
        if self.config.adapter is not None and not lora.adapter_parameters(self.bench.model):
            self.bench.adapt(self.candidates, self.config.seed)

    def rate_factor(self) -> float:
        """Learning rates of what is trained, over those of whole layers."""
        return 1.0 if self.config.adapter is None else lora.learning_rate_factor(self.bench.model)

    def final_arm(self, outcome: Outcome, probed: ProbeReport) -> Arm:
        """What is trained to the end: the winner, or with --boost all parameters, faster in the winner."""
        if self.config.boost is None:
            return outcome.winner
        return Arm(
            layers="full",
            # As if the layers that were not probed moved the policy as much as those that were.
            learning_rate=self.config.learning_rate
            or joint_rate(probed) * (len(probed.layers) / len(self.bench.layers)) ** 0.5,
            seed=self.config.seed,
            boosted=outcome.best,
            boost=self.config.boost,
        )

    # Train

    def train(self, arm: Arm) -> tuple[Arm, Evaluation, Evaluation, Cost]:
        """Takes the arm through the full run from wherever it stands, then reads `eval`, for the only time.

        Returns:
            The trained arm; what the base and the trained model made of `eval`; what this has cost.
        """
        steps, deadline = self.config.steps or 0, self.started + (self.config.hours or 1e9) * 3600
        inherited = self._inherited(arm)
        arm = checkpoints.latest(self.folder.path, arm)
        with self.progress.stage("train", steps) as bar:
            bar.advance(arm.step, f"layer {arm.name}")
            arm = self._advance(
                arm, steps, on_step=lambda reward: bar.advance(1, f"training reward {reward:.3f}"), deadline=deadline
            )
        before = self.bench.spent
        with self.progress.stage("evaluate", 2) as bar:
            base = self.bench.examine("eval", self.config.num_eval or 0, seed=self.config.seed)
            bar.advance(1, "base")
            trained = self.bench.examine("eval", self.config.num_eval or 0, seed=self.config.seed, arm=arm)
            bar.advance(1, "trained")
        cost = self.bench.training_cost(arm) - inherited + (self.bench.spent - before)
        return arm, base, trained, cost

    def _inherited(self, arm: Arm) -> Cost:
        """What the search has paid of the arm's training. Noted once: the arm's early checkpoints do not last."""
        found = self.folder.read(run_folder.TRAIN)
        if found is None:
            found = {"inherited": asdict(self.bench.training_cost(arm))}
            self.folder.write(run_folder.TRAIN, found)
        with self._reading(run_folder.TRAIN):
            return Cost(**found["inherited"])

    # Keep

    def finish(self, work: Callable[[], PickResult]) -> PickResult:
        """Has the final training done, and returns its result, whoever did it."""
        mine: list[PickResult] = []
        # One that --hours has ended is over as well: the next call goes on.
        self._once("train", lambda: mine.append(work()), lambda: bool(mine) or self.finished() is not None)
        result = mine[0] if mine else self.finished()
        assert result is not None
        return result

    def finished(self) -> PickResult | None:
        """The result, if an earlier run of the same command came to its end."""
        found = self.folder.read(run_folder.RESULT)
        result = None if found is None else results.from_dict(found)
        if self.bench.ranks.leads:
            # Without what was trained it is not whole: that is made again from the arm's checkpoint.
            whole = any((self.folder / name).exists() for name in (run_folder.PATCH, run_folder.ADAPTER))
            return result if result is not None and result.status == "ok" and whole else None
        return result or self.led_nowhere()

    def led_nowhere(self) -> NoReturn:
        """In a process that follows: there is nothing to give."""
        raise RunFolderError(f"the leading process left no result in {self.folder.path}: its message says why.")

    def keep(self, result: PickResult, trained: Arm | None = None) -> PickResult:
        """Saves the trained layers, the report and the result; result.json comes last and says that all is there."""
        if trained is not None and self.config.adapter is None:
            self._patch(trained).save(self.folder / run_folder.PATCH)
        elif trained is not None:
            patch = self._patch(trained)
            about = {name: value for name, value in vars(patch).items() if name != "tensors"}
            lora.save_adapter(self.folder / run_folder.ADAPTER, patch.tensors, model_path(patch.base), about)
        write_html(result, self.folder / run_folder.REPORT)
        values = result.to_dict()
        results.validate(values)
        self.folder.write(run_folder.RESULT, values)
        return result

    def _patch(self, trained: Arm) -> LayerPatch:
        loaded = self.bench.loaded
        return LayerPatch(
            tensors=self.bench.arm_weights(trained) or self.bench.base(trained.layers),
            base=loaded.name,
            base_hash=loaded.weight_hash,
            layers=trained.layers,
            task=self.bench.task.name,
            algorithm=self.config.algorithm,
            steps=trained.step,
        )
