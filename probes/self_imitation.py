"""Probe `self_imitation`: the gain after a few steps of a layer towards the base's own best completions."""

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from autolayer.core.costs import Cost
from autolayer.core.probe_plan import IMITATION_STEPS, response_layers
from autolayer.models.fp32 import fp32_layers
from autolayer.models.layers import layer_parameters
from autolayer.probes.base import Probe, Scores
from autolayer.probes.context import ProbeContext
from autolayer.probes.shared_batch import Fold
from autolayer.training.logprobs import ScoreBatch, scoring
from autolayer.training.scored_passes import computed

# P prompts of the judged fold, N different completions of a batch.

FEW = 2
"""Most completions of one prompt that are imitated: more prompts tell more than more completions of one."""
MIN_COMPLETIONS, MIN_PROMPTS = 4, 2
"""Completions to imitate, and prompts to judge by, below which the probe does not apply."""
MAX_LOG_RATIO = 5.0
"""Bound of the log-ratio (nats) that a completion counts with."""


class SelfImitation(Probe):
    """Scores a layer by the reward gained after a few supervised steps on completions that were better than others.

    One step of a layer says little about where several lead: `sign_gain` is negative for layers of Gemma 3 that gain
    most. Here the layer makes k steps of Adam, all layers at one rate, on some prompts, and is judged on other prompts.
    Nothing is sampled for it.

    Formula: k steps towards the maximum of sum_i max(A_i, 0) log pi(y_i) over the two best completions of each prompt
    of all folds but the first, A_i the advantage. On a prompt of the first, with rewards r_j and bounded weights
    w_j = pi(y_j) / pi_base(y_j),

        score_l = mean over prompts of  sum_j w_j r_j / sum_j w_j - mean_j r_j

    in reward. Shape (candidates,). Prompts whose completions all have the same reward do not count. The rate is that at
    which k sign steps of the median layer reach `TARGET_DISTANCE`. Between measured layers the score is interpolated.
    Source: self-imitation learning (arXiv 1806.05635); reweighted groups are self-normalised importance sampling.
    Cost: k training passes from the layer up over a few completions of some prompts, for each measured layer.
    Measured: mean Pearson correlation .77 and regret .12 on four curves of SmolLM2-135M and Gemma 3 270M, where
    `sign_gain` from the same prompts has .74 and .20 (examples/RESULTS.md).
    Known to fail: where hardly any completion is better than others, it is noise. Long completions spread the weights
    so far that a few of them decide; it has not been measured there.
    """

    def score(self, context: ProbeContext) -> Scores | None:
        """Returns the scores by the class's formula."""
        plan, bench = context.plan, context.bench
        if not plan.imitation_layers:
            return None
        steps = [step for layer in context.responses if (step := context.distance_step(layer)) > 0]
        if not steps:  # no layer moves, or no reward differs
            return Scores(scores_L=np.zeros(len(context.layers)), errors_L=np.zeros(len(context.layers)))
        trial = Trial(context)
        if len(trial.weights_N) < MIN_COMPLETIONS or trial.judged.num_prompts < MIN_PROMPTS:
            context.notes.append("self_imitation left out: too few of the base's completions are better than others")
            return None
        rate = statistics.median(steps) / IMITATION_STEPS
        measured = response_layers(context.layers, plan.imitation_layers)
        with scoring(bench.model, bench.engine.temperature):
            gains_L = [trial.gains(layer, rate) for layer in sorted(measured)]
        means = [float(gains_P.mean()) for gains_P in gains_L]
        errors = [float(gains_P.std(ddof=1)) / len(gains_P) ** 0.5 for gains_P in gains_L]
        return Scores(
            scores_L=np.interp(context.layers, sorted(measured), means),
            errors_L=np.interp(context.layers, sorted(measured), errors),
        )


