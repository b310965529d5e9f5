"""Plans the sizes of the probes by the budget, in prompts of the shared batch and of each probe."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from autolayer.core.budget import RESPONSE_GROUP, UnitCosts, calibration_cost, calibration_scored, pays_for_race
from autolayer.core.config import Config
from autolayer.core.costs import Cost, PassSize

SMALL_SHARE, SHARE = 0.3, 0.5
"""Default share of the probes in the budget if a race follows, for small models and for others, on whose curves a race
of up to a quarter of a run adds little to the prediction (examples/RESULTS.md)."""
RESPONSE_SHARE = 1 / 3
"""Share of the step response in the probes' budget. The rest buys prompts for the shared batch, because every signal
that has predicted the contribution of small models is computed from it."""
RESPONSE_SIZES = 9
"""Most step sizes that the step response tries, seven in float32; it scores the unmoved layer as well."""
MAX_RESPONSE_PROMPTS = 8
"""Prompts of a fold beyond which the step response hardly improves. Their cost is left to the search."""
RESPONSE_LAYERS = (10, 6, 4, 3)
"""Candidates whose step response is measured, evenly spaced: the most that the budget pays for. It changes slowly with
depth, and costs more than all other probes."""
ANSWER_TOKENS = 16
"""Tokens of a completion that `cutoff` reads; of a longer one, as many from a random place on."""
CUTOFF_SHARE = 0.1
"""Largest share of the probes' budget that `cutoff` may take where others predict; they have what it leaves."""
CUTOFF_DEPTHS, MIN_CUTOFF_PAIRS, MAX_CUTOFF_PAIRS = 8, 6, 16
"""Blocks at which `cutoff` exchanges states, and pairs of prompts: fewer say nothing, more give the same curve."""
IMITATION_STEPS = 4
IMITATION_LAYERS, MIN_IMITATION_PROMPTS, MAX_IMITATION_PROMPTS = (8, 6), 8, 32
"""Candidates that `self_imitation` trains, evenly spaced, and prompts that it imitates and is judged on."""
MIN_IMITATION_CANDIDATES = 6
"""With fewer the prediction does not use it."""
IMITATION_SHARE = 0.7
"""Largest share that it may take of what remains after the smallest other probes and `cutoff`."""
IMITATION_MARGIN = 1.2
"""Factor on its planned cost, because prompts whose rewards differ have more distinct completions than the average."""
MIN_PROMPTS = 4
"""Minimum number of prompts in a fold of the shared batch; fewer say nothing about a layer."""
MIN_RESPONSE_PROMPTS = 4
"""Prompts in a fold of the step response below which one fold is measured instead of all. A learning rate from 2
prompts can be ten times too high."""


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """Sizes of the probes in prompts of `group_size` completions (step response: `RESPONSE_GROUP`); 0: left out."""

    fold_prompts: int
    """Prompts of a fold of the shared batch; 0: no gradients, and none of the probes that need them."""
    response_folds: int
    """Number of folds on which the step response is measured: all, or one if the budget does not allow more."""
    response_prompts: int
    response_layers: int = RESPONSE_LAYERS[0]
    """Number of candidates on which it is measured, if there are more."""
    cutoff_pairs: int
    """Pairs of prompts between which `cutoff` exchanges states."""
    imitation_layers: int = 0
    """Number of candidates that `self_imitation` trains, if there are more."""
    imitation_prompts: int = 0
    """Prompts whose completions it imitates, and prompts on which it judges."""
    notes: tuple[str, ...] = ()


def probe_budget(
    config: Config,
    units: UnitCosts,
    candidates: tuple[int, ...],
    budget: Cost,
    *,
    is_small: bool = True,
    needed: Cost = Cost(),  # noqa: B008, never changed
) -> Cost:
    """Returns the budget of the probes: the first share that pays for a race and for the probes `needed`, or all."""
    defaults = (SMALL_SHARE,) if is_small else (SHARE, SMALL_SHARE)
    for share in defaults if config.probe.share is None else (config.probe.share,):
        part = budget * share
        if pays_for_race(config, units, candidates, budget - part) and needed.fits(part):
            return part
    return budget


