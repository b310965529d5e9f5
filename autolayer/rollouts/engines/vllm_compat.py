"""Every private part of vLLM that --rollouts vllm relies on; if one has moved, `load_vllm` fails with a sentence.

The extra `vllm` pins one version (pyproject.toml). To move to a newer one, run `make test-vllm` first. The development
endpoints of a vLLM server are in vllm_client.py.
"""

import importlib
import inspect
import os
from functools import reduce
from typing import Any

from autolayer.core.errors import ConfigError

TESTED = "0.30.0"
"""The version of the extra `vllm`."""

SEAMS: dict[str, tuple[str, ...]] = {
    "vllm:LLM.generate": ("prompts", "sampling_params", "use_tqdm"),
    "vllm:LLM.sleep": ("level",),
    "vllm:LLM.wake_up": (),
    "vllm:LLM.reset_prefix_cache": (),
    "vllm:LLM.collective_rpc": ("method", "kwargs"),
    "vllm:SamplingParams": (
        "temperature", "top_p", "top_k", "seed", "max_tokens", "stop_token_ids", "logprobs", "detokenize",
    ),
    "vllm.engine.arg_utils:EngineArgs": (
        "model", "dtype", "max_model_len", "gpu_memory_utilization", "enable_sleep_mode", "enforce_eager",
        "enable_prefix_caching", "generation_config", "logprobs_mode", "max_num_seqs", "seed", "disable_log_stats",
        "distributed_executor_backend",
    ),
    # What "reload_weights" names in `collective_rpc`, and who takes its arguments.
    "vllm.v1.worker.gpu_worker:Worker.reload_weights": (),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.reload_weights": ("weights_iterator",),
    "vllm.envs:VLLM_ENABLE_V1_MULTIPROCESSING": (),
}  # fmt: skip
"""Maps each class, method or variable, as `module:name`, to the arguments that are relied on."""


def load_vllm() -> Any:
    """Imports vLLM, whose engines then run in this process, and checks `SEAMS`."""
    # Weights can be passed by reference only if the engine runs in this process.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        vllm: Any = importlib.import_module("vllm")
    except ImportError as error:
        raise ConfigError(
            f'--rollouts vllm needs vLLM ({error}): `pip install -e ".[vllm]"`, or --rollouts transformers.'
        ) from None
    for seam, arguments in SEAMS.items():
        if missing := _missing(seam, arguments):
            raise ConfigError(
                f"vLLM {vllm.__version__} has no {missing}, which --rollouts vllm relies on: `pip install -e "
                f'".[vllm]"` installs the tested vLLM {TESTED}, or give --rollouts transformers.'
            )
    return vllm


def _missing(seam: str, arguments: tuple[str, ...]) -> str:
    module, _, name = seam.partition(":")
    try:
        found: Any = reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        return seam
    known = inspect.signature(found).parameters if arguments else ()
    return next((f"argument '{argument}' of {seam}" for argument in arguments if argument not in known), "")
