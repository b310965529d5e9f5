"""Exchanges the hidden states of two prompts at one block, which shows what the blocks above still read of a prompt."""

import contextlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autolayer.core.probe_plan import ANSWER_TOKENS
from autolayer.rollouts.rollouts import Rollouts, request_seed
from autolayer.training.logprobs import ScoreBatch, scoring
from autolayer.training.partial_forward import PartialForward
from autolayer.training.prefix_trees import current
from autolayer.training.workbench import Workbench

# N pairs, B = 4 N sequences of T tokens, D hidden width.

KEPT_BYTES = 1 << 30
"""Largest size of the states of the pass without exchange that are kept, from which the other passes start."""


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
    group_size, excerpts = rollouts.group_size, dict[tuple[int, ...], Excerpt]()
    for first in range(0, len(rollouts.rewards), group_size):
        row = max(range(first, first + group_size), key=lambda index: rollouts.rewards[index])
        found = _excerpt(rollouts, row, random.Random(request_seed(seed, "cutoff", first)))
        excerpts.setdefault(tuple(found.context), found)
    waiting = sorted(excerpts.values(), key=lambda excerpt: len(excerpt.context))
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
    """Scores both answers of every pair after both contexts, with states exchanged between the two at one block.

    Passes with an exchange start below it, at the states of the pass without one, and two answers share their context.
    """

    def __init__(self, bench: Workbench, pairs: Sequence[tuple[Excerpt, Excerpt]]) -> None:
        self.bench = bench
        longest = max(len(each.context) for pair in pairs for each in pair) + ANSWER_TOKENS
        size = max(1, bench.micro_batching.sequences(longest) // 4)  # the sequences of a pair stay together
        self.parts = [self._part(pairs[start : start + size]) for start in range(0, len(pairs), size)]
        states = sum(part.input_ids.numel() for part, _, _ in self.parts) * len(bench.layers)
        width = bench.model.config.get_text_config(decoder=True).hidden_size
        self.every = max(1, math.ceil(states * width * bench.model.dtype.itemsize / KEPT_BYTES))
        """Each of so many blocks has the states that enter it kept."""
        self._entering: list[dict[int, torch.Tensor]] = [{} for _ in self.parts]

    def margins(self, block: int | None) -> torch.Tensor:
        """Returns D(A) - D(B) of each pair, (N,) in nats, with D(X) = log p(a | X) - log p(b | X).

        The states that enter `block` are exchanged at all positions before those that predict the answer, except for
        the first one; None: no exchange.

        Raises:
            NoSingleState: The block takes something else than one hidden state for each position.
        """
        found, bench = [], self.bench
        with scoring(bench.model, bench.engine.temperature), torch.no_grad():
            for part, kept in zip(self.parts, self._entering, strict=True):
                passes = PartialForward(bench.model, [part[0]])
                if block is None:
                    hooks = self._keeping(kept) if bench.scorer.starts_midway else contextlib.nullcontext()
                else:
                    hooks = _taken_from(bench.layers[block], *part)
                    start = max((each for each in kept if each <= block), default=0)
                    if start:
                        passes.start_at(start, [kept[start]])
                with hooks:
                    log_probs_B = bench.scorer.log_probs(passes).double().sum(1)
                found.append((log_probs_B.view(-1, 4) * log_probs_B.new_tensor([1, -1, -1, 1])).sum(1).cpu())
        return torch.cat(found)

    @contextlib.contextmanager
    def _keeping(self, kept: dict[int, torch.Tensor]) -> Iterator[None]:
        """Keeps the states that enter every so many blocks."""

        def keep(index: int) -> Any:
            def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                kept[index] = args[0] if args else kwargs["hidden_states"]

            return hook

        with contextlib.ExitStack() as hooks:
            for index in range(self.every, len(self.bench.layers), self.every):
                hook = self.bench.layers[index].register_forward_pre_hook(keep(index), with_kwargs=True)
                hooks.enter_context(hook)
            yield

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
def _taken_from(
    block: torch.nn.Module, batch: ScoreBatch, rows_B_T: torch.Tensor, columns_B_T: torch.Tensor
) -> Iterator[None]:
    """Makes the state that enters a block at each position of a batch be the one at a given row and column."""
    real_B_T = batch.attention_mask.bool()

    def exchange(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        state = args[0] if args else kwargs["hidden_states"]
        shape = current[-1].input_ids.shape if current else rows_B_T.shape
        if state.ndim != 3 or state.shape[:2] != shape:
            raise NoSingleState
        if current:  # sequences of one context have the same nodes for it, and the same donors
            nodes_B_T = current[-1].nodes_B_T
        else:
            nodes_B_T = torch.arange(rows_B_T.numel(), device=rows_B_T.device).view_as(rows_B_T)
        source = torch.arange(shape.numel(), device=nodes_B_T.device)
        source[nodes_B_T[real_B_T]] = nodes_B_T[rows_B_T, columns_B_T][real_B_T]
        state = state.flatten(0, 1)[source.to(state.device)].view_as(state)
        return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})

    with block.register_forward_pre_hook(exchange, with_kwargs=True):
        yield