def plan_probes(
    config: Config,
    units: UnitCosts,
    candidates: tuple[int, ...],
    budget: Cost,
    *,
    searches: bool = True,
    is_small: bool = True,
) -> ProbePlan:
    """Chooses the size of each probe by its share of the probes' part of the finding `budget`.

    `searches` is True if a race follows when the budget pays for one, and False where somebody has chosen the layers:
    only the learning rate is wanted then, whatever it costs. Unless the model `is_small`, `cutoff` and `self_imitation`
    are part of the prediction: they have what the smallest other probes leave, or `cutoff` all where these do not fit.
    The others come first because they find the learning rates, and a rate that is too high destroys a policy.
    """
    assert config.prompts_per_step is not None
    num_folds, whole = config.probe.num_folds, budget
    budget -= units.costs.forward(units.size * calibration_scored(config))  # calibration's own; its samples are used
    pairs_within = partial(_cutoff_pairs, units)
    least = _shared_cost(units, num_folds, MIN_PROMPTS)
    least += _response_cost(units, response_layers(candidates, RESPONSE_LAYERS[-1]), 1, MIN_RESPONSE_PROMPTS)
    is_wanted = searches and not is_small and len(candidates) >= MIN_IMITATION_CANDIDATES
    imitates = is_wanted and not config.shard
    needed = Cost()
    if imitates:  # up to a quarter of a run, a race adds less (examples/RESULTS.md)
        needed = _imitation_cost(units, candidates, IMITATION_LAYERS[-1], MIN_IMITATION_PROMPTS)
        needed = needed * (1 / IMITATION_SHARE) + least + _cutoff_cost(units, MAX_CUTOFF_PAIRS)
        needed = needed if needed.fits(budget) else Cost()
    spend = probe_budget(config, units, candidates, budget, is_small=is_small, needed=needed)
    if not least.fits(spend):
        if not is_small:
            return _without_gradients(pairs_within(whole - calibration_cost(config, units)))
        if searches and not least.fits(budget):
            return _without_gradients(0, is_small=True)
        spend = least
    cutoff_pairs = pairs_within(spend - least)
    if is_small:
        cutoff_pairs = min(cutoff_pairs, pairs_within(spend * CUTOFF_SHARE))
    spend -= _cutoff_cost(units, cutoff_pairs)
    imitation = (0, 0)
    if imitates:
        imitation = _imitation(units, candidates, (spend - least) * IMITATION_SHARE)
        spend -= _imitation_cost(units, candidates, *imitation)
    shared = partial(_shared_cost, units, num_folds)
    fold_prompts = largest(shared, spend * (1 - RESPONSE_SHARE), config.probe.num_prompts)
    response, most = spend * RESPONSE_SHARE, min(fold_prompts, MAX_RESPONSE_PROMPTS)
    sizes = [(RESPONSE_LAYERS[0], num_folds), *((count, 1) for count in RESPONSE_LAYERS)]
    for num_layers, response_folds in sizes:  # one fold with less noise is better than several with more
        cost = partial(_response_cost, units, response_layers(candidates, num_layers), response_folds)
        if (response_prompts := largest(cost, response, most)) >= MIN_RESPONSE_PROMPTS:
            break
    if response_prompts < MIN_RESPONSE_PROMPTS:  # the least step response takes more than its share
        left = spend - cost(MIN_RESPONSE_PROMPTS)
        fold_prompts = largest(shared, left, fold_prompts)
    too_large = {
        "representation_change": response_folds < 2,
        "cutoff": not cutoff_pairs,
        "self_imitation": imitates and not any(imitation),
    }
    left_out = [name for name, is_true in too_large.items() if is_true]
    said = {
        f"the budget is too small for probing: it uses the minimum of {MIN_PROMPTS} prompts per fold":
            fold_prompts < MIN_PROMPTS,
        f"the step response does not fit the budget: it uses the minimum of {MIN_RESPONSE_PROMPTS} prompts":
            response_prompts < MIN_RESPONSE_PROMPTS,
        f"left out, because the budget is too small: {', '.join(left_out)}": bool(left_out),
        "self_imitation left out: it does not go with --shard": is_wanted and not imitates,
    }  # fmt: skip
    return ProbePlan(
        fold_prompts=max(fold_prompts, MIN_PROMPTS),
        response_folds=response_folds,
        response_prompts=max(response_prompts, MIN_RESPONSE_PROMPTS),
        response_layers=num_layers,
        cutoff_pairs=cutoff_pairs,
        imitation_layers=imitation[0],
        imitation_prompts=imitation[1],
        notes=tuple(note for note, is_true in said.items() if is_true),
    )


def probe_cost(config: Config, units: UnitCosts, candidates: tuple[int, ...], plan: ProbePlan, sampled: int) -> Cost:
    """Returns the cost of all probes if calibration has already sampled `sampled` prompts of the shared batch."""
    num_folds = config.probe.num_folds
    cost = _shared_cost(units, num_folds, plan.fold_prompts)
    measured = response_layers(candidates, plan.response_layers)
    cost += _response_cost(units, measured, plan.response_folds, plan.response_prompts)
    cost += _cutoff_cost(units, plan.cutoff_pairs)
    cost += _imitation_cost(units, candidates, plan.imitation_layers, plan.imitation_prompts)
    return cost - units.generate * min(sampled, num_folds * plan.fold_prompts)


