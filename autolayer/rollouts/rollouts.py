"""Rollouts: the sampled completions of a batch of prompts, with their rewards."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

# P prompts, G completions of a group, B = P * G sequences, T tokens, D hidden width.


def request_seed(*words: object) -> int:
    """Returns a 63-bit seed derived from words such as (run seed, "train", step, index), equal on every machine."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Turn(NamedTuple):
    """One action of an episode, or the whole completion of a task without an environment."""

    start: int
    stop: int
    """The model generated `completion_ids[start:stop]`; the tokens between two turns are observations."""
    reward: float
    state: str
    """Name of the state in which the action was taken; '' without an environment."""


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Sampled completions of P prompts, G each, in prompt order: lists of length B = P * G."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    """Tokens from the first generated one to the last; over several turns, the observations in between are included."""
    turns: list[tuple[Turn, ...]]
    actions: list[tuple[str, ...]]
    """Generated texts, decoded without special tokens: the completion, or one text per turn."""
    rewards: list[float]
    """Reward of each completion; over several turns, the sum of their rewards."""
    finished: list[bool]
    """True if the completion ended before the token limit; over several turns, if every action did."""
    prefilled: list[int]
    """Tokens prefilled for each completion: the prompt; over several turns, the sequence so far at every turn."""
    log_probs: list[list[float] | None]
    """Log-probability at which the engine sampled each token of `completion_ids` (0 for observations); None if the
    engine samples from the policy itself."""
    group_size: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics that the reward logged (TRL's `log_metric`), averaged over the batch."""
    judgements: list[Mapping[str, float | None]] = field(default_factory=list)
    """The values of the reward functions for each completion; nothing where an environment gives the rewards."""
    extras: list[Mapping[str, float | str | None]] = field(default_factory=list)
    """Further columns of each completion that the reward logged (TRL's `log_extra`)."""

    def __post_init__(self) -> None:
        for name in ("judgements", "extras"):
            if not getattr(self, name):
                object.__setattr__(self, name, [{} for _ in self.rewards])

    @classmethod
    def of_one_turn(
        cls,
        prompt_ids: list[list[int]],
        completion_ids: list[list[int]],
        texts: list[str],
        rewards: list[float],
        finished: list[bool],
        group_size: int,
        log_probs: list[list[float] | None] | None = None,
        metrics: Mapping[str, float] = MappingProxyType({}),
        judgements: Sequence[Mapping[str, float | None]] = (),
        extras: Sequence[Mapping[str, float | str | None]] = (),
    ) -> Rollouts:
        """Builds the rollouts of a task without an environment; every list has one entry per completion."""
        return cls(
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
            turns=[(Turn(0, len(ids), reward, ""),) for ids, reward in zip(completion_ids, rewards, strict=True)],
            actions=[(text,) for text in texts],
            rewards=rewards,
            finished=finished,
            prefilled=list(map(len, prompt_ids)),
            log_probs=log_probs or [None] * len(prompt_ids),
            group_size=group_size,
            metrics=dict(metrics),
            judgements=list(judgements),
            extras=list(extras),
        )

    @property
    def logged(self) -> dict[str, float]:
        """The metrics and, with several reward functions, the mean of each over what it judged, as TRL names it."""
        names = list(self.judgements[0]) if self.judgements else []
        known = {name: [value for each in self.judgements if (value := each[name]) is not None] for name in names}
        means = {f"rewards/{name}/mean": statistics.fmean(values) for name, values in known.items() if values}
        return {**self.metrics, **(means if len(names) > 1 else {})}

    @property
    def texts(self) -> list[str]:
        """The generated text of each completion; the actions of an episode are joined by line breaks."""
        return ["\n".join(actions) for actions in self.actions]

    def well_formed(self, is_well_formed: Callable[[str], bool]) -> list[float]:
        """Returns, for each completion, the share of its actions that are well formed: 0 or 1 if there is one turn."""
        return [sum(map(is_well_formed, actions)) / max(1, len(actions)) for actions in self.actions]

    @property
    def num_generated(self) -> int:
        """Number of generated tokens, without prompts and observations."""
        return sum(turn.stop - turn.start for turns in self.turns for turn in turns)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all sequences, prompts included, as training reads them."""
        return sum(map(len, self.completion_ids)) + sum(map(len, self.prompt_ids))

    @property
    def num_read(self) -> int:
        """Number of tokens that the engine reads: once for all completions of a prompt, at every turn of an episode."""
        alone = [count for turns, count in zip(self.turns, self.prefilled, strict=True) if len(turns) > 1]
        shared = {tuple(ids) for turns, ids in zip(self.turns, self.prompt_ids, strict=True) if len(turns) <= 1}
        return sum(alone) + sum(map(len, shared))

    def own_masks(self) -> list[list[int]]:
        """Returns one mask per completion: 1 for generated tokens, 0 for observations."""
        masks = [[0] * len(ids) for ids in self.completion_ids]
        for mask, turns in zip(masks, self.turns, strict=True):
            for turn in turns:
                mask[turn.start : turn.stop] = [1] * (turn.stop - turn.start)
        return masks

    def rewards_P_G(self) -> torch.Tensor:
        """Returns the rewards as a float64 tensor of shape (P, G)."""
        return torch.tensor(self.rewards, dtype=torch.float64).view(-1, self.group_size)

    @classmethod
    def joined(cls, parts: Sequence[Rollouts], group_size: int) -> Rollouts:
        """Joins consecutive parts; a metric is averaged by number of completions over the parts that have it."""
        whole: dict[str, Any] = {name: [entry for part in parts for entry in getattr(part, name)] for name in LISTS}
        metrics: dict[str, float] = {}
        for name in dict.fromkeys(name for part in parts for name in part.metrics):
            logged = [(part.metrics[name], len(part.rewards)) for part in parts if name in part.metrics]
            metrics[name] = sum(value * count for value, count in logged) / sum(count for _, count in logged)
        return cls(**whole, group_size=group_size, metrics=metrics)

    def ungrouped(self, completions: slice) -> Rollouts:
        """Returns a slice of the completions, which may split a group, as groups of one."""
        return self._take(range(len(self.rewards))[completions], 1)

    def __getitem__(self, prompts: slice) -> Rollouts:
        """Returns the rollouts of a slice of the prompts, in whole groups."""
        start, stop, _ = prompts.indices(len(self.rewards) // self.group_size)
        return self._take(range(start * self.group_size, stop * self.group_size), self.group_size)

    def thinned(self, completions: int) -> Rollouts:
        """Returns the first `completions` completions of every group."""
        rows = [row for row in range(len(self.rewards)) if row % self.group_size < completions]
        return self._take(rows, min(completions, self.group_size))

    def _take(self, rows: Sequence[int], group_size: int) -> Rollouts:
        taken: dict[str, Any] = {name: [getattr(self, name)[row] for row in rows] for name in LISTS}
        return Rollouts(**taken, group_size=group_size)


LISTS = (
    "prompt_ids", "completion_ids", "turns", "actions", "rewards", "finished", "prefilled", "log_probs", "judgements",
    "extras",
)  # fmt: skip
"""The fields of Rollouts with one entry per completion."""
