"""Rollouts by transformers' `generate`, with the model that is trained.

The sampler adds Gumbel noise to the logits and takes the largest (the Gumbel-max trick), which is exact sampling at the
given temperature. Each request has its own noise, so two policies that sample the same request differ in fewer tokens
than if their cumulative distributions were inverted.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import psutil
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from autolayer.distributed.fsdp import is_sharded, number_of_rank_0
from autolayer.rollouts.engines.base import Completion, Engine

MAX_NOISE_TOKENS = 8
"""Largest number of tokens whose noise is drawn in one call for a request."""


class TransformersEngine(Engine):
    """Generates with the trained model itself: it needs no second copy and no weight sync."""

    _keeps_keys_and_values = True
    """False once the model's cache has turned out to hold something else."""

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
        processors = LogitsProcessorList()
        if self.temperature != 1:
            processors.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            processors.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            processors.append(TopPLogitsWarper(self.top_p))
        processors.append(GumbelNoise(seeds, self.model.device))
        inputs = self._padded(prompt_ids)
        width = inputs["input_ids"].shape[1]
        with _generation_mode(self.model, self._generation_config(limit, ends)), torch.no_grad():
            cache = self._shared_cache(prompt_ids)
            output = self._generate(**inputs, logits_processor=processors, past_key_values=cache)
        return [_until_end(ids, ends) for ids in output[:, width:].tolist()]

    def _shared_cache(self, prompt_ids: list[list[int]]) -> Any:
        """Returns the keys and values of all prompts but their last tokens; equal prompts are prefilled once.

        None if all prompts differ, or if the model keeps something else than keys and values, such as recurrent states.
        """
        rows = {ids: row for row, ids in enumerate(dict.fromkeys(map(tuple, prompt_ids)))}
        inputs = {name: tensor[:, :-1] for name, tensor in self._padded(list(map(list, rows))).items()}
        if len(rows) == len(prompt_ids) or not self._keeps_keys_and_values or not inputs["input_ids"].shape[1]:
            return None
        cache = self._generate(**inputs, max_new_tokens=1, return_dict_in_generate=True).past_key_values
        layers = cache.layers if type(cache) is DynamicCache else [None]
        self._keeps_keys_and_values = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        if not self._keeps_keys_and_values:
            return None
        cache.batch_select_indices(torch.tensor([rows[tuple(ids)] for ids in prompt_ids], device=self.model.device))
        return cache

    def _padded(self, prompt_ids: list[list[int]]) -> dict[str, torch.Tensor]:
        device, width = self.model.device, max(map(len, prompt_ids))
        ids = [[self.pad_token_id] * (width - len(ids)) + ids for ids in prompt_ids]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids]
        return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}

    def _generate(self, **options: Any) -> Any:
        # With a sharded model, no rank stops before the others.
        return cast(Any, self.model).generate(**options, synced_gpus=is_sharded(self.model))

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
    table of `noise_tokens` steps at a time, so a step costs one subtraction for all rows.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        on_cpu = device.type == "cpu"  # where NumPy draws three times as fast as torch
        make = np.random.default_rng if on_cpu else lambda seed: torch.Generator(device).manual_seed(seed)
        self.generators = [make(seed) for seed in seeds]
        self.device, self.step = device, 0
        self.negative_B_N_V: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns logits plus noise, shape (B, V)."""
        vocabulary = scores.shape[-1]
        if self.negative_B_N_V is None:
            self.negative_B_N_V = torch.empty(
                len(scores), noise_tokens(vocabulary, self.device), vocabulary, dtype=torch.float32, device=self.device
            )
        index = self.step % self.negative_B_N_V.shape[1]
        if index == 0:
            for rows, generator in zip(self.negative_B_N_V, self.generators, strict=True):
                _draw_exponentials(rows, generator)
            self.negative_B_N_V.log_()
        self.step += 1
        return scores.float() - self.negative_B_N_V[:, index]


def _draw_exponentials(rows: torch.Tensor, generator: np.random.Generator | torch.Generator) -> None:
    if isinstance(generator, torch.Generator):
        rows.exponential_(generator=generator)
    else:  # in float64, since a float32 could be 0, whose logarithm would decide the token
        rows.copy_(torch.from_numpy(generator.standard_exponential(tuple(rows.shape))))


def noise_tokens(vocabulary: int, device: torch.device) -> int:
    """Returns for how many tokens noise is drawn at once, which must not depend on the batch, or samples would."""
    entries = 1 << 16 if device.type == "cpu" else 1 << 20  # a call takes longer on a GPU, fresh memory on a CPU
    return max(1, min(MAX_NOISE_TOKENS, entries // vocabulary))


def max_cached_sequences(model: PreTrainedModel, num_tokens: int) -> int:
    """Returns how many sequences fit in half of the free memory, with their keys, values and noise."""
    on_gpu = model.device.type == "cuda"
    free = torch.cuda.mem_get_info(model.device)[0] if on_gpu else psutil.virtual_memory().available
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    noise_bytes = 4 * noise_tokens(vocabulary, model.device) * vocabulary
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
    head: Any = model.get_output_embeddings()
    with head.register_forward_pre_hook(lambda module, args: tuple(state.contiguous() for state in args)):
        yield
