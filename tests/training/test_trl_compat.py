"""The private parts of TRL that training/trl_compat.py relies on are where it expects them."""

import inspect

import pytest
import trl
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from autolayer.training.trl_compat import add_fused_lm_head

METHODS = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "model", "inputs"],
    "_get_per_token_logps_and_entropies": ["self", "model", "input_ids", "attention_mask", "logits_to_keep"],
    "_move_model_to_device": ["self", "model", "device"],
}
"""Methods that are overridden, and the arguments that are relied on."""

NAMES = {
    "_generate_and_score_completions": ["self.beta", "importance_sampling_ratio", "tool_mask", "advantages"],
    "_compute_loss": [
        "ref_per_token_logps", "self.beta", "completion_ids", "prompt_mask", "_get_per_token_logps",
        'self._metrics[mode]["kl"]', 'self._metrics[mode]["entropy"]',
    ],
    "_generate": ["_last_loaded_step", "rollout_func", "env_mask", "logprobs"],
    "log": ["self._metrics[mode].clear()"],
    "__init__": ["self.beta", "self.use_vllm", "rollout_func"],
}  # fmt: skip
"""Attributes and keys that are set, read or replaced, by the method that uses them."""

MOVED = "TRL {version} has moved {what}: read its {method} and change autolayer/training/trl_compat.py with it."


@pytest.mark.parametrize("method", METHODS)
def test_what_is_overridden_takes_the_same_arguments(method: str) -> None:
    message = MOVED.format(version=trl.__version__, what=f"GRPOTrainer.{method}", method=method)
    assert hasattr(GRPOTrainer, method), message
    found = list(inspect.signature(getattr(GRPOTrainer, method)).parameters)
    assert found[: len(METHODS[method])] == METHODS[method], f"{message} It takes {found}."


@pytest.mark.parametrize(("method", "name"), [(method, name) for method, names in NAMES.items() for name in names])
def test_what_is_set_is_read_there(method: str, name: str) -> None:
    message = MOVED.format(version=trl.__version__, what=name, method=method)
    assert name in inspect.getsource(getattr(GRPOTrainer, method)), message


def test_a_single_device_can_be_set() -> None:
    message = MOVED.format(version=trl.__version__, what="TrainingArguments._n_gpu", method="n_gpu")
    assert "_n_gpu" in inspect.getsource(GRPOConfig.n_gpu.fget), message  # pyright: ignore


def test_the_head_that_never_holds_all_logits_patches_a_model() -> None:
    message = MOVED.format(version=trl.__version__, what="add_fused_lm_head", method="trainer/utils.py")
    assert list(inspect.signature(add_fused_lm_head).parameters)[:2] == ["model", "temperature"], message
