"""Rollouts by transformers' `generate`, from the very model that is trained.

Sampling adds one request's own Gumbel noise to the logits and takes the largest (the Gumbel-max trick), which is exact
sampling at the given temperature.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import psutil
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from autolayer.rollouts.engines.base import Completion, Engine
from autolayer.rollouts.engines.top_k_top_p import mask_tail


class TransformersEngine(Engine):
    """Always in step with the weights, no second copy."""

    def _sample(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], limits: Sequence[int], ends: set[int]
    ) -> list[Completion]:
        completions = [Completion() for _ in prompt_ids]
        longest = max(map(len, prompt_ids), default=0) + self.max_new_tokens
        at_once = min(self.max_sequences, max_cached_sequences(self.model, longest))
        for limit in sorted(set(limits), reverse=True):
            wanted = [index for index, own in enumerate(limits) if own == limit]
            for some in (wanted[start : start + at_once] for start in range(0, len(wanted), at_once)):
                written = self._batch([prompt_ids[i] for i in some], [seeds[i] for i in some], limit, ends)
                for index, ids in zip(some, written, strict=True):
                    completions[index] = Completion(ids)
        return completions

    def _batch(self, prompt_ids: list[list[int]], seeds: Sequence[int], limit: int, ends: set[int]) -> list[list[int]]:
        device = self.model.device
        width = max(map(len, prompt_ids))
        pad = self.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompt_ids], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=device)
        noise = LogitsProcessorList([_GumbelNoise(seeds, self.temperature, device, self.top_k, self.top_p)])
        with _generation_mode(self.model, self._settings(limit, ends)), torch.no_grad():
            output = cast(Any, self.model).generate(input_ids=input_ids, attention_mask=mask, logits_processor=noise)
        return [_until_end(ids, ends) for ids in output[:, width:].tolist()]  # pyright: ignore

    def _settings(self, limit: int, ends: set[int]) -> GenerationConfig:
        """Every field that a model's own generation config could change is set: RL samples from the policy itself."""
        return GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            pad_token_id=self.pad_token_id,
            eos_token_id=sorted(ends),
            bos_token_id=self.tokenizer.bos_token_id,
            disable_compile=True,
        )


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """Cuts the padding after the first token that ends a completion, which stays."""
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids


def max_cached_sequences(model: PreTrainedModel, num_tokens: int) -> int:
    """How many sequences of this length the key-value cache can hold in half of the free memory."""
    on_gpu = model.device.type == "cuda"
    free = torch.cuda.mem_get_info(model.device)[0] if on_gpu else psutil.virtual_memory().available
    return max(1, int(free / 2 / (cache_bytes_per_token(model) * num_tokens)))


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Of the keys and values of one token."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize


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
