"""Rollouts by vLLM in this process, with one engine for all arms (weight_sync.py sends it the weights)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from autolayer.core.config import VLLMConfig
from autolayer.core.errors import ConfigError, EngineError
from autolayer.rollouts.engines.base import UNLIMITED, Completion
from autolayer.rollouts.engines.vllm_compat import load_vllm
from autolayer.rollouts.engines.weight_sync import SyncedEngine


class VLLMEngine(SyncedEngine):
    """Generates with vLLM (extra `vllm`) in this process, one engine per process of the run; see `Engine`."""

    def __init__(self, *args: Any, path: str, settings: VLLMConfig, num_processes: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)
        self.settings = settings
        self._asleep = False
        if settings.sleep and self.model.device.type != "cuda":
            raise ConfigError("[vllm] sleep = true gives memory back on CUDA devices only: leave it out.")
        self._vllm = load_vllm()
        self.llm = self._start(path, num_processes)
        self.sleep()

    def _start(self, path: str, num_processes: int) -> Any:
        try:
            return self._vllm.LLM(
                model=path,
                dtype=str(self.model.dtype).removeprefix("torch."),
                max_model_len=self.max_context if self.max_context < UNLIMITED else None,
                gpu_memory_utilization=self.settings.memory_share,
                enable_sleep_mode=self.settings.sleep,
                enforce_eager=self.model.device.type == "cpu",
                enable_prefix_caching=True,
                generation_config="vllm",  # do not use the model's own sampling settings
                logprobs_mode="processed_logprobs",  # log-probabilities of the distribution that is sampled from
                max_num_seqs=self.max_sequences,
                seed=0,
                disable_log_stats=True,
                # Uses the existing device and process group; the default makes its own, on the first GPU.
                distributed_executor_backend="external_launcher" if num_processes > 1 else None,
            )
        except Exception as error:  # vLLM has no common type for a model or a device that it cannot use
            lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
            why = next((line for line in lines if line.startswith("Value error")), lines[0])
            raise ConfigError(
                f"vLLM cannot run {path} ({why}): give --rollouts transformers, or where it lacks memory another "
                "memory_share in [vllm]."
            ) from error

    def sample_requests(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], limits: Sequence[int], ends: set[int]
    ) -> list[Completion]:
        """See `Engine.sample_requests`."""
        if self._asleep:  # before weights are sent, because a sleeping engine has no memory for them
            try:
                self.llm.wake_up()
            except Exception as error:  # CUDA and vLLM raise different types
                raise EngineError(
                    f"vLLM did not wake up beside the training ({str(error).splitlines()[0]}): give a smaller "
                    "memory_share in [vllm], then rerun the command to resume."
                ) from error
            self._asleep = False
        self.sync_weights()
        if prompt_ids:
            self._check(prompt_ids[0], lambda limit: self._generate(prompt_ids[:1], [0], [limit], set()))
        return self._generate(prompt_ids, seeds, limits, ends)

    def _generate(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], limits: Sequence[int], ends: set[int]
    ) -> list[Completion]:
        parameters = [
            self._vllm.SamplingParams(
                temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=seed, max_tokens=limit,
                stop_token_ids=sorted(ends), logprobs=0, detokenize=False,
            )
            for seed, limit in zip(seeds, limits, strict=True)
        ]  # fmt: skip
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompt_ids], parameters, use_tqdm=False)
        completions = []
        for output in outputs:
            (sampled,) = output.outputs
            log_probs = [found[token].logprob for token, found in zip(sampled.token_ids, sampled.logprobs, strict=True)]
            completions.append(Completion(sampled.token_ids, log_probs))
        return completions

    def sleep(self) -> None:
        """Frees the memory of the weights and the cache until the next sampling, if [vllm] sleep is set."""
        if self.settings.sleep and not self._asleep:
            self.llm.sleep(level=1)  # moves the weights to host memory and drops the key-value cache with its prefixes
            self._asleep = True

    def _send(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        if not self.llm.reset_prefix_cache():
            raise EngineError(
                "vLLM could not clear its prefix cache after a weight update. Rerun the command to resume, or pass "
                "--rollouts transformers."
            )
