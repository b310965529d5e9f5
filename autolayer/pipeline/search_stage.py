"""The third stage: confirms the prediction by short RL runs."""

from dataclasses import asdict, dataclass, replace

from autolayer.core import depth_prior
from autolayer.core.arms import Arm, RungResult
from autolayer.core.budget import finding_budget, pays_for_race, search_seconds, select_items
from autolayer.core.costs import Cost
from autolayer.core.layer_set import name_layers
from autolayer.core.run_folder import ARMS, SEARCH, STUDY
from autolayer.pipeline.arm_choice import insert_adapters, race_candidates
from autolayer.pipeline.calibrate_stage import CalibrationStage
from autolayer.pipeline.probe_stage import ProbeStage
from autolayer.pipeline.run_context import RunContext
from autolayer.pipeline.train_to_step import train_to_step
from autolayer.search.records import RaceConfig, RaceOutcome, Standing
from autolayer.search.worker import run_search


@dataclass(frozen=True, kw_only=True)
class SearchStage:
    """The result of the search."""

    outcome: RaceOutcome
    cost: Cost


def search_stage(run: RunContext, calibration: CalibrationStage, probes: ProbeStage) -> SearchStage:
    """Races the candidates, or resumes the race of an earlier call. With --adapter, it inserts the adapters."""
    config, bench, units = run.config, run.bench, calibration.units
    assert config.steps is not None and config.prompts_per_step is not None
    prompts_per_step = config.prompts_per_step
    insert_adapters(run)
    candidates = race_candidates(run, probes.report)
    num_items = min(select_items(config), len(bench.task.splits["select"]))
    earlier = calibration.cost + probes.cost
    budget = finding_budget(config, units, run.candidates)
    left = budget - earlier
    races = len(candidates) > 1 and pays_for_race(config, units, run.candidates, left)
    base_I, base_cost = _score_base(run, num_items) if races else ((), Cost())
    is_pretrained = depth_prior.applies(bench.model.num_parameters())
    race = RaceConfig(
        signature=run.signature,
        seed=config.seed,
        num_layers=len(bench.layers),
        is_pretrained=is_pretrained,
        total_steps=config.steps,
        budget=replace(left - base_cost, seconds=0.0) if races else Cost(),
        step_cost=lambda layers: units.step(layers) * prompts_per_step,
        eval_cost=units.generate_one * num_items,
        earlier=earlier + base_cost if is_pretrained else Cost(),
        regret=config.regret,
        confidence=config.search.confidence,
        rate_span=config.search.rate_span,
        fixed_rate=config.learning_rate is not None,
    )
    with run.progress.stage("search", 1.0) as bar:

        def on_standing(standing: Standing) -> None:
            share = min(1.0, standing.spent.layer_tokens / max(1.0, race.budget.layer_tokens))
            spent = (earlier + base_cost + standing.spent).layer_tokens / budget.layer_tokens
            leader = f"leader {name_layers(standing.leader)} ({standing.probability:.0%})"
            bar.advance(max(0.0, share - bar.completed), f"{leader}, budget {spent:.0%} spent")

        storage = config.storage or run.folder / STUDY
        deadline = run.started + search_seconds(config)
        # Rank 0 holds the race; every rank runs the rungs that the race asks for.
        outcome = bench.process_group.call_from_rank_0(
            lambda run_rung: run_search(
                race,
                candidates,
                base_I,
                run_rung,
                on_standing=on_standing,
                storage=storage,
                deadline=deadline,
                is_alone=config.storage is None,  # the run folder is locked
                resumes=any((run.folder / ARMS).glob("*/*")),  # the study records what they are worth
            ),
            lambda arm, to_step: _run_rung(run, arm, to_step, num_items),
        )
        bar.advance(0, "no clear winner" if outcome.verdict == "budget_spent" else outcome.verdict)
    return SearchStage(outcome=outcome, cost=outcome.spent + base_cost)


def _score_base(run: RunContext, num_items: int) -> tuple[tuple[float, ...], Cost]:
    """Returns the base model's rewards on the items of `select`, which decide everything, and what they cost."""

    def score() -> None:
        before = run.bench.spent
        rewards = run.bench.evaluate("select", num_items, seed=run.config.seed).rewards_I
        run.folder.write(SEARCH, {"base_select_rewards": list(rewards), "cost": asdict(run.bench.spent - before)})

    run.run_once("score the base", score, lambda: run.folder.read(SEARCH) is not None)
    found = run.folder.read(SEARCH) or {}
    with run.reading(SEARCH):
        return tuple(found["base_select_rewards"]), Cost(**found["cost"])


def _run_rung(run: RunContext, arm: Arm, to_step: int, num_items: int) -> RungResult:
    """Trains an arm to a step and scores it; resumes from the checkpoint of an interrupted call."""
    bench, checkpoints = run.bench, run.bench.checkpoints
    found = checkpoints.latest(arm)
    trained = found if found.step <= to_step else arm
    for trained_arm in train_to_step(bench, trained, to_step):
        trained = trained_arm.arm
    before = bench.spent
    rewards_I = bench.evaluate("select", num_items, seed=run.config.seed, arm=trained).rewards_I
    return RungResult(
        arm=trained,
        select_rewards_I=rewards_I,
        train_rewards_P=checkpoints.training_rewards(trained, arm.step),
        cost=checkpoints.cost(trained) - checkpoints.cost(arm) + (bench.spent - before),
    )
