"""Advantages: the rewards for GRPO, whose advantages TRL computes, and GiGPO's advantage of every step of an episode.

GiGPO (arXiv 2505.10978) gives every step of an episode its own advantage, A = A^E + omega * A^S. A^E compares the
returns of the G episodes of a prompt, as GRPO does (eq. 3). Each episode counts once, however long it is; the authors'
code takes the statistics over steps. A^S compares the discounted returns R_t = sum_k gamma^(k-t) r_k of all steps of
these episodes that were taken in the same state (eqs. 6 to 8); it is 0 for a step whose state occurs only once.

The loss is TRL's for GRPO: a mean over the tokens of an episode, then over episodes. Eq. 9 is a mean over all N * T
steps instead. With TRL's loss, a step of a long episode weighs less than one of a short episode, and a long action
weighs more than a short one. The two agree if all episodes and all actions have the same length.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch

from autolayer.core.config import GiGPOConfig
from autolayer.rollouts.rollouts import Rollouts, Turn

EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, as in TRL's GRPO."""

Episode = Sequence[Turn]


def centred_rewards(rollouts: Rollouts) -> list[float]:
    """Returns one reward per completion, P * G in all, for TRL, which computes GRPO's advantages in float32.

    Rewards so large that float32 would lose their differences are centred on their group's mean, which changes no
    advantage.
    """
    rewards_P_G = rollouts.rewards_P_G()
    mean_P_1 = rewards_P_G.mean(1, keepdim=True)
    is_large_P_1 = mean_P_1.abs() > 1e3 * rewards_P_G.std(1, keepdim=True)
    return torch.where(is_large_P_1, rewards_P_G - mean_P_1, rewards_P_G).flatten().tolist()


def has_advantage(rollouts: Rollouts, own: slice) -> bool:
    """Returns whether any of a rank's `own` completions has a reward other than the mean of its group.

    It takes the rollouts of all ranks, because a group may be divided between ranks.
    """
    rewards_P_G = rollouts.rewards_P_G()
    varies_P_1 = rewards_P_G.amax(1, keepdim=True) > rewards_P_G.amin(1, keepdim=True)  # the mean has rounding errors
    differs_P_G = varies_P_1 & (rewards_P_G != rewards_P_G.mean(1, keepdim=True))
    return bool(differs_P_G.flatten()[own].any())


def step_advantages(episodes: Sequence[Episode], group_size: int, config: GiGPOConfig) -> list[list[float]]:
    """Returns GiGPO's advantage of every turn of P * G episodes, of which those of one prompt are adjacent."""
    advantages: list[list[float]] = []
    for start in range(0, len(episodes), group_size):
        advantages += _group_advantages(episodes[start : start + group_size], config)
    return advantages


def discounted(rewards: Sequence[float], gamma: float) -> list[float]:
    """Returns the discounted return R_t = sum_k gamma^(k-t) r_k of every step."""
    returns, later = [], 0.0
    for reward in reversed(rewards):
        later = reward + gamma * later
        returns.append(later)
    return returns[::-1]


def _group_advantages(group: Sequence[Episode], config: GiGPOConfig) -> list[list[float]]:
    returns = _normalized([sum(turn.reward for turn in episode) for episode in group])
    found = [[advantage] * len(episode) for advantage, episode in zip(returns, group, strict=True)]
    returns_to_go = [discounted([turn.reward for turn in episode], config.gamma) for episode in group]
    steps_by_state: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, episode in enumerate(group):
        for turn, step in enumerate(episode):
            steps_by_state[step.state].append((index, turn))
    for steps in steps_by_state.values():
        normalized = _normalized([returns_to_go[episode][turn] for episode, turn in steps])
        for (episode, turn), advantage in zip(steps, normalized, strict=True):
            found[episode][turn] += config.omega * advantage
    return found


def _normalized(values: Sequence[float]) -> list[float]:
    """Returns each value minus the mean, divided by the unbiased standard deviation."""
    if max(values) == min(values):  # their mean may be off by a rounding error, which must not become an advantage
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    scale = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)) + EPSILON
    return [(value - mean) / scale for value in values]
