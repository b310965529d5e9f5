"""Rollouts by vLLM in this process: one engine for all arms, which follows the policy layer by layer.

Only what has changed since the last completion is sent, as whole decoder layers, since vLLM fuses the maps inside one;
then the prefix cache, which belongs to the weights before, is dropped, and both engines have to give one completion
the same log-probabilities. An arm's change costs the layers of both arms, never the model.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from autolayer.engine import UNLIMITED, Completion, Engine
from autolayer.errors import ConfigError, TrainingError
from autolayer.layers import find_layers
from autolayer.lora import plain_weights
from autolayer.tasks.suites import Decoding

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3}
LOOSE = 0.25
"""Mean difference of log-probabilities (nats) at which the engines cannot have the same weights: in float32, and in
the 16-bit formats, whose kernels differ by some hundredths."""
MEMORY_SHARE = 0.5
"""Of the device: for a second copy of the weights and the cache of many sequences."""
CHECKED_TOKENS = 16
"""Of the completion that is compared after a change; the prompt is a real one, so that a stale cache would show."""


class VLLMEngine(Engine):
    """See `Engine`; needs the extra `vllm`.

    Args:
        path: What the model was loaded from.
        memory_share: Of the device's memory, for vLLM's copy of the weights and its key-value cache.

    Raises:
        ConfigError: vLLM is not installed, or cannot run this model.
    """

    is_copy = True

    def __init__(self, *args: Any, path: str, memory_share: float = MEMORY_SHARE, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tensors_sent = self.bytes_sent = 0
        """All syncs together."""
        self.sync_seconds = 0.0
        self._stale: set[int] = set()
        self._all_stale = False
        self.llm = self._start(path, memory_share)

    def _start(self, path: str, memory_share: float) -> Any:
        # Weights can be handed over by reference only where the engine runs in this process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            import vllm  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(
                f'--rollouts vllm needs vLLM ({error}): `pip install "autolayer[vllm]"`, or --rollouts transformers.'
            ) from None
        try:
            return vllm.LLM(
                model=path,
                dtype=str(self.model.dtype).removeprefix("torch."),
                max_model_len=self.context if self.context < UNLIMITED else None,
                gpu_memory_utilization=memory_share,
                enforce_eager=self.model.device.type == "cpu",
                enable_prefix_caching=True,
                generation_config="vllm",  # nothing of the model's own sampling settings
                logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
                max_num_seqs=self.max_sequences,
                seed=0,
                disable_log_stats=True,
            )
        except Exception as error:  # whatever vLLM raises for a model or a device that it cannot use
            first = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise ConfigError(f"vLLM cannot run {path} ({first[0]}): give --rollouts transformers.") from error

    def _sample(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], limits: Sequence[int], ends: set[int]
    ) -> list[Completion]:
        if not prompt_ids:
            return []
        self._follow(prompt_ids[0])
        return self._ask(prompt_ids, seeds, limits, ends)

    def _ask(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], limits: Sequence[int], ends: set[int]
    ) -> list[Completion]:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        asked = [
            SamplingParams(
                temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=seed, max_tokens=limit,
                stop_token_ids=sorted(ends), logprobs=0, detokenize=False,
            )
            for seed, limit in zip(seeds, limits, strict=True)
        ]  # fmt: skip
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompt_ids], asked, use_tqdm=False)
        completions = []
        for output in outputs:
            (sampled,) = output.outputs
            log_probs = [found[token].logprob for token, found in zip(sampled.token_ids, sampled.logprobs, strict=True)]
            completions.append(Completion(sampled.token_ids, log_probs))
        return completions

    # The policy's weights

    def changed(self, names: Iterable[str]) -> None:
        changed = {id(self.model.get_parameter(name)) for name in names}
        for index, block in enumerate(find_layers(self.model)):
            inside = {id(parameter) for parameter in block.parameters()} & changed
            self._stale |= {index} if inside else set()
            changed -= inside
        self._all_stale |= bool(changed)  # embedding, head, last norm

    def _follow(self, prompt: list[int]) -> None:
        """Sends what is stale, and checks that it has arrived.

        Raises:
            TrainingError: The two engines do not agree.
        """
        if not self._stale and not self._all_stale:
            return
        started = time.perf_counter()
        blocks = None if self._all_stale else [find_layers(self.model)[index] for index in sorted(self._stale)]
        # As in a checkpoint: transformers keeps the experts of a mixture in one tensor, vLLM reads them one by one.
        pairs = list(revert_weight_conversion(self.model, dict(plain_weights(self.model, blocks))).items())
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(pairs)})
        self.llm.reset_prefix_cache()
        self._stale, self._all_stale = set(), False
        self.tensors_sent += len(pairs)
        self.bytes_sent += sum(tensor.nbytes for _, tensor in pairs)
        self.sync_seconds += time.perf_counter() - started
        self._check(prompt)

    def _check(self, prompt: list[int]) -> None:
        limit = max(1, min(CHECKED_TOKENS, self.context - len(prompt)))
        # As the policy samples, also where an evaluation cuts the tail off: what is left would sum to 1 there.
        with self.decoding(Decoding(temperature=self.temperature, max_new_tokens=limit)):
            (completion,) = self._ask([prompt], [0], [limit], set())
        assert completion.log_probs is not None
        training = self.model.training
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *completion]], device=self.model.device)
            logits = self.model.eval()(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / self.temperature
            self.model.train(training)
            wanted = logits.log_softmax(-1)
        sampled = torch.tensor(list(completion), device=wanted.device)
        ours = wanted.gather(1, sampled[:, None])[:, 0].cpu()
        gap = float((ours - torch.tensor(completion.log_probs)).abs().mean())
        if not gap <= TOLERANCE.get(self.model.dtype, LOOSE):
            raise TrainingError(
                f"after a change of weights vLLM and the policy differ by {gap:.3g} nats a token: what would be "
                "trained is not what was sampled. Give --rollouts transformers."
            )