class Trial:
    """Trains one layer after another on all folds but the first, each from the base, and judges it on the first."""

    def __init__(self, context: ProbeContext) -> None:
        bench, num_prompts, (judged, *others) = context.bench, context.plan.imitation_prompts, context.folds
        best = [Different(fold, max(1, num_prompts // len(others))).best() for fold in others]
        self.bench, self.judged = bench, Different(judged, num_prompts)
        self.weights_N = torch.cat([weights_N for _, weights_N in best])
        self.imitated = [
            (bench.scorer.partial_forward(batch), weights_N) for batch, weights_N in best if len(weights_N)
        ]
        self.scored = bench.scorer.partial_forward(self.judged.batch)

    def gains(self, layer: int, rate: float) -> np.ndarray:
        """Returns the gain in reward on each judged prompt, (P,). Call it for layers in rising order."""
        bench = self.bench
        with torch.no_grad():
            for passes in (self.scored, *(passes for passes, _ in self.imitated)):
                bench.scorer.move_to(passes, layer)
        with fp32_layers(bench.model, (layer,)), trainable(bench.model, layer) as parameters:
            before_N = self._log_probs_N()
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
            with bench.micro_batching.checkpointed((layer,)):
                for _ in range(IMITATION_STEPS):
                    self._backward(layer)
                    optimizer.step()
                    optimizer.zero_grad()
            return self.judged.gains(self._log_probs_N() - before_N)

    @torch.no_grad()
    def _log_probs_N(self) -> torch.Tensor:
        return self.bench.scorer.log_probs(self.scored).double().sum(1).cpu()

    def _backward(self, layer: int) -> None:
        bench, started, skipped = self.bench, time.perf_counter(), 0
        before = computed(bench.model)
        for passes, weights_N in self.imitated:
            rows = iter(weights_N.split([len(part.input_ids) for part in passes.parts]))
            for log_probs_B in passes.log_probs():
                (-(log_probs_B.sum(1) * next(rows).to(log_probs_B)).sum()).backward()
            skipped = passes.layer
        size = computed(bench.model) - before
        cost = bench.costs.train(size, (layer,)) - Cost(layer_tokens=size.tokens * skipped)
        bench.account.charge(cost + bench.costs.keep_gradients(1), time.perf_counter() - started)


class Different:
    """The different completions of the first prompts of a fold whose rewards are not all the same."""

    def __init__(self, fold: Fold, num_prompts: int) -> None:
        group_size, rewards_P_G = fold.rollouts.group_size, fold.rollouts.rewards_P_G()
        has_signal_P = (rewards_P_G != rewards_P_G[:, :1]).any(1).nonzero().flatten()[:num_prompts]
        self.num_prompts = len(has_signal_P)
        alike: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
        for index, prompt in enumerate(has_signal_P.tolist()):
            for row in range(prompt * group_size, (prompt + 1) * group_size):
                alike[index, tuple(fold.rollouts.completion_ids[row])].append(row)
        self.batch = fold.batch.take(torch.tensor([rows[0] for rows in alike.values()], dtype=torch.long))
        self.prompts_N = torch.tensor([index for index, _ in alike], dtype=torch.long)
        self.counts_N = torch.tensor([len(rows) for rows in alike.values()], dtype=torch.float64)

        def mean_N(values_B: torch.Tensor) -> torch.Tensor:
            return torch.tensor([float(values_B[rows].mean()) for rows in alike.values()], dtype=torch.float64)

        # The same completion may earn different rewards, by an environment's chance.
        self.rewards_N, self.advantages_N = mean_N(torch.tensor(fold.rollouts.rewards)), mean_N(fold.advantages_B)

    def best(self) -> tuple[ScoreBatch, torch.Tensor]:
        """Returns the completions of most advantage, `FEW` of each prompt at most, and their weights."""
        weights_N = self.counts_N * self.advantages_N.clamp(min=0)
        chosen = []
        for prompt in range(self.num_prompts):
            rows = (self.prompts_N == prompt).nonzero().flatten()
            chosen += rows[weights_N[rows].argsort(descending=True, stable=True)][:FEW].tolist()
        kept = torch.tensor([row for row in sorted(chosen) if weights_N[row] > 0], dtype=torch.long)
        return self.batch.take(kept), weights_N[kept]

    def gains(self, log_ratios_N: torch.Tensor) -> np.ndarray:
        """Returns the reward of each prompt under a policy minus that under the base, (P,), from the log-ratios."""
        bounded_N = log_ratios_N.nan_to_num(-MAX_LOG_RATIO).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        weights_N = self.counts_N * bounded_N.exp()
        return (self._rewards_P(weights_N) - self._rewards_P(self.counts_N)).numpy()

    def _rewards_P(self, weights_N: torch.Tensor) -> torch.Tensor:
        zeros_P = torch.zeros(self.num_prompts, dtype=torch.float64)
        total_P = zeros_P.index_add(0, self.prompts_N, weights_N * self.rewards_N)
        return total_P / zeros_P.index_add(0, self.prompts_N, weights_N)


@contextlib.contextmanager
def trainable(model: nn.Module, layer: int) -> Iterator[list[nn.Parameter]]:
    """Lets a layer's parameters be trained inside the context, and restores them and their flags afterwards."""
    parameters = layer_parameters(model, (layer,))
    before = {name: (parameter.detach().clone(), parameter.requires_grad) for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield list(parameters.values())
    finally:
        for name, parameter in parameters.items():
            values, flag = before[name]
            parameter.grad = None
            parameter.requires_grad_(flag)
            parameter.data.copy_(values)
