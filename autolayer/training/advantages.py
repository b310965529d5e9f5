"""Advantages: of whole completions, compared within their group, and of every step of an episode (GiGPO).

GRPO's advantages are TRL's. GiGPO (arXiv 2505.10978) gives every step of an episode its own, A = A^E + omega * A^S.
A^E compares the returns of the G episodes of a prompt, as GRPO does (eq. 3); each episode counts once, however long
(the authors' code takes the statistics over steps). A^S compares the discounted returns R_t = sum_k gamma^(k-t) r_k of
all steps of these episodes that were taken in the same state (eqs. 6 to 8); a step that stands alone has none.

The loss is TRL's for GRPO, a mean over an episode's tokens and then over episodes. Eq. 9 is a mean over all N * T
steps: there a step of a long episode weighs as much as one of a short episode, and here less; a long action weighs
more than a short one. Where all episodes and all actions have one length the two are the same.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

import torch

from autolayer.core.config import GiGPOConfig
from autolayer.rollouts.types import Rollouts, Turn

EPSILON = 1e-4
"""Added to a standard deviation, as TRL's GRPO does."""

Episode = Sequence[Turn]


def centred_rewards(rollouts: Rollouts) -> list[float]:
    """Returns the rewards, without their group's mean where it would hide their differences in float32 (TRL's).

    Advantages do not depend on a group's mean.
    """
    rewards_P_G = rollouts.rewards_P_G()
    mean_P_1 = rewards_P_G.mean(1, keepdim=True)
    hides_P_1 = mean_P_1.abs() > 1e3 * rewards_P_G.std(1, keepdim=True)
    return torch.where(hides_P_1, rewards_P_G - mean_P_1, rewards_P_G).flatten().tolist()


def has_advantage(rollouts: Rollouts, own: slice) -> bool:
    """Returns whether any of a rank's completions differs from the mean of its group, which may lie across ranks."""
    rewards_P_G = rollouts.rewards_P_G()
    varies_P_1 = rewards_P_G.amax(1, keepdim=True) > rewards_P_G.amin(1, keepdim=True)  # the mean has rounding errors
    differs_P_G = varies_P_1 & (rewards_P_G != rewards_P_G.mean(1, keepdim=True))
    return bool(differs_P_G.flatten()[own].any())


def step_advantages(episodes: Sequence[Episode], group_size: int, config: GiGPOConfig) -> list[list[float]]:
    """Returns GiGPO's advantage of every turn of every episode.

    Args:
        episodes: P * G of them, those of one prompt behind each other.
        group_size: G.
        config: Weights and norms.
    """
    advantages: list[list[float]] = []
    for start in range(0, len(episodes), group_size):
        advantages += _of_group(episodes[start : start + group_size], config)
    return advantages


def discounted(rewards: Sequence[float], gamma: float) -> list[float]:
    """Returns R_t of every step."""
    returns, later = [], 0.0
    for reward in reversed(rewards):
        later = reward + gamma * later
        returns.append(later)
    return returns[::-1]


def _of_group(group: Sequence[Episode], config: GiGPOConfig) -> list[list[float]]:
    returns = [sum(turn.reward for turn in episode) for episode in group]
    episode_advantages = _compared(returns, config)
    found = [[advantage] * len(episode) for advantage, episode in zip(episode_advantages, group, strict=True)]
    later = [discounted([turn.reward for turn in episode], config.gamma) for episode in group]
    for steps in _same_states(group, config.similarity):
        if len(steps) > 1:
            compared = _compared([later[episode][turn] for episode, turn in steps], config)
            for (episode, turn), advantage in zip(steps, compared, strict=True):
                found[episode][turn] += config.omega * advantage
    return found


def _same_states(group: Sequence[Episode], similarity: float | None) -> list[list[tuple[int, int]]]:
    """Groups steps, as (episode, turn), by state. Similar states join the first group whose state they resemble."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for index, episode in enumerate(group):
        for turn, step in enumerate(episode):
            state = step.state
            if similarity is not None and state not in groups:
                alike = (known for known in groups if _resemble(known, state) >= similarity)
                state = next(alike, state)
            groups.setdefault(state, []).append((index, turn))
    return list(groups.values())


def _resemble(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()


def _compared(values: Sequence[float], config: GiGPOConfig) -> list[float]:
    """Returns each value minus the mean, divided by the (unbiased) deviation where the config says so."""
    mean = math.fsum(values) / len(values)
    scale = 1.0
    if config.normalize == "std":
        scale = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)) + EPSILON
    # Of equal values the mean is off by a rounding, which must not become a direction.
    return [0.0 if max(values) == min(values) else (value - mean) / scale for value in values]
