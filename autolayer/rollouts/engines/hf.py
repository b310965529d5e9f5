"""Rollouts by transformers' `generate`, with the model that is trained.

The sampler adds Gumbel noise to the logits and takes the largest (the Gumbel-max trick), which is exact sampling at the
given temperature. Each request has its own noise, so two policies that sample the same request differ in fewer tokens
than if their cumulative distributions were inverted.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import psutil
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from autolayer.distributed.fsdp import is_sharded, number_of_rank_0
from autolayer.rollouts.engines.base import Completion, Engine

MAX_NOISE_TOKENS = 8
MAX_NOISE_ENTRIES = 1 << 20
"""Largest number of tokens and of entries (4 MB of float32) of the noise that is drawn in one call for a request."""


class TransformersEngine(Engine):
    """Generates with the trained model itself: it needs no second copy and no weight sync."""

    def sample_requests(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], limits: Sequence[int], ends: set[int]
    ) -> list[Completion]:
        """See `Engine.sample_requests`."""
        completions = [Completion() for _ in prompt_ids]
        longest = max(map(len, prompt_ids), default=0) + self.max_new_tokens
        batch_size = number_of_rank_0(self.model, min(self.max_sequences, max_cached_sequences(self.model, longest)))
        for limit in sorted(set(limits), reverse=True):
            indices = [index for index, own_limit in enumerate(limits) if own_limit == limit]
            for batch in (indices[start : start + batch_size] for start in range(0, len(indices), batch_size)):
                sampled = self._sample_batch([prompt_ids[i] for i in batch], [seeds[i] for i in batch], limit, ends)
                for index, ids in zip(batch, sampled, strict=True):
                    completions[index] = Completion(ids)
        return completions

    def _sample_batch(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], limit: int, ends: set[int]
    ) -> list[list[int]]:
        device = self.model.device
        width = max(map(len, prompt_ids))
        pad = self.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompt_ids], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=device)
        processors = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k:
            processors.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            processors.append(TopPLogitsWarper(self.top_p))
        processors.append(GumbelNoise(seeds, device))
        with _generation_mode(self.model, self._generation_config(limit, ends)), torch.no_grad():
            output = cast(Any, self.model).generate(
                input_ids=input_ids,
                attention_mask=mask,
                logits_processor=processors,
                synced_gpus=is_sharded(self.model),  # no rank stops before the others
            )
        return [_until_end(ids, ends) for ids in output[:, width:].tolist()]  # pyright: ignore

    def _generation_config(self, limit: int, ends: set[int]) -> GenerationConfig:
        """Returns a config that sets every field a model's own config could change: RL samples from the policy."""
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
    return ids[: next((length for length, token in enumerate(ids, 1) if token in ends), len(ids))]


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise to logits, so that the largest logit of a row is a sample from its softmax.

    Every request has its own generator, so its tokens do not depend on the rest of the batch. The generators fill a
    table of `noise_tokens` steps at a time, so a step costs one addition for all rows.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.device, self.step = device, 0
        self.noise_B_N_V: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns logits plus noise, shape (B, V)."""
        vocabulary = scores.shape[-1]
        if self.noise_B_N_V is None:
            self.noise_B_N_V = torch.empty(
                len(scores), noise_tokens(vocabulary), vocabulary, dtype=torch.float32, device=self.device
            )
        index = self.step % self.noise_B_N_V.shape[1]
        if index == 0:
            for rows, generator in zip(self.noise_B_N_V, self.generators, strict=True):
                rows.exponential_(generator=generator)
            self.noise_B_N_V.log_().neg_()
        self.step += 1
        return scores.float() + self.noise_B_N_V[:, index]


def noise_tokens(vocabulary: int) -> int:
    """Returns for how many tokens noise is drawn at once, which must not depend on the batch, or samples would."""
    return max(1, min(MAX_NOISE_TOKENS, MAX_NOISE_ENTRIES // vocabulary))


def max_cached_sequences(model: PreTrainedModel, num_tokens: int) -> int:
    """Returns how many sequences fit in half of the free memory, with their keys, values and noise."""
    on_gpu = model.device.type == "cuda"
    free = torch.cuda.mem_get_info(model.device)[0] if on_gpu else psutil.virtual_memory().available
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    noise_bytes = 4 * noise_tokens(vocabulary) * vocabulary
    return max(1, int(free / 2 / (cache_bytes_per_token(model) * num_tokens + noise_bytes)))


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Returns the bytes that the keys and values of one token take in all layers."""
    config = model.config.get_text_config(decoder=True)
    total = 0
    # Gemma 4 has layers of several widths.
    for layer in getattr(config, "per_layer_config", None) or [config] * config.num_hidden_layers:
        heads = getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads
        total += heads * (getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads)
    return 2 * total * model.dtype.itemsize


@contextlib.contextmanager
def _generation_mode(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Evaluates with our generation config; `generate` would take what that leaves unset from the model's own."""
    training, own_config = model.training, model.generation_config
    with contiguous_head(model):
        try:
            model.eval()
            model.generation_config = config
            yield
        finally:
            model.generation_config = own_config
            model.train(training)


@contextlib.contextmanager
def contiguous_head(model: PreTrainedModel) -> Iterator[None]:
    """Gives the output head contiguous states while the block runs; `generate` prefills it with a slice of them.

    On a CPU a product with such a slice is many times slower: 24 s instead of .03 s for 64 states of 576 entries and a
    bf16 vocabulary of 49,152, 2 s instead of .2 s in float32 (torch 2.13).
    """
    head = model.get_output_embeddings()
    handle = head and head.register_forward_pre_hook(lambda module, args: tuple(state.contiguous() for state in args))
    try:
        yield
    finally:
        if handle:
            handle.remove()
