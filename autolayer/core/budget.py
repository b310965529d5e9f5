"""Plans the size of calibration and probes so that finding the layer fits its budget. Pure arithmetic.

The budget is a share of one full run of the final training, both in generated tokens and in layer-tokens. It is planned
with the cheapest full run among the candidates, so that the share holds whichever layer wins.

The functions share their arguments: `config` holds the resolved settings, `units` the costs of one prompt, `candidates`
the indices of the candidate layers, and `budget` or `left` an amount of work that may still be spent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from autolayer.core.config import Config
from autolayer.core.costs import Cost, CostModel
from autolayer.core.layer_set import Layers

MARGIN = 0.95
"""Share of the budget that is planned for, because completions get longer or shorter while a model trains."""
PROBE_SHARES = {"shared batch": 0.6, "step response": 0.3, "burst": 0.1}
"""Shares of the probes' part of the budget. Most of it buys prompts for the shared batch, because every signal
that has predicted contribution so far is computed from it. A probe that does not fit leaves its share to the others."""
RESPONSE_SIZES = 7
"""Step sizes tried by the step response, which scores the unmoved layer as well. In bf16 it may try two more."""
MAX_RESPONSE_PROMPTS = 8
"""Prompts of a fold beyond which the step response hardly improves. Their cost is left to the search."""
RESPONSE_GROUP = 2
"""Completions of each prompt in the step response. More prompts tell more than more completions of one prompt."""
DEFAULT_BURST = 2
"""Default number of steps of a burst."""
MIN_BURST_PROMPTS = 4
"""Prompts per step below which a burst measures only noise. Its share then goes to the other probes."""
MIN_PROMPTS, MIN_RESPONSE_PROMPTS = 4, 4
"""Prompts below which a fold of the shared batch says nothing at all, and one fold of the step response says more than
many: a learning rate from 2 prompts can be ten times too high."""

BUDGET, BUDGET_STEPS, BUDGET_ROOTS = 0.25, 40, 2
"""Default cost of finding the layer: at most a quarter of the full run, and at most 40 of its steps, or of long runs
twice the root of their steps, because the cost of a race grows with the root (`SCOUT`)."""

CALIBRATION_SCORED = 64
"""Number of completions from which the entropy of the base model is estimated."""
SCOUT, MIN_SCOUT = 0.25, 2
"""Steps of the shortest run that tells layers apart: a quarter of the root of the full run's steps, and at least two,
because the rollouts of the first step are the base model's whatever the layer."""
MIN_SELECT = 32
"""Minimum number of `select` items on which arms are compared."""
MIN_WIDTH = 4
"""Arms of the smallest race that is worth its cost: the two best predictions, `middle` and a random layer."""


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """Costs of one prompt, a whole group of completions each."""

    costs: CostModel
    group_size: int
    prompt_tokens: float
    """Mean tokens of a sequence that the policy did not generate."""
    completion_tokens: float
    """Mean tokens of a sequence that the policy generated."""
    multiple: int = 1
    """Prompts of a training step come in multiples of this, so that several processes can share them."""
    prefill_tokens: float | None = None
    """Mean tokens that the engine reads; over several turns, the sequence so far is read at every turn. None:
    `prompt_tokens`."""

    @property
    def tokens(self) -> float:
        """Tokens of one group."""
        return self.group_size * (self.prompt_tokens + self.completion_tokens)

    @property
    def generate(self) -> Cost:
        """Cost of sampling one group."""
        read = self.prompt_tokens if self.prefill_tokens is None else self.prefill_tokens
        return self.costs.generate(self.group_size * read, self.group_size * self.completion_tokens)

    @property
    def generate_one(self) -> Cost:
        """Cost of sampling one completion, which is an evaluation item."""
        return self.generate * (1 / self.group_size)

    def walk(self, layers: tuple[int, ...], tries: int) -> Cost:
        """Returns the cost of scoring a group `tries` times with each layer changed, by passes from that layer up."""
        passes = sum((self.costs.forward(self.tokens, layer) for layer in layers), Cost()) * tries
        return passes + Cost(layer_tokens=self.tokens * max(layers))  # computes the layers' inputs

    def step(self, layers: Layers) -> Cost:
        """Returns the cost of the rollouts of one prompt and of its part of one update of these layers."""
        return self.generate + self.costs.train(self.tokens, layers)


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """Sizes of the probes, in prompts with `group_size` completions each, or `RESPONSE_GROUP` in the step response.

    0 leaves a probe out.
    """

    fold_prompts: int
    response_folds: int
    """Number of folds on which the step response is measured: all, or one if the budget does not allow more."""
    response_prompts: int
    burst_steps: int
    burst_prompts: int
    burst_items: int
    notes: tuple[str, ...] = field(default=())


