"""Exchanges the hidden states of two prompts at one block, which shows what the blocks above still read of a prompt."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autolayer.core.probe_plan import ANSWER_TOKENS
from autolayer.rollouts.rollouts import Rollouts, request_seed
from autolayer.training.logprobs import ScoreBatch, scoring
from autolayer.training.partial_forward import PartialForward
from autolayer.training.workbench import Workbench

# N pairs, B = 4 N sequences, T tokens, D hidden width.


class NoSingleState(Exception):
    """A block takes something else than one hidden state for each position, which cannot be exchanged."""


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A piece of a completion, and everything before it: the prompt, and what the completion says until there."""

    context: list[int]
    answer: list[int]


def make_pairs(rollouts: Rollouts, num_pairs: int, seed: int) -> list[tuple[Excerpt, Excerpt]]:
    """Pairs excerpts of different prompts, whose contexts are about equally long and whose answers differ.

    Each prompt gives one excerpt, of its completion with the highest reward: those of a right answer differ between
    problems more than others do.
    """
    group_size, excerpts = rollouts.group_size, []
    for first in range(0, len(rollouts.rewards), group_size):
        row = max(range(first, first + group_size), key=lambda index: rollouts.rewards[index])
        excerpts.append(_excerpt(rollouts, row, random.Random(request_seed(seed, "cutoff", first))))
    waiting = sorted(excerpts, key=lambda excerpt: len(excerpt.context))
    pairs: list[tuple[Excerpt, Excerpt]] = []
    while waiting:
        one = waiting.pop(0)
        if (other := next((each for each in waiting if each.answer != one.answer), None)) is not None:
            waiting.remove(other)
            pairs.append((one, other))
    pairs.sort(key=lambda pair: len(pair[1].context) - len(pair[0].context))
    return pairs[:num_pairs]


def _excerpt(rollouts: Rollouts, row: int, generator: random.Random) -> Excerpt:
    """Returns at most `ANSWER_TOKENS` tokens of one turn, from a random place on if the turn is longer."""
    prompt, completion = rollouts.prompt_ids[row], rollouts.completion_ids[row]
    turn = generator.choice(rollouts.turns[row])
    start = generator.randint(turn.start, max(turn.start, turn.stop - ANSWER_TOKENS))
    answer = completion[start : min(turn.stop, start + ANSWER_TOKENS)]
    return Excerpt(context=prompt + completion[:start], answer=answer)


class Exchange:
    """Scores both answers of every pair after both contexts, with states exchanged between the two at one block."""

    def __init__(self, bench: Workbench, pairs: Sequence[tuple[Excerpt, Excerpt]]) -> None:
        self.bench = bench
        longest = max(len(each.context) for pair in pairs for each in pair) + ANSWER_TOKENS
        size = max(1, bench.micro_batching.sequences(longest) // 4)  # the sequences of a pair stay together
        self.parts = [self._part(pairs[start : start + size]) for start in range(0, len(pairs), size)]

    def margins(self, block: int | None) -> torch.Tensor:
        """Returns D(A) - D(B) of each pair, (N,) in nats, with D(X) = log p(a | X) - log p(b | X).

        The states that enter `block` are exchanged at all positions before those that predict the answer, except for
        the first one; None: no exchange.

        Raises:
            NoSingleState: The block takes something else than one hidden state for each position.
        """
        found = []
        alone = scoring(self.bench.model, self.bench.engine.temperature, shares_prefixes=False)
        with alone, torch.no_grad():
            for batch, rows_B_T, columns_B_T in self.parts:
                entering = self.bench.layers[block] if block is not None else None
                with _taken_from(entering, rows_B_T, columns_B_T):
                    passes = PartialForward(self.bench.model, [batch])
                    log_probs_B = self.bench.scorer.log_probs(passes).double().sum(1)
                found.append((log_probs_B.view(-1, 4) * log_probs_B.new_tensor([1, -1, -1, 1])).sum(1).cpu())
        return torch.cat(found)

    def _part(self, pairs: Sequence[tuple[Excerpt, Excerpt]]) -> tuple[ScoreBatch, torch.Tensor, torch.Tensor]:
        """Returns four sequences for each pair: a after A, b after A, a after B, b after B.

        Also returns, for every position, the row and the column of the state that it takes in an exchange.
        """
        contexts = [x.context for one, other in pairs for x in (one, one, other, other)]
        answers = [x.answer for one, other in pairs for x in (one, other, one, other)]
        rollouts = Rollouts.of_one_turn(
            contexts, answers, [""] * len(answers), [0.0] * len(answers), [True] * len(answers), 1
        )
        batch = self.bench.scorer.batch(rollouts)
        rows, width = len(contexts), batch.input_ids.shape[1]
        rows_B_T = torch.arange(rows)[:, None].repeat(1, width)
        columns_B_T = torch.arange(width)[None].repeat(rows, 1)
        for row, context in enumerate(contexts):
            donor = row // 4 * 4 + (row % 4 + 2) % 4
            length = min(len(context), len(contexts[donor])) - 2  # neither the first position nor the one that predicts
            if length > 0:
                stop = len(context) - 1
                rows_B_T[row, stop - length : stop] = donor
                columns_B_T[row, stop - length : stop] += len(contexts[donor]) - len(context)
        device = batch.input_ids.device
        return batch, rows_B_T.to(device), columns_B_T.to(device)


@contextlib.contextmanager
def _taken_from(block: torch.nn.Module | None, rows_B_T: torch.Tensor, columns_B_T: torch.Tensor) -> Iterator[None]:
    """Makes the state that enters a block at each position be the one at a given row and column."""

    def exchange(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        state = args[0] if args else kwargs["hidden_states"]
        if state.ndim != 3 or state.shape[:2] != rows_B_T.shape:
            raise NoSingleState
        state = state[rows_B_T, columns_B_T]
        return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})

    handle = block.register_forward_pre_hook(exchange, with_kwargs=True) if block is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
