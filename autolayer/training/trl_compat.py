"""Every private part of TRL that autolayer relies on; tests/training/test_trl_compat.py fails if TRL changes one.

TRL is pinned to one minor release (pyproject.toml). To move to a newer one, run that test first.
"""

import inspect
import math
import os
import statistics
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback

from autolayer.training.kl_reference import KLReference
from autolayer.training.prefix_trees import shared_prefixes

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from trl.trainer.grpo_config import GRPOConfig  # noqa: E402  (reads the variable above)
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402
from trl.trainer.utils import add_fused_lm_head  # noqa: E402

__all__ = ["AdaptedGRPOTrainer", "GRPOConfig", "add_fused_lm_head"]


class AdaptedGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer for a model that the workbench owns: the trainer does not move, wrap or copy the model.

    Args:
        num_prompts: Number of prompts of the whole training. TRL gets their indices as text, and passes these on to
            `rollout_func`.
        beta: Weight of the KL term.
        reference: The reference policy of the KL term; needed when `beta` > 0.
        has_sampled_log_probs: True if rollouts include the log-probabilities that they were sampled with. TRL then
            corrects for the difference to the policy by importance weights.
        args, options: As in TRL; `args.beta` must be 0, or TRL would load a second model from disk.
    """

    def __init__(
        self,
        *,
        args: GRPOConfig,
        num_prompts: int,
        beta: float,
        reference: KLReference | None,
        has_sampled_log_probs: bool,
        **options: Any,
    ) -> None:
        assert args.beta == 0 and (reference is not None or not beta)
        # One process uses one device, even if it sees more: transformers would spread each batch over all of them.
        args._n_gpu = min(args.n_gpu, 1)
        args.mixed_precision = "no"  # transformers reads it from the launcher's configuration
        places = [str(index) for index in range(num_prompts)]
        super().__init__(args=args, train_dataset=Dataset.from_dict({"prompt": places}), **options)
        self.remove_callback(PrinterCallback)
        # accelerate would wrap the model in DDP under any launcher, which reduces gradients after our hooks have taken
        # them, and in autocast if its configuration asks for mixed precision.
        self.accelerator.prepare_model = lambda model, *args, **kwargs: model
        self.beta, self.reference = beta, reference
        # Set after construction, which would start vLLM; it now only says that completions have log-probabilities.
        self.use_vllm = has_sampled_log_probs

    def adjust_batch(self, batch: dict[str, Any]) -> None:
        """Changes a sampled and rewarded batch in place before its loss is computed; subclasses override it.

        It has 'completion_ids' and 'completion_mask', (B, T), 'advantages', (B,) or (B, T), and more.
        """

    def importance_weights(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Returns the importance weights of a batch and the mask of the tokens that count, both (B, T), or None."""
        ratio = batch.get("importance_sampling_ratio")
        return None if ratio is None else (ratio, batch["completion_mask"] * batch.get("tool_mask", 1))

    def take_metrics(self, *names: str) -> dict[str, float]:
        """Returns the means of some of TRL's metrics since the last call, of those that it has computed."""
        known = {name: [value for value in self._metrics["train"][name] if math.isfinite(value)] for name in names}
        self._metrics["train"].clear()
        return {name: statistics.fmean(values) for name, values in known.items() if values}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._last_loaded_step = self.state.global_step  # keeps TRL from syncing weights, which the engine does itself
        self.beta, beta = 0.0, self.beta  # `_compute_loss` runs the reference, so TRL must not
        try:
            batch = super()._generate_and_score_completions(inputs)
        finally:
            self.beta = beta
        self.adjust_batch(batch)
        return batch

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not self.beta or self.reference is None:
            return super()._compute_loss(model, inputs)
        ids, mask = (
            torch.cat([inputs[f"prompt_{what}"], inputs[f"completion_{what}"]], dim=1) for what in ("ids", "mask")
        )
        with self.reference.swapped_in():
            log_probs, *_ = self._get_per_token_logps_and_entropies(model, ids, mask, inputs["completion_ids"].shape[1])
        with self.reference.shared():
            return super()._compute_loss(model, {**inputs, "ref_per_token_logps": log_probs})

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        # TRL pads prompts on the left and passes no positions. A model with learned positions (GPT-2) would count the
        # padding, and train at other positions than it generates at. Where the pad token's embedding is 0, some models
        # (Gemma 3n) have no finite gradient.
        with model.register_forward_pre_hook(_hide_padding, with_kwargs=True), shared_prefixes(model):
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _move_model_to_device(self, *_: Any) -> None:
        """Does nothing, because a move would reshard the blocks that are held whole (`fsdp.whole`)."""


def _hide_padding(model: PreTrainedModel, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Counts positions from each sequence's first real token, which also takes the place of the padding.

    Rotary positions are relative and stay as they are.
    """
    ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
    kwargs["input_ids"] = ids.where(mask != 0, ids.gather(1, mask.int().argmax(1, keepdim=True)))
    rotary = getattr(model.config.get_text_config(), "rope_parameters", None)
    if rotary is None and "position_ids" in inspect.signature(type(model).forward).parameters:
        kwargs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return args, kwargs