def default_budget(steps: int) -> float:
    """Returns the default budget as a share of a run of `steps` steps: a quarter up to 160 steps, a tenth at 400."""
    return min(BUDGET, max(BUDGET_STEPS, BUDGET_ROOTS * math.sqrt(steps)) / steps)


def final_layers(config: Config, candidates: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the cheapest layers that the final run may train: the highest candidates."""
    return tuple(sorted(candidates)[-config.top_k :])


def full_run(config: Config, units: UnitCosts, layers: Layers) -> Cost:
    """Returns the cost of the final training from start to end, without evaluation."""
    assert config.steps is not None and config.prompts_per_step is not None
    return units.step(layers) * (config.steps * config.prompts_per_step)


def finding_budget(config: Config, units: UnitCosts, candidates: tuple[int, ...]) -> Cost:
    """Returns the largest cost of calibration, probes and search together."""
    assert config.budget is not None
    return full_run(config, units, final_layers(config, candidates)) * (config.budget * MARGIN)


def calibration_prompts(config: Config) -> int:
    """Returns the prompts of calibration: a tenth of the budget's rollouts, between 16 and the whole shared batch."""
    assert config.steps is not None and config.prompts_per_step is not None and config.budget is not None
    affordable = int(0.1 * config.budget * config.steps * config.prompts_per_step)
    return max(16, min(affordable, config.probe.num_folds * config.probe.num_prompts))


def calibration_cost(config: Config, units: UnitCosts) -> Cost:
    """Returns the cost of sampling the prompts of calibration and of scoring some of the completions."""
    prompts = calibration_prompts(config)
    scored = min(prompts, max(1, CALIBRATION_SCORED // config.group_size))
    return units.generate * prompts + units.costs.forward(units.tokens * scored)


def select_items(config: Config) -> int:
    """Returns the number of items on which a rung compares its arms.

    It is half of what a training step samples, because more would spend the budget on evaluation and training rewards
    are evidence as well, but at least `MIN_SELECT`.
    """
    assert config.prompts_per_step is not None
    return min(config.search.num_select, max(MIN_SELECT, config.prompts_per_step * config.group_size // 2))


def scout_steps(total_steps: int) -> int:
    """Returns the steps of a race's first rung: the fewest that can tell layers apart (`SCOUT`)."""
    return min(total_steps, max(MIN_SCOUT, int(SCOUT * math.sqrt(total_steps))))


def smallest_race(config: Config, units: UnitCosts, candidates: tuple[int, ...]) -> Cost:
    """Returns the cost of one rung of `MIN_WIDTH` average arms and of the base model's evaluation."""
    assert config.steps is not None and config.prompts_per_step is not None
    # The cost of a set of layers follows from its lowest layer and its size.
    arms = [(layer,) * config.top_k for layer in candidates]
    step = sum(map(units.step, arms), Cost()) * (1 / len(candidates))
    width, items = min(MIN_WIDTH, len(candidates)), units.generate_one * select_items(config)
    rungs = (step * (scout_steps(config.steps) * config.prompts_per_step) + items) * width
    return rungs + items


def pays_for_race(config: Config, units: UnitCosts, candidates: tuple[int, ...], left: Cost) -> bool:
    """Returns True if `left` pays for a race of two or more candidates; if not, the prediction alone decides."""
    return len(candidates) > 1 and smallest_race(config, units, candidates).fits(left)


def search_seconds(config: Config) -> float:
    """Returns the seconds after which the search starts no more runs: the part of --hours that finding may take."""
    if config.hours is None or config.budget is None:
        return math.inf
    return config.hours * 3600 * config.budget / (1 + config.budget)


def probe_budget(config: Config, units: UnitCosts, candidates: tuple[int, ...], budget: Cost) -> Cost:
    """Returns the budget of the probes: their share, or all of it if the rest would not pay for a race."""
    part = budget * config.probe.share
    return part if pays_for_race(config, units, candidates, budget - part) else budget


@dataclass(frozen=True)
class ProbePrices:
    """The cost of each probe as a function of its size in prompts."""

    config: Config
    units: UnitCosts
    candidates: tuple[int, ...]

    def shared(self, prompts: int) -> Cost:
        """Returns the cost of a shared batch of `prompts` in each fold: sampling, and one forward and backward pass."""
        every = self.units.costs.train(self.units.tokens, tuple(range(self.units.costs.num_layers)))
        return (self.units.generate + every) * (self.config.probe.num_folds * prompts)

    def response(self, prompts: int, folds: int) -> Cost:
        """Returns the cost of the step response on `folds` folds."""
        share = min(RESPONSE_GROUP, self.units.group_size) / self.units.group_size
        return self.units.walk(self.candidates, 1 + RESPONSE_SIZES) * (folds * share * prompts)

    def burst(self, prompts: int, steps: int) -> Cost:
        """Returns the cost of a burst of every candidate."""
        run = self.units.step(self.candidates[:1]) * (steps * prompts)
        run += self.units.generate_one * (prompts * self.units.group_size)
        return run * len(self.candidates)

    def all(self, plan: ProbePlan, sampled: int) -> Cost:
        """Returns the cost of the stage if calibration has already sampled `sampled` prompts of the shared batch."""
        cost = self.shared(plan.fold_prompts) + self.response(plan.response_prompts, plan.response_folds)
        cost += self.burst(plan.burst_prompts, plan.burst_steps) if plan.burst_steps else Cost()
        return cost - self.units.generate * min(sampled, self.config.probe.num_folds * plan.fold_prompts)


def plan_probes(
    config: Config, units: UnitCosts, candidates: tuple[int, ...], budget: Cost, *, searches: bool = True
) -> ProbePlan:
    """Chooses the size of each probe by its share of the probes' budget.

    Args:
        config: The resolved settings.
        units: Costs of one prompt.
        candidates: The layers to probe.
        budget: The largest cost of finding the layer.
        searches: True if a race follows when the budget pays for one.
    """
    spend = probe_budget(config, units, candidates, budget)
    part = {name: spend * share for name, share in PROBE_SHARES.items()}
    assert config.prompts_per_step is not None
    steps, races = config.probe.burst_steps, searches and spend != budget
    if steps is None:
        steps = 0 if races else DEFAULT_BURST
    folds, price = config.probe.num_folds, ProbePrices(config, units, candidates)
    burst_prompts = largest(lambda n: price.burst(n, steps), part["burst"], config.prompts_per_step) if steps else 0
    burst_prompts -= burst_prompts % units.multiple
    if burst_prompts < MIN_BURST_PROMPTS:
        burst_prompts = 0
        part = _without("burst", part)
    fold_prompts = largest(price.shared, part["shared batch"], config.probe.num_prompts)
    most = min(fold_prompts, MAX_RESPONSE_PROMPTS)
    response_folds, response_prompts = folds, largest(lambda n: price.response(n, folds), part["step response"], most)
    if response_prompts < MIN_RESPONSE_PROMPTS:  # one fold with less noise is better than several with more
        response_folds = 1
        response_prompts = largest(lambda n: price.response(n, 1), part["step response"], most)
    notes = []
    if fold_prompts < MIN_PROMPTS:
        fold_prompts = MIN_PROMPTS
        notes.append(f"the budget is too small for probing: {MIN_PROMPTS} prompts a fold are taken all the same")
    if response_prompts < MIN_RESPONSE_PROMPTS:
        response_prompts = MIN_RESPONSE_PROMPTS
        notes.append(
            f"the step response does not fit the budget: {MIN_RESPONSE_PROMPTS} prompts are taken all the same"
        )
    if response_folds < 2:
        notes.append("representation_change left out: it does not fit the budget")
    if races and config.probe.burst_steps is None:
        notes.append("rl_burst left out: the search's first short runs tell the same")
    elif steps and not burst_prompts:
        notes.append("rl_burst left out: it does not fit the budget")
    return ProbePlan(
        fold_prompts=fold_prompts,
        response_folds=response_folds,
        response_prompts=response_prompts,
        burst_steps=steps if burst_prompts else 0,
        burst_prompts=burst_prompts,
        burst_items=burst_prompts * units.group_size,
        notes=tuple(notes),
    )


def _without(probe: str, part: dict[str, Cost]) -> dict[str, Cost]:
    """Returns the parts of the other probes, which share the part of `probe` in proportion."""
    left = sum(PROBE_SHARES[name] for name in part if name != probe)
    have = sum(PROBE_SHARES[name] for name in part)
    return {name: cost * (have / left) for name, cost in part.items() if name != probe}


def largest(cost_of: Callable[[int], Cost], budget: Cost, at_most: int) -> int:
    """Returns the largest whole number up to `at_most` whose cost fits the budget, or 0 if none does.

    Args:
        cost_of: Returns the cost of a number; it must not fall as the number grows.
        budget: The largest cost.
        at_most: The largest number.
    """
    return next((number for number in range(at_most, 0, -1) if cost_of(number).fits(budget)), 0)
