"""The base class of rollout engines with a copy of the policy's weights, which is synchronized layer by layer.

Only the layers that changed since the last sampling are sent, each as a whole, because vLLM fuses the matrices inside
one. Then the prefix cache, which the previous weights computed, is cleared, and copy and policy are compared by the
log-probabilities of one completion. Changing arms costs sending the layers of both arms, never the whole model.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from autolayer.core.errors import EngineError
from autolayer.distributed.fsdp import unsharded
from autolayer.models.layers import find_layers
from autolayer.models.lora import merged_weights
from autolayer.rollouts.engines.base import Completion, Engine
from autolayer.tasks.suites import Decoding

TOLERANCE = {torch.float32: 1e-3}
LOOSE = 0.25
"""Mean differences of log-probabilities (nats) above which copy and policy cannot have the same weights: TOLERANCE in
float32, LOOSE in 16-bit formats, whose kernels differ by some hundredths. LOOSE detects another model or a wrong layer,
but not a layer that moved a little."""
CHECKED_TOKENS = 16
"""Tokens of the completion that is compared after a sync; its prompt is a real one, so that a stale cache shows."""


class SyncedEngine(Engine):
    """An engine with a copy of the policy's weights; see `Engine`."""

    has_own_weights = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stale: set[int] = set()
        self._all_stale = False
        self._unchecked = True

    @abstractmethod
    def _send(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Loads weights into the copy, by their names in a checkpoint, and clears the prefix cache."""

    def mark_changed(self, names: Iterable[str]) -> None:
        """Marks the blocks of these parameters, which are sent to the copy before the next sampling."""
        changed = {id(self.model.get_parameter(name)) for name in names}
        for index, block in enumerate(find_layers(self.model)):
            inside = {id(parameter) for parameter in block.parameters()} & changed
            self._stale |= {index} if inside else set()
            changed -= inside
        self._all_stale |= bool(changed)  # embedding, head, last norm

    def sync_weights(self) -> None:
        """Sends the layers that changed since the last sync."""
        if not self._stale and not self._all_stale:
            return
        blocks = None if self._all_stale else [find_layers(self.model)[index] for index in sorted(self._stale)]
        with unsharded(self.model, tuple(sorted(self._stale))):
            # transformers holds the experts of a mixture in one tensor; vLLM reads them one by one, as in a checkpoint.
            weights = dict(revert_weight_conversion(self.model, dict(merged_weights(self.model, blocks))))
            self._send(weights)
        self._stale, self._all_stale, self._unchecked = set(), False, True

    def _check(self, prompt: Sequence[int], sample: Callable[[int], Sequence[Completion]]) -> None:
        """Compares copies and policy once after each sync; `sample` returns a completion of n tokens from each copy."""
        if not self._unchecked:
            return
        limit = max(1, min(CHECKED_TOKENS, self.max_context - len(prompt)))
        # Without top-k and top-p of an evaluation, which would renormalize the log-probabilities.
        with self.decoding(Decoding(temperature=self.temperature, max_new_tokens=limit)):
            completions = sample(limit)
        for completion in completions:
            self._compare(prompt, completion)
        self._unchecked = False

    def _compare(self, prompt: Sequence[int], completion: Completion) -> None:
        assert completion.log_probs is not None
        training, ids = self.model.training, torch.tensor([[*prompt, *completion]], device=self.model.device)
        try:
            with torch.no_grad():
                found = self.model.eval()(input_ids=ids, logits_to_keep=len(completion) + 1)
        finally:
            self.model.train(training)
        wanted = (found.logits[0, -len(completion) - 1 : -1].float() / self.temperature).log_softmax(-1)
        sampled = torch.tensor(list(completion), device=wanted.device)
        ours = wanted.gather(1, sampled[:, None])[:, 0].cpu()
        gap = float((ours - torch.tensor(completion.log_probs)).abs().mean())
        if not gap <= TOLERANCE.get(self.model.dtype, LOOSE):
            raise EngineError(
                f"vLLM and the policy differ by {gap:.3g} nats a token: what would be trained is not what was sampled. "
                f"{self.advice}"
            )

    @property
    def advice(self) -> str:
        """Says what the user can do if copy and policy do not agree."""
        return "Give --rollouts transformers."
