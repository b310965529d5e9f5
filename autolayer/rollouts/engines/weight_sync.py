"""A rollout engine with a copy of the policy's weights, which follows it layer by layer.

Only what has changed since the last completion is sent, as whole decoder layers, since vLLM fuses the maps inside one.
Then the prefix cache, which belongs to the weights before, is dropped, and both have to give one completion the same
log-probabilities. An arm's change costs the layers of both arms, never the model.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from autolayer.core.errors import EngineError
from autolayer.distributed.fsdp import whole
from autolayer.models.layers import find_layers
from autolayer.models.lora import merged_weights
from autolayer.rollouts.engines.base import Completion, Engine
from autolayer.tasks.suites import Decoding

TOLERANCE = {torch.float32: 1e-3}
LOOSE = 0.25
"""Mean difference of log-probabilities (nats) at which the engines cannot have the same weights: in float32, and in
the 16-bit formats, whose kernels differ by some hundredths. There it finds another model or a wrong layer, not a layer
that has moved a little."""
CHECKED_TOKENS = 16
"""Of the completion that is compared after a change; the prompt is a real one, so that a stale cache would show."""


class SyncedEngine(Engine):
    """See `Engine`."""

    has_own_weights = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tensors_sent = self.bytes_sent = 0
        """All syncs together."""
        self.sync_seconds = 0.0
        self._stale: set[int] = set()
        self._all_stale = False
        self._unchecked = True
        """Nothing was compared since the last load."""

    @abstractmethod
    def _send(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Loads weights, by their names in a checkpoint, and forgets what was computed with those before."""

    def mark_changed(self, names: Iterable[str]) -> None:
        changed = {id(self.model.get_parameter(name)) for name in names}
        for index, block in enumerate(find_layers(self.model)):
            inside = {id(parameter) for parameter in block.parameters()} & changed
            self._stale |= {index} if inside else set()
            changed -= inside
        self._all_stale |= bool(changed)  # embedding, head, last norm

    def sync_weights(self) -> None:
        """Sends what is stale."""
        if not self._stale and not self._all_stale:
            return
        started = time.perf_counter()
        blocks = None if self._all_stale else [find_layers(self.model)[index] for index in sorted(self._stale)]
        with whole(self.model, tuple(sorted(self._stale))):
            # As in a checkpoint: transformers keeps the experts of a mixture in one tensor, vLLM reads them one by one.
            weights = dict(revert_weight_conversion(self.model, dict(merged_weights(self.model, blocks))))
            self._send(weights)
        self._stale, self._all_stale, self._unchecked = set(), False, True
        self.tensors_sent += len(weights)
        self.bytes_sent += sum(tensor.nbytes for tensor in weights.values())
        self.sync_seconds += time.perf_counter() - started

    def _check(self, prompt: Sequence[int], sample: Callable[[int], Sequence[Completion]]) -> None:
        """After a load, holds log-probabilities of the copy against the policy's own.

        Args:
            prompt: Any.
            sample: Given a number of tokens, one completion of it by each copy that there is.

        Raises:
            EngineError: The engines do not agree.
        """
        if not self._unchecked:
            return
        limit = max(1, min(CHECKED_TOKENS, self.max_context - len(prompt)))
        # As the policy samples, also where an evaluation cuts the tail off: what is left would sum to 1 there.
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
        """What to do where the engines do not agree."""
        return "Give --rollouts transformers."
