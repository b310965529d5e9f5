"""Decides when a race is over, and builds its outcome."""

from collections.abc import Sequence

import numpy as np

from autolayer.core.arms import Arm, RungResult
from autolayer.core.layer_set import name_layers
from autolayer.reporting.results import Rung
from autolayer.search.evidence import paired_gain
from autolayer.search.posterior import Posterior
from autolayer.search.race_state import RaceState
from autolayer.search.records import RaceConfig, RacedCandidate, RaceOutcome, RaceVerdict, Run

Z95 = 1.9600
"""Normal quantile of a two-sided 95% interval."""
CLIFF = 0.15
"""Fall of contribution from one candidate to the next above it that counts as a cliff. Of equals, a cheaper layer is
chosen, but none beside a cliff, whose place is known to a layer or two only."""


def settled_verdict(config: RaceConfig, posterior: Posterior, measured: bool) -> RaceVerdict | None:
    """Returns 'clear' or 'tied' if no further run is worth its cost, else None."""
    if len(posterior.ranked) == 1:
        return "clear"
    if not measured:  # a prediction alone settles nothing, because it was never tested on this model
        return None
    leader = posterior.ranked[0]
    if posterior.probability_best_C[leader] >= config.confidence:
        return "clear"
    return "tied" if posterior.regret_C[leader] <= config.regret else None


def indistinguishable(config: RaceConfig, posterior: Posterior, index: int) -> list[int]:
    """Returns the candidates, `index` included, that beat the one at `index` with probability above 1 - confidence."""
    above_C = posterior.probability_above(index)
    return [i for i in posterior.ranked if i == index or above_C[i] > 1 - config.confidence]


def beside_cliff(posterior: Posterior, index: int) -> bool:
    """Returns True if the next candidate above the one at `index` is expected to contribute `CLIFF` less."""
    candidates = posterior.candidates
    above = [i for i, candidate in enumerate(candidates) if candidate.layers > candidates[index].layers]
    nearest = min(above, key=lambda i: candidates[i].layers, default=index)
    return bool(posterior.expected_C[index] - posterior.expected_C[nearest] > CLIFF)


def conclude(
    state: RaceState,
    posterior: Posterior,
    base_select_rewards_I: Sequence[float],
    verdict: RaceVerdict | None,
    reason: str,
) -> RaceOutcome:
    """Chooses the best layers, and states the reason in a sentence; without a verdict it begins with `reason`."""
    config, leader = state.config, posterior.ranked[0]
    tied = indistinguishable(config, posterior, leader)
    best = leader
    if verdict is None and state.results:  # without any run, unmeasured candidates stay tied
        tied = [i for i in tied if state.slots(posterior.candidates[i].layers) or i == leader]
    if verdict == "tied":
        # The user accepts a loss of `regret`: of the measured layers within it, the highest is the cheapest to train.
        # If the budget ended the race, no layer is within it, and the leader stays the best choice.
        close = [
            i
            for i in tied
            if posterior.regret_C[i] <= config.regret
            and state.slots(posterior.candidates[i].layers)
            and not beside_cliff(posterior, i)
        ]
        best = max(close, key=lambda i: posterior.candidates[i].layers, default=leader)
    name, regret = name_layers(posterior.candidates[best].layers), float(posterior.regret_C[best])
    others = sorted(posterior.candidates[i].layers for i in tied if i != best) if verdict != "clear" else []
    if verdict == "clear":
        probability = posterior.probability_best_C[best]
        text = f"{name} is best with probability {probability:.3f} (required: {config.confidence:g})"
        if len(posterior.candidates) == 1:
            text = f"{name} {'is' if len(posterior.candidates[best].layers) == 1 else 'are'} the only candidate"
    elif verdict == "tied":
        text = (
            f"choosing {name} is expected to lose {regret:.3f} of the full gain, no more than the {config.regret:g} "
            f"allowed; it cannot be told apart from {_listed(others)}"
        )
    else:
        text = f"{reason}; choosing {name} is expected to lose {regret:.3f} of the full gain"
        text += f", and it cannot be told apart from {_listed(others)}" if others else ""
    return RaceOutcome(
        best=posterior.candidates[best].layers,
        tied=tuple(others),
        verdict=verdict or "budget_spent",
        stop_reason=text,
        expected_regret=regret,
        winner=_winner(state, posterior, best),
        ranking=_ranking(state, posterior, base_select_rewards_I),
        spent=state.spent,
    )


def _listed(layers: Sequence[tuple[int, ...]]) -> str:
    if all(len(each) == 1 for each in layers):
        return name_layers([layer for each in layers for layer in each])
    return ", ".join(name_layers(each) for each in layers)


def _winner(state: RaceState, posterior: Posterior, index: int) -> Arm:
    candidate = posterior.candidates[index]
    for slot in state.slots(candidate.layers):
        latest = state.latest(slot)
        if latest and slot.rate_index == posterior.rate_index_C[index]:
            return latest.arm
    return Arm(layers=candidate.layers, learning_rate=candidate.learning_rate, seed=state.config.seed)


def _ranking(
    state: RaceState, posterior: Posterior, base_select_rewards_I: Sequence[float]
) -> tuple[RacedCandidate, ...]:
    """Returns every candidate once: by probability of being the best, then by posterior mean, failed ones last."""
    probability_C, (low_C, high_C) = posterior.probability_best_C, posterior.interval_C
    rows = []
    for index, candidate in enumerate(posterior.candidates):
        rungs = [
            _rung(run, result, base_select_rewards_I)
            for run, result in state.results.items()
            if run.slot.layers == candidate.layers
        ]
        arm = _winner(state, posterior, index)
        key = arm.step, arm.learning_rate, arm.seed
        rows.append(
            RacedCandidate(
                layers=candidate.layers,
                predicted=candidate.predicted,
                measured=next((r for r in rungs if (r.steps, r.learning_rate, r.seed) == key), None),
                expected=float(posterior.expected_C[index]),
                expected_low=float(low_C[index]) if posterior.eligible_C[index] else None,
                expected_high=float(high_C[index]) if posterior.eligible_C[index] else None,
                probability_best=float(probability_C[index]),
                failed=next((why for run, why in state.failures.items() if run.slot.layers == candidate.layers), None),
                rungs=tuple(rungs),
            )
        )
    rank = {index: place for place, index in enumerate(posterior.ranked)}
    order = sorted(range(len(rows)), key=lambda i: (-np.round(probability_C[i], 12), rank.get(i, len(rank))))
    return tuple(rows[i] for i in order)


def _rung(run: Run, result: RungResult, base_select_rewards_I: Sequence[float]) -> Rung:
    gain = paired_gain(result, base_select_rewards_I)
    return Rung(
        steps=run.to_step,
        gain=gain.mean,
        low=gain.mean - Z95 * gain.error,
        high=gain.mean + Z95 * gain.error,
        learning_rate=result.arm.learning_rate,
        seed=run.slot.seed,
    )
