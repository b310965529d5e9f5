"""The rollout engine: token ids in, sampled token ids out. What every engine shares.

One request has one seed, so two policies that answer it differ only where their probabilities do, and paired
comparisons need far fewer items. Top-p and top-k, which cut the tail that RL learns from, are for evaluation only
(`Engine.decoding`).
"""

from __future__ import annotations

import bisect
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from autolayer.models.loading import max_positions
from autolayer.tasks.suites import Decoding
from autolayer.tasks.thinking import OPEN

UNLIMITED = 1 << 30
MAX_SEQUENCES = 512
"""Sequences generated at once, at the most: more are hardly any faster."""


class Completion(list[int]):
    """Sampled token ids, with the log-probabilities that they were sampled at.

    None where the engine is the policy itself: then there is nothing to correct for.
    """

    def __init__(self, ids: Iterable[int] = (), log_probs: Sequence[float] | None = None) -> None:
        super().__init__(ids)
        self.log_probs = None if log_probs is None else list(log_probs)

    def first(self, count: int) -> Completion:
        """The first so many tokens."""
        return Completion(self[:count], None if self.log_probs is None else self.log_probs[:count])


class Engine(ABC):
    """Generates from a model.

    Args:
        model: The policy. An engine with a copy of its own follows it (`mark_changed`).
        tokenizer: The model's, with an eos and a pad token.
        max_new_tokens: Of a completion.
        temperature: Of sampling.
        max_context: Tokens of a sequence at the most, where that is less than the model has positions for.
        max_sequences: Generated at once, at the most.
    """

    has_own_weights = False
    """Whether it has weights and numerics of its own: training then has to correct for the difference."""

    is_shared = False
    """Whether several processes at one run sample from the same copy, which the leader keeps up to date."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        temperature: float,
        max_context: int | None = None,
        max_sequences: int = MAX_SEQUENCES,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.top_k, self.top_p = 0, 1.0
        self.max_context = min(max_context or UNLIMITED, max_positions(model.config) or UNLIMITED)
        """Tokens of a sequence at the most, read and written together."""
        self.model_max_context = self.max_context
        """What that is where the engine holds as much as the model and the task do."""
        self.max_sequences = max_sequences
        self.seconds, self.tokens = 0.0, 0
        """Time spent and tokens generated so far: the measured price of a generated token."""
        declared = model.generation_config.eos_token_id if model.generation_config is not None else None
        declared = [declared] if isinstance(declared, int) else list(declared or [])
        # `read_tokenizer` has refused a tokenizer without these.
        self.pad_token_id = cast(int, tokenizer.pad_token_id)
        turn = end_of_turn_id(tokenizer)
        self.eos_token_ids: list[int] = sorted(
            {cast(int, tokenizer.eos_token_id), *declared, *([] if turn is None else [turn])}
        )

    @contextlib.contextmanager
    def decoding(self, decoding: Decoding | None) -> Iterator[None]:
        """Samples inside as an evaluation asks for, outside from the policy again; None changes nothing."""
        before = self.temperature, self.top_k, self.top_p, self.max_new_tokens
        try:
            if decoding is not None:
                self.temperature, self.top_k, self.top_p = decoding.temperature, decoding.top_k, decoding.top_p
                self.max_new_tokens = decoding.max_new_tokens
            yield
        finally:
            self.temperature, self.top_k, self.top_p, self.max_new_tokens = before

    @property
    def current_decoding(self) -> Decoding:
        """How it samples now."""
        return Decoding(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, max_new_tokens=self.max_new_tokens
        )

    def generate(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], *, stop_ids: Sequence[int] = ()
    ) -> list[Completion]:
        """Samples one completion per prompt, the token that ended it included where it ended by itself.

        A completion is shorter than asked for where its prompt leaves no more of the model's context.

        Args:
            prompt_ids: Token ids, one list per request.
            seeds: One seed per request: equal prompt, weights and seed give the same completion.
            stop_ids: Tokens that end a completion besides the end-of-text tokens.
        """
        started = time.perf_counter()
        limits = [min(self.max_new_tokens, self.max_context - len(ids)) for ids in prompt_ids]
        assert min(limits, default=1) > 0, (
            "a prompt that fills the context is refused before (length_limits.py, multi_turn.py)"
        )
        ends = set(self.eos_token_ids) | set(stop_ids)
        completions = self._sample(prompt_ids, seeds, limits, ends)
        self.seconds += time.perf_counter() - started
        self.tokens += sum(map(len, completions))
        return completions

    @abstractmethod
    def _sample(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], limits: Sequence[int], ends: set[int]
    ) -> list[Completion]:
        """`generate`, with the tokens that each completion may have, and those that end it."""

    def finished(self, completion_ids: list[int]) -> bool:
        return bool(completion_ids) and completion_ids[-1] in self.eos_token_ids

    def mark_changed(self, names: Iterable[str]) -> None:  # noqa: B027 (most engines have nothing to do)
        """Is told which of the policy's parameters have other values now. An engine with a copy has to follow."""

    def publish_version(self) -> str | None:
        """Where processes share a copy, the leader brings it up to date, and says what all have to find there."""
        return None

    def expect_version(self, version: str | None) -> None:  # noqa: B027
        """Is told what the leader has said."""

    def sleep(self) -> None:  # noqa: B027
        """Is told that passes of the policy come next: the memory that only sampling needs may be given back."""


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template puts behind an assistant's message, or None.

    Of base models that come with a template it often is not the end-of-text token (Qwen3-8B-Base: <|im_end|>).
    """
    if tokenizer.chat_template is None:
        return None
    answer = "an answer of the assistant"
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # whatever a template raises that wants other messages: then nothing is known
        return None
    ids = tokenizer(text.rpartition(answer)[2].lstrip(), add_special_tokens=False)["input_ids"]
    first = cast(list[int], ids)[:1]
    return first[0] if first and first[0] in tokenizer.all_special_ids else None


def think_prefix(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int]) -> str:
    """The first word of a completion that its prompt has written already: `<think>`, or nothing."""
    return f"{OPEN}\n" if str(tokenizer.decode(prompt_ids[-8:])).rstrip().endswith(OPEN) else ""


def truncate_at_stop(tokenizer: PreTrainedTokenizerBase, ids: Completion, stop: str) -> Completion:
    """The tokens until a text first holds `stop`, the one that completes it included; all if it never does."""
    if stop not in tokenizer.decode(ids, skip_special_tokens=True):
        return ids
    length = bisect.bisect_left(
        range(len(ids)), True, key=lambda n: stop in tokenizer.decode(ids[:n], skip_special_tokens=True)
    )
    return ids.first(length)
