"""The rollout engine: token ids in, sampled token ids out.

Sampling adds one request's own Gumbel noise to the logits and takes the largest (the Gumbel-max trick), which is
exact sampling at the given temperature. Two policies that answer one request with one seed therefore differ only
where their probabilities do, and paired comparisons need far fewer items. Top-p and top-k, which cut the tail that RL
learns from, are for evaluation only (`TransformersEngine.decoding`).
"""

from __future__ import annotations

import bisect
import contextlib
import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import psutil
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from autolayer.masks import mask_tail
from autolayer.models import max_positions
from autolayer.tasks.suites import Decoding
from autolayer.tasks.thinking import OPEN

UNLIMITED = 1 << 30


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
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


def opening(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int]) -> str:
    """The first word of a completion that its prompt has written already: `<think>`, or nothing."""
    return f"{OPEN}\n" if str(tokenizer.decode(prompt_ids[-8:])).rstrip().endswith(OPEN) else ""


def cut_at(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: str) -> list[int]:
    """The tokens until a text first holds `stop`, the one that completes it included; all if it never does."""
    if stop not in tokenizer.decode(ids, skip_special_tokens=True):
        return ids
    length = bisect.bisect_left(
        range(len(ids)), True, key=lambda n: stop in tokenizer.decode(ids[:n], skip_special_tokens=True)
    )
    return ids[:length]


class TransformersEngine:
    """Generates with the model itself: always in step with the weights, no second copy."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        temperature: float,
        max_context: int | None = None,
        max_sequences: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.top_k, self.top_p = 0, 1.0
        self.context = min(max_context or UNLIMITED, max_positions(model.config) or UNLIMITED)
        """Tokens of a sequence at the most, read and written together."""
        self.max_sequences = max_sequences
        """Sequences generated at once; None for as many as half of the free memory holds the key-value cache of."""
        self.seconds, self.tokens = 0.0, 0
        """Time spent and tokens generated so far: the measured price of a generated token."""
        declared = model.generation_config.eos_token_id if model.generation_config is not None else None
        declared = [declared] if isinstance(declared, int) else list(declared or [])
        # `read_tokenizer` has refused a tokenizer without these.
        self.pad_token_id = cast(int, tokenizer.pad_token_id)
        turn = end_of_turn(tokenizer)
        self.eos_token_ids = sorted({cast(int, tokenizer.eos_token_id), *declared, *([] if turn is None else [turn])})
        # Every field that a model's own generation config could change is set here: RL samples from the policy itself.
        self.config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            pad_token_id=self.pad_token_id,
            eos_token_id=self.eos_token_ids,
            bos_token_id=tokenizer.bos_token_id,
            disable_compile=True,
        )

    @contextlib.contextmanager
    def decoding(self, decoding: Decoding | None) -> Iterator[None]:
        """Samples inside as an evaluation asks for, outside from the policy again; None changes nothing."""
        before = self.temperature, self.top_k, self.top_p, self.config.max_new_tokens
        try:
            if decoding is not None:
                self.temperature, self.top_k, self.top_p = decoding.temperature, decoding.top_k, decoding.top_p
                self.config.max_new_tokens = decoding.max_new_tokens
            yield
        finally:
            self.temperature, self.top_k, self.top_p, self.config.max_new_tokens = before

    def generate(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], *, stop_ids: Sequence[int] = ()
    ) -> list[list[int]]:
        """Samples one completion per prompt, the token that ended it included where it ended by itself.

        A completion is shorter than asked for where its prompt leaves no more of the model's context.

        Args:
            prompt_ids: Token ids, one list per request.
            seeds: One seed per request: equal prompt, weights and seed give the same completion.
            stop_ids: Tokens that end a completion besides the end-of-text tokens.
        """
        started = time.perf_counter()
        completions: list[list[int]] = [[] for _ in prompt_ids]
        limits = [min(self.config.max_new_tokens or UNLIMITED, self.context - len(ids)) for ids in prompt_ids]
        assert min(limits, default=1) > 0, "a prompt that fills the context is refused before (fit.py, episodes.py)"
        longest = max(map(len, prompt_ids), default=0) + self.config.max_new_tokens
        at_once = self.max_sequences or sequences_that_fit(self.model, longest)
        for limit in sorted(set(limits), reverse=True):
            wanted = [index for index, own in enumerate(limits) if own == limit]
            for some in (wanted[start : start + at_once] for start in range(0, len(wanted), at_once)):
                written = self._generate_batch([prompt_ids[i] for i in some], [seeds[i] for i in some], stop_ids, limit)
                for index, ids in zip(some, written, strict=True):
                    completions[index] = ids
        self.seconds += time.perf_counter() - started
        self.tokens += sum(map(len, completions))
        return completions

    def _generate_batch(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], stop_ids: Sequence[int], limit: int
    ) -> list[list[int]]:
        device = self.model.device
        width = max(map(len, prompt_ids))
        pad = self.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompt_ids], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=device)
        noise = LogitsProcessorList([_GumbelNoise(seeds, self.temperature, device, self.top_k, self.top_p)])
        config, ends = self.config, {*self.eos_token_ids, *stop_ids}
        if stop_ids or limit != config.max_new_tokens:
            config = copy.deepcopy(config)
            config.eos_token_id, config.max_new_tokens = sorted(ends), limit
        with _generation_mode(self.model, config), torch.no_grad():
            output = cast(Any, self.model).generate(
                input_ids=input_ids, attention_mask=mask, generation_config=config, logits_processor=noise
            )
        return [_until_end(ids, ends) for ids in output[:, width:].tolist()]  # pyright: ignore

    def finished(self, completion_ids: list[int]) -> bool:
        return bool(completion_ids) and completion_ids[-1] in self.eos_token_ids


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """Cuts the padding after the first token that ends a completion, which stays."""
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids


def sequences_that_fit(model: PreTrainedModel, num_tokens: int) -> int:
    """How many sequences of this length the key-value cache can hold in half of the free memory, at most 512."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    on_gpu = model.device.type == "cuda"
    free = torch.cuda.mem_get_info(model.device)[0] if on_gpu else psutil.virtual_memory().available
    return max(1, min(512, int(free / 2 / (per_token * num_tokens))))


class _GumbelNoise(LogitsProcessor):
    """Logits over temperature, without their tail, plus each request's own noise: the largest is a sample."""

    def __init__(
        self, seeds: Sequence[int], temperature: float, device: torch.device, top_k: int = 0, top_p: float = 1.0
    ) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        logits = mask_tail(scores.float() / self.temperature, top_k=self.top_k, top_p=self.top_p)
        return logits - noise.log_()


@contextlib.contextmanager
def _generation_mode(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Evaluation mode and our generation config; `generate` fills whatever is unset from the model's own."""
    training, own = model.training, model.generation_config
    try:
        model.eval()
        model.generation_config = config
        yield
    finally:
        model.generation_config = own
        model.train(training)
