"""Rollouts: prompts in, completions out, and what they earned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from autolayer.tasks.base import Row

# P prompts, G completions of a group, B = P * G sequences, T tokens, D hidden width.


def request_seed(*words: object) -> int:
    """A 63-bit seed from words such as (run seed, "train", step, index): the same on every machine."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Turn(NamedTuple):
    """One action of an episode, or the whole completion of a task without an environment."""

    start: int
    stop: int
    """The model's own tokens are `completion_ids[start:stop]`; what lies between two turns it has read."""
    reward: float
    state: str
    """The state that the action was taken in, by name; '' where there is no environment."""


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Sampled completions of P prompts, G each, in prompt order: lists of length B = P * G."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    """From the first token written to the last; over several turns with the observations in between."""
    turns: list[tuple[Turn, ...]]
    actions: list[tuple[str, ...]]
    """What was written, decoded without special tokens: the completion, or one text for each turn."""
    rewards: list[float]
    """Over several turns the sum of their rewards."""
    finished: list[bool]
    """Ended by itself, not by the token limit; over several turns, every action did."""
    prefilled: list[int]
    """Tokens read in order to write: the prompt, and over several turns everything so far, again for each of them."""
    log_probs: list[list[float] | None]
    """For each token of `completion_ids` what the engine sampled it at (0 where the model only read); None where the
    engine is the policy itself."""
    group_size: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the reward has logged of this very batch (TRL's `log_metric`): shares that could not be judged, and why."""

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
    ) -> Rollouts:
        """Those of a task without an environment."""
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
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rollouts:
        """From plain values, as `dataclasses.asdict` makes them."""
        turns = [tuple(Turn(*turn) for turn in episode) for episode in values["turns"]]
        return cls(**{**values, "turns": turns, "actions": list(map(tuple, values["actions"]))})

    @property
    def texts(self) -> list[str]:
        """What was written; each action in lines of its own."""
        return ["\n".join(actions) for actions in self.actions]

    def well_formed(self, is_well_formed: Callable[[str], bool]) -> list[float]:
        """For each completion, the share of its actions that look like one; 0 or 1 where there is one turn."""
        return [sum(map(is_well_formed, actions)) / max(1, len(actions)) for actions in self.actions]

    @property
    def num_generated(self) -> int:
        return sum(turn.stop - turn.start for turns in self.turns for turn in turns)

    @property
    def num_tokens(self) -> int:
        """Of whole sequences, as they are trained on."""
        return sum(map(len, self.completion_ids)) + sum(map(len, self.prompt_ids))

    def own_masks(self) -> list[list[int]]:
        """For each completion, 1 at the tokens that the model wrote."""
        masks = [[0] * len(ids) for ids in self.completion_ids]
        for mask, turns in zip(masks, self.turns, strict=True):
            for turn in turns:
                mask[turn.start : turn.stop] = [1] * (turn.stop - turn.start)
        return masks

    def rewards_P_G(self) -> torch.Tensor:
        return torch.tensor(self.rewards, dtype=torch.float64).view(-1, self.group_size)

    def __add__(self, other: Rollouts) -> Rollouts:
        joined: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in LISTS}
        return Rollouts(**joined, group_size=self.group_size)

    @classmethod
    def joined(cls, parts: Sequence[Rollouts], group_size: int) -> Rollouts:
        """What several processes have sampled, each its consecutive part."""
        whole: dict[str, Any] = {name: [entry for part in parts for entry in getattr(part, name)] for name in LISTS}
        metrics: dict[str, float] = {}
        for part in parts:
            for name, value in part.metrics.items():  # of a batch: means
                metrics[name] = metrics.get(name, 0.0) + value * len(part.rewards) / len(whole["rewards"])
        return cls(**whole, group_size=group_size, metrics=metrics)

    def between(self, start: int, stop: int, group_size: int) -> Rollouts:
        """Those of completions `start` to `stop`, which may cut through a group."""
        return self._take(range(start, stop), group_size)

    def __getitem__(self, prompts: slice) -> Rollouts:
        """The rollouts of a slice of the prompts, whole groups."""
        start, stop, _ = prompts.indices(len(self.rewards) // self.group_size)
        return self._take(range(start * self.group_size, stop * self.group_size), self.group_size)

    def thinned(self, completions: int) -> Rollouts:
        """The first so many completions of every group."""
        rows = [row for row in range(len(self.rewards)) if row % self.group_size < completions]
        return self._take(rows, min(completions, self.group_size))

    def _take(self, rows: Sequence[int], group_size: int) -> Rollouts:
        taken: dict[str, Any] = {name: [getattr(self, name)[row] for row in rows] for name in LISTS}
        return Rollouts(**taken, group_size=group_size)


LISTS = ("prompt_ids", "completion_ids", "turns", "actions", "rewards", "finished", "prefilled", "log_probs")
"""The fields of Rollouts that have an entry for each completion."""


def encode_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], template_kwargs: dict) -> list[list[int]]:
    """Token ids of plain-text prompts, or of message lists through the chat template, as TRL makes them."""
    prompts = [row["prompt"] for row in rows]
    if not isinstance(prompts[0], str):
        encoded = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **template_kwargs
        )
        return [list(ids) for ids in encoded["input_ids"]]  # pyright: ignore
    return [list(ids) for ids in tokenizer(text=prompts)["input_ids"]]  # pyright: ignore
