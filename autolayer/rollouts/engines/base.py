"""The base class of rollout engines, which take token ids and return sampled token ids.

Every request has its own seed, so the completions of two policies differ only where their probabilities do, and
paired comparisons need far fewer items. Top-p and top-k cut the tail of the distribution that RL learns from, so they
are for evaluation only (`Engine.decoding`).
"""

from __future__ import annotations

import bisect
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from autolayer.distributed.process_group import ProcessGroup
from autolayer.models.loading import max_positions
from autolayer.rollouts.prompts import render
from autolayer.tasks.suites import Decoding
from autolayer.tasks.thinking import OPEN

UNLIMITED = 1 << 30
MAX_SEQUENCES = 512
"""Default limit of sequences generated at once: more are hardly any faster."""


class Completion(list[int]):
    """Sampled token ids and the log-probabilities they were sampled with; None if the engine is the policy itself."""

    def __init__(self, ids: Iterable[int] = (), log_probs: Sequence[float] | None = None) -> None:
        super().__init__(ids)
        self.log_probs = None if log_probs is None else list(log_probs)


class Engine(ABC):
    """Samples completions from a policy.

    Args:
        model: The policy. `mark_changed` reports every change of its weights to an engine with its own copy.
        tokenizer: The tokenizer of the model, with an eos and a pad token.
        max_new_tokens: Maximum number of tokens of a completion.
        temperature: Sampling temperature.
        max_context: Maximum number of tokens of a sequence, if it is less than the model has positions for.
        max_sequences: Maximum number of sequences generated at once.
    """

    has_own_weights = False
    """True if the engine has its own copy of the weights and its own kernels, whose differences training corrects."""

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
        """Maximum number of tokens of prompt and completion together."""
        self.model_max_context = self.max_context
        """The same limit by the model and the task alone; a vLLM server may hold less."""
        self.max_sequences = max_sequences
        self._sampler: Callable[..., list[Completion]] | None = None
        self.seconds, self.tokens = 0.0, 0
        declared = model.generation_config.eos_token_id if model.generation_config is not None else None
        # `read_tokenizer` has refused a tokenizer without these.
        self.pad_token_id = cast(int, tokenizer.pad_token_id)
        ends = {cast(int, tokenizer.eos_token_id), end_of_turn_id(tokenizer)}
        ends |= {declared} if isinstance(declared, int) else set(declared or [])
        self.eos_token_ids: list[int] = sorted(token for token in ends if token is not None)

    @contextlib.contextmanager
    def sampling_by(self, sample_requests: Callable[..., list[Completion]]) -> Iterator[None]:
        """Makes `generate` sample by another function inside, such as one that runs this engine's on all ranks."""
        self._sampler = sample_requests
        try:
            yield
        finally:
            self._sampler = None

    @contextlib.contextmanager
    def decoding(self, decoding: Decoding | None) -> Iterator[None]:
        """Uses other sampling settings inside the block, such as those of an evaluation; None changes nothing."""
        before = self.temperature, self.top_k, self.top_p, self.max_new_tokens
        try:
            if decoding is not None:
                self.temperature, self.top_k, self.top_p = decoding.temperature, decoding.top_k, decoding.top_p
                self.max_new_tokens = decoding.max_new_tokens
            yield
        finally:
            self.temperature, self.top_k, self.top_p, self.max_new_tokens = before

    def generate(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], *, stop_ids: Sequence[int] = ()
    ) -> list[Completion]:
        """Samples one completion per prompt; a completion that ended by itself includes the token that ended it.

        A completion has fewer than `max_new_tokens` tokens if its prompt leaves less of the context.

        Args:
            prompt_ids: Token ids, one list per request.
            seeds: One seed per request; equal prompt, weights and seed give the same completion.
            stop_ids: Tokens that end a completion besides the end-of-text tokens.

        Returns:
            The completions, in the order of the prompts.
        """
        started = time.perf_counter()
        limits = [min(self.max_new_tokens, self.max_context - len(ids)) for ids in prompt_ids]
        assert min(limits, default=1) > 0, "length_limits.py and multi_turn.py refuse a prompt that fills the context"
        ends = set(self.eos_token_ids) | set(stop_ids)
        completions = (self._sampler or self.sample_requests)(prompt_ids, seeds, limits, ends)
        self.seconds += time.perf_counter() - started
        self.tokens += sum(map(len, completions))
        return completions

    @abstractmethod
    def sample_requests(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], limits: Sequence[int], ends: set[int]
    ) -> list[Completion]:
        """Samples one completion per prompt; `generate` calls it.

        Args:
            prompt_ids: Token ids, one list per request.
            seeds: One seed per request.
            limits: Maximum number of tokens of each completion.
            ends: Token ids that end a completion.

        Raises:
            EngineError: The engine failed, or has other weights than the policy.
        """

    def finished(self, completion_ids: list[int]) -> bool:
        """Returns whether a completion ended by itself and not by the token limit."""
        return bool(completion_ids) and completion_ids[-1] in self.eos_token_ids

    def mark_changed(self, names: Iterable[str]) -> None:  # noqa: B027 (most engines have nothing to do)
        """Marks parameters of the policy as changed; an engine with a copy sends them before it samples again."""

    def share_weights(self, process_group: ProcessGroup) -> None:  # noqa: B027
        """Brings a copy that several ranks sample from up to date before any of them samples. Called on every rank."""

    def sleep(self) -> None:  # noqa: B027
        """Frees the memory that only sampling needs, before forward and backward passes of the policy."""


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the special token that the chat template writes after an assistant's message, or None.

    For base models with a chat template it often differs from the end-of-text token (Qwen3-8B-Base: <|im_end|>).
    """
    if tokenizer.chat_template is None:
        return None
    answer = "an answer of the assistant"
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    try:
        text = render(tokenizer, messages, prompt=False)
    except Exception:  # a template may raise anything if it requires other messages
        return None
    ids = tokenizer(text.rpartition(answer)[2].lstrip(), add_special_tokens=False)["input_ids"]
    first = cast(list[int], ids)[:1]
    return first[0] if first and first[0] in tokenizer.all_special_ids else None


def think_prefix(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int]) -> str:
    """Returns the tag that the prompt already opened for its completion: `<think>` and a line break, or nothing."""
    return f"{OPEN}\n" if str(tokenizer.decode(prompt_ids[-8:])).rstrip().endswith(OPEN) else ""


def truncate_at_stop(tokenizer: PreTrainedTokenizerBase, ids: Completion, stop: str) -> Completion:
    """Returns a completion up to and including the token that completes a stop text; all of it without that text."""
    if stop not in tokenizer.decode(ids, skip_special_tokens=True):
        return ids
    length = bisect.bisect_left(
        range(len(ids)), True, key=lambda n: stop in tokenizer.decode(ids[:n], skip_special_tokens=True)
    )
    return Completion(ids[:length], None if ids.log_probs is None else ids.log_probs[:length])
