"""Computes the budget of finding the layer and the planned costs of calibration, the race and one full run.

The budget is a share of one full run of the final training, both in generated tokens and in layer-tokens. It is planned
with the cheapest full run among the candidates, so that the share holds whichever layer wins. `config` holds the
resolved settings everywhere.
"""

import math
from dataclasses import dataclass

from autolayer.core.config import Config
from autolayer.core.costs import Cost, CostModel, PassSize
from autolayer.core.layer_set import Layers

MARGIN = 0.95
"""Share of the budget that is planned for, because completions get longer or shorter while a model trains."""
BUDGET, BUDGET_STEPS, BUDGET_ROOTS = 0.25, 40, 2
"""Default cost of finding the layer: the cost of max(40, 2·√steps) training steps, because the cost of a race grows
with the root (`SCOUT`), and at most a quarter of the full run."""

RESPONSE_GROUP = 2
"""Completions of each prompt in the step response. More prompts tell more than more completions of one prompt."""
MIN_CALIBRATION = 12
"""Fewest prompts of calibration: as many as the smallest shared batch has, or six pairs of `cutoff`."""
CALIBRATION_SCORED = 32
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
    prefill_tokens: float | None = None
    """Mean tokens that the engine reads for a completion of a group; over several turns, the sequence so far is read at
    every turn. None: the prompt once for the whole group."""
    group_pass: PassSize | None = None
    """Measured size of the passes over a group; None: estimated from the lengths."""
    few_pass: PassSize | None = None
    """Measured size of the passes over `RESPONSE_GROUP` completions of a prompt; None: estimated from the lengths."""

    @property
    def size(self) -> PassSize:
        """Size of the passes over one group."""
        return self.group_pass or self._estimated(self.group_size)

    @property
    def few_size(self) -> PassSize:
        """Size of the passes over `RESPONSE_GROUP` completions of a prompt."""
        return self.few_pass or self._estimated(min(RESPONSE_GROUP, self.group_size))

    def _estimated(self, num_completions: int) -> PassSize:
        return PassSize.estimated(self.prompt_tokens, self.completion_tokens, num_completions)

    @property
    def generate(self) -> Cost:
        """Cost of sampling one group."""
        read = self.prompt_tokens if self.prefill_tokens is None else self.group_size * self.prefill_tokens
        return self.costs.generate(read, self.group_size * self.completion_tokens)

    @property
    def generate_one(self) -> Cost:
        """Cost of sampling one completion, which is an evaluation item."""
        return self.costs.generate(max(self.prompt_tokens, self.prefill_tokens or 0.0), self.completion_tokens)

    def walk(self, layers: tuple[int, ...], tries: int) -> Cost:
        """Returns the cost of scoring `RESPONSE_GROUP` completions `tries` times with each of some layers changed.

        Passes start at the changed layer.
        """
        passes = sum((self.costs.forward(self.few_size, layer) for layer in layers), Cost()) * tries
        return passes + Cost(layer_tokens=self.few_size.tokens * max(layers))  # computes the layers' inputs

    def step(self, layers: Layers) -> Cost:
        """Returns the cost of the rollouts of one prompt and of its part of one update of these layers."""
        return self.generate + self.costs.train(self.size, layers)

    def relative_cost(self, layer: int) -> float:
        """Returns the layer-tokens of a training step of one layer, divided by those of all parameters."""
        return self.step((layer,)).layer_tokens / self.step("full").layer_tokens


def default_budget(steps: int) -> float:
    """Returns the default budget as a share of a run of `steps` steps: a quarter up to 160 steps, a tenth at 400."""
    return min(BUDGET, max(BUDGET_STEPS, BUDGET_ROOTS * math.sqrt(steps)) / steps)


def final_layers(config: Config, candidates: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the cheapest layers that the final run may train: the highest candidates."""
    return tuple(sorted(candidates)[-config.top_k :])


def full_run(config: Config, units: UnitCosts, layers: Layers) -> Cost:
    """Returns the cost of the final training from start to end, without evaluation."""
    return units.step(layers) * _training_prompts(config)


def _training_prompts(config: Config) -> int:
    assert config.steps is not None and config.prompts_per_step is not None
    return config.steps * config.prompts_per_step


def finding_budget(config: Config, units: UnitCosts, candidates: tuple[int, ...]) -> Cost:
    """Returns the largest cost of calibration, probes and search together."""
    assert config.budget is not None
    return full_run(config, units, final_layers(config, candidates)) * (config.budget * MARGIN)


def calibration_prompts(config: Config) -> int:
    """Returns the prompts of calibration: a tenth of the budget's rollouts, at most the whole shared batch."""
    assert config.budget is not None
    affordable = int(0.1 * config.budget * _training_prompts(config))
    return max(MIN_CALIBRATION, min(affordable, config.probe.num_folds * config.probe.num_prompts))


def calibration_share(config: Config) -> float:
    """Returns the share of a full run's generated tokens that calibration generates, which is known at the start."""
    return calibration_prompts(config) / _training_prompts(config)


def calibration_cost(config: Config, units: UnitCosts) -> Cost:
    """Returns the cost of sampling the prompts of calibration and of scoring some of the completions."""
    scored = units.costs.forward(units.size * calibration_scored(config))
    return units.generate * calibration_prompts(config) + scored


def calibration_scored(config: Config) -> int:
    """Returns the prompts of calibration whose completions are scored."""
    return min(calibration_prompts(config), max(1, CALIBRATION_SCORED // config.group_size))


def select_items(config: Config) -> int:
    """Returns the number of items on which a rung compares its arms: half of what a training step samples."""
    # More would spend the budget on evaluation, and training rewards are evidence as well.
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