def response_layers(candidates: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Returns the candidates whose step response is measured: `count` at most, both ends included."""
    count = min(len(candidates), count)
    return tuple(candidates[round(i * (len(candidates) - 1) / max(1, count - 1))] for i in range(count))


def _shared_cost(units: UnitCosts, num_folds: int, prompts: int) -> Cost:
    all_layers = tuple(range(units.costs.num_layers))
    per_prompt = units.generate + units.costs.train(units.size, all_layers)
    return per_prompt * (num_folds * prompts) + units.costs.keep_gradients(len(all_layers)) * (
        num_folds * bool(prompts)
    )


def _response_cost(units: UnitCosts, layers: tuple[int, ...], num_folds: int, prompts: int) -> Cost:
    return units.walk(layers, 1 + RESPONSE_SIZES) * (num_folds * prompts)


def _imitation(units: UnitCosts, candidates: tuple[int, ...], budget: Cost) -> tuple[int, int]:
    """Returns the candidates and prompts of `self_imitation` within a budget, or zeros."""
    for num_layers in IMITATION_LAYERS:
        prompts = largest(partial(_imitation_cost, units, candidates, num_layers), budget, MAX_IMITATION_PROMPTS)
        if prompts >= MIN_IMITATION_PROMPTS:
            return num_layers, prompts
    return 0, 0


def _imitation_cost(units: UnitCosts, candidates: tuple[int, ...], num_layers: int, prompts: int) -> Cost:
    if not num_layers:
        return Cost()
    layers = response_layers(candidates, num_layers)
    # All passes start at the layer.
    steps = sum((units.costs.train(units.few_size, (layer,)) for layer in layers), Cost()) * IMITATION_STEPS
    steps -= Cost(layer_tokens=units.few_size.tokens * sum(layers) * IMITATION_STEPS)
    judge = sum((units.costs.forward(units.size, layer) for layer in layers), Cost()) * 2
    inputs = Cost(layer_tokens=(units.few_size.tokens + units.size.tokens) * max(layers))
    passes = (steps + judge + inputs) * (prompts * IMITATION_MARGIN)
    return passes + units.costs.keep_gradients(len(layers)) * IMITATION_STEPS


def _cutoff_cost(units: UnitCosts, pairs: int) -> Cost:
    # Both answers after both prompts, once without an exchange and once for every depth.
    answer = min(units.completion_tokens, ANSWER_TOKENS)
    size = PassSize.estimated(units.prompt_tokens + (units.completion_tokens - answer) / 2, answer, 2) * (2 * pairs)
    if units.completion_tokens <= ANSWER_TOKENS and units.group_size >= RESPONSE_GROUP:
        size = units.few_size * (2 * pairs)
    # Both answers after both prompts: whole without an exchange and at the first block, and from some depths on.
    depth = units.costs.num_layers
    partial_passes = units.costs.forward(size, depth // 2) * (CUTOFF_DEPTHS - 2)
    return units.costs.forward(size) * 2 + units.costs.forward(size, depth - 1) + partial_passes


def _cutoff_pairs(units: UnitCosts, budget: Cost) -> int:
    pairs = largest(partial(_cutoff_cost, units), budget, MAX_CUTOFF_PAIRS)
    return pairs if pairs >= MIN_CUTOFF_PAIRS else 0


def _without_gradients(cutoff_pairs: int, *, is_small: bool = False) -> ProbePlan:
    by = "layers are predicted by depth and cutoff" if cutoff_pairs else "layers are predicted by depth alone"
    if is_small:  # depth says nothing about them
        by = "nothing tells the layers apart (a larger --budget or more --steps do)"
    return ProbePlan(
        fold_prompts=0,
        response_folds=0,
        response_prompts=0,
        cutoff_pairs=cutoff_pairs,
        notes=(
            f"the budget pays for no gradients: {by}, and learning rates start at a value that is typical of the "
            "model's width",
        ),
    )


def largest(cost_of: Callable[[int], Cost], budget: Cost, at_most: int) -> int:
    """Returns the largest number up to `at_most` whose cost fits the budget, or 0; the cost must grow with it."""
    return next((number for number in range(at_most, 0, -1) if cost_of(number).fits(budget)), 0)
