"""When a race is over, and what it reports then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autolayer.core.arms import Arm
from autolayer.reporting.results import Rung
from autolayer.search.evidence import paired_gain
from autolayer.search.ledger import Ledger
from autolayer.search.posterior import Posterior
from autolayer.search.records import Outcome, RaceConfig, RacedCandidate, Verdict, name_layers

Z95 = 1.9600
"""Normal quantile of a two-sided 95% interval."""


def settled(config: RaceConfig, view: Posterior, measured: bool) -> Verdict | None:
    """'clear' or 'tied' if no further run is worth its cost.

    A prediction alone settles nothing as long as there are two candidates: it was never tested on this model.
    """
    if len(view.ranked) == 1:
        return "clear"
    if not measured:
        return None
    leader = view.ranked[0]
    if view.probability_best_C[leader] >= config.confidence:
        return "clear"
    return "tied" if view.regret_C[leader] <= config.regret else None


def indistinguishable(config: RaceConfig, view: Posterior, index: int) -> list[int]:
    """Candidates that are better than the one at `index` with a probability above 1 - confidence, itself included."""
    above_C = view.probability_above(index)
    return [i for i in view.ranked if i == index or above_C[i] > 1 - config.confidence]


def conclude(
    ledger: Ledger,
    view: Posterior,
    base_select_rewards_I: Sequence[float],
    verdict: Verdict | None,
    reason: str,
) -> Outcome:
    """Chooses, and says why.

    Args:
        ledger: Everything that was run.
        view: What it says.
        base_select_rewards_I: Reward of the base model per `select` item.
        verdict: None if the race ends although nothing is settled.
        reason: Why it ends then.
    """
    config, leader = ledger.config, view.ranked[0]
    tied = indistinguishable(config, view, leader)
    best = leader
    if verdict is None and ledger.results:  # a race that never began leaves all that the prediction cannot tell apart
        tied = [i for i in tied if ledger.slots(view.candidates[i].layers) or i == leader]
    if verdict == "tied":
        # The user allows to lose `regret`: of the measured layers that stay within it, the higher is cheaper to train.
        # Where the budget ended the race nothing stays within it, and what little is known should not be given away.
        close = [i for i in tied if view.regret_C[i] <= config.regret and ledger.slots(view.candidates[i].layers)]
        best = max(close, key=lambda i: view.candidates[i].layers, default=leader)
    name, regret = name_layers(view.candidates[best].layers), float(view.regret_C[best])
    others = sorted(view.candidates[i].layers for i in tied if i != best) if verdict != "clear" else []
    if verdict == "clear":
        probability = view.probability_best_C[best]
        text = f"{name} is best with probability {probability:.3f} (asked for: {config.confidence:g})"
        if len(view.candidates) == 1:
            text = f"{name} {'is' if len(view.candidates[best].layers) == 1 else 'are'} the only candidate"
    elif verdict == "tied":
        text = (
            f"choosing {name} is expected to lose {regret:.3f} of the full gain, no more than the {config.regret:g} "
            f"allowed; it cannot be told apart from {_listed(others)}"
        )
    else:
        text = f"{reason}; choosing {name} is expected to lose {regret:.3f} of the full gain"
        text += f", and it cannot be told apart from {_listed(others)}" if others else ""
    return Outcome(
        best=view.candidates[best].layers,
        tied=tuple(others),
        verdict=verdict or "budget_spent",
        stop_reason=text,
        expected_regret=regret,
        winner=_winner(ledger, view, best),
        ranking=_ranking(ledger, view, base_select_rewards_I),
        spent=ledger.spent,
    )


def _listed(layers: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(name_layers(each) for each in layers) or "no other layer"


def _winner(ledger: Ledger, view: Posterior, index: int) -> Arm:
    candidate = view.candidates[index]
    for slot in ledger.slots(candidate.layers):
        latest = ledger.latest(slot)
        if latest and slot.rate_index == view.rate_index_C[index]:
            return latest.arm
    return Arm(layers=candidate.layers, learning_rate=candidate.learning_rate, seed=ledger.config.seed)


def _ranking(ledger: Ledger, view: Posterior, base_select_rewards_I: Sequence[float]) -> tuple[RacedCandidate, ...]:
    probability_C = view.probability_best_C
    rows = []
    for index, candidate in enumerate(view.candidates):
        rungs = []
        for run, result in ledger.results.items():
            if run.slot.layers == candidate.layers:
                gain, error = paired_gain(result, base_select_rewards_I)
                rungs.append(
                    Rung(
                        steps=run.to_step,
                        gain=gain,
                        low=gain - Z95 * error,
                        high=gain + Z95 * error,
                        learning_rate=result.arm.learning_rate,
                        seed=run.slot.seed,
                    )
                )
        arm = _winner(ledger, view, index)
        shown = next((r for r in rungs if (r.steps, r.learning_rate, r.seed) == _place(arm)), None)
        rows.append(
            RacedCandidate(
                layers=candidate.layers,
                predicted=candidate.predicted,
                measured=shown.gain if shown else None,
                measured_low=shown.low if shown else None,
                measured_high=shown.high if shown else None,
                measured_steps=shown.steps if shown else None,
                expected=float(view.expected_C[index]),
                probability_best=float(probability_C[index]),
                failed=next((why for run, why in ledger.failures.items() if run.slot.layers == candidate.layers), None),
                rungs=tuple(rungs),
            )
        )
    rank = {index: place for place, index in enumerate(view.ranked)}
    order = sorted(range(len(rows)), key=lambda i: (-np.round(probability_C[i], 12), rank.get(i, len(rank))))
    return tuple(rows[i] for i in order)


def _place(arm: Arm) -> tuple[int, float, int]:
    return arm.step, arm.learning_rate, arm.seed
