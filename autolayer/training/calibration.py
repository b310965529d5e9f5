"""Calibration: samples the base model and checks that its rewards vary, because RL learns from their differences.

If they do not vary, the result names the reason, because each has another remedy: saturated (the base model solves the
task already), truncated (completions end before the answer), badly formatted (the reward finds no answer), or too hard.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from autolayer.core.budget import CALIBRATION_SCORED, RESPONSE_GROUP
from autolayer.core.errors import ModelError, NoSignalError
from autolayer.rollouts.rollouts import Rollouts, request_seed
from autolayer.tasks.base import Task
from autolayer.training.logprobs import scoring
from autolayer.training.workbench import Workbench

MIN_SPREAD = 0.05
"""Smallest share of groups whose rewards differ; with fewer, an RL step has almost nothing to learn from."""
RANDOM_ENTROPY = 0.9
"""Share of the largest possible entropy above which the sampled text counts as noise."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The rewards and completions of the base model on the `probe` split, before any training."""

    status: Literal["ok", "no_signal"]
    reason: str
    """A key of `CURES`; empty if there is a signal."""
    num_completions: int
    mean_reward: float
    spread: float
    """Share of groups whose rewards differ."""
    truncated: float
    """Share of completions that hit the token limit."""
    well_formed: float | None
    """Share of completions that have the form of an answer; None if the task defines no such check."""
    entropy: float
    """Mean negative log-probability of the sampled tokens divided by log(vocabulary size); 1 is uniform noise."""
    mean_prompt_tokens: float
    """Tokens of a sequence that the model did not generate: the prompt and the observations of all turns."""
    mean_completion_tokens: float
    mean_prefill_tokens: float
    """Tokens that the engine reads for a completion, with a part of a prompt that it reads for several; over several
    turns, each turn reads the sequence so far again."""
    example: dict[str, Any]
    group_pass: dict[str, float] | None = None
    """Size of the passes that score one prompt's completions (`PassSize`); None in runs of older versions."""
    few_pass: dict[str, float] | None = None
    """The same for the first `RESPONSE_GROUP` completions of a prompt."""
    reward_metrics: dict[str, float] = field(default_factory=dict)

    def sentence(self) -> str:
        """Returns the numbers as one sentence, for messages."""
        formed = "" if self.well_formed is None else f", {self.well_formed:.0%} look like an answer"
        return (
            f"mean reward {self.mean_reward:.3f} over {self.num_completions} completions; rewards differ in "
            f"{self.spread:.0%} of the groups; {self.truncated:.0%} hit the token limit{formed}"
        )


CURES = {
    "saturated": "the base model can already do this task, choose a harder one",
    "truncated": "completions are cut off before they end, raise --max-new-tokens",
    "badly formatted": "completions do not look like answers, fix the prompt or start from an instruction-tuned model",
    "too hard": "the base model hardly ever earns a reward, choose an easier task or a stronger base",
}


def calibrate(bench: Workbench, num_prompts: int, seed: int) -> tuple[Calibration, Rollouts]:
    """Samples one group for each of some prompts of the `probe` split, and checks them for a training signal.

    The workbench holds the base weights. The rollouts are returned as well, because the probes use them.
    """
    rows = bench.task.splits["probe"][:num_prompts]
    group_size = bench.config.group_size
    seeds = [request_seed(seed, "calibrate", index) for index in range(len(rows) * group_size)]
    rollouts = bench.sample(rows, seeds, group_size)
    return judge(bench, rollouts), rollouts


def judge(bench: Workbench, rollouts: Rollouts) -> Calibration:
    """Returns the verdict on whole groups of rollouts of the base model, whose weights are in the workbench."""
    rewards_P_G = rollouts.rewards_P_G()
    count, mean_reward = rewards_P_G.numel(), float(rewards_P_G.mean())
    spread = float((rewards_P_G.amax(1) > rewards_P_G.amin(1)).double().mean())
    truncated = 1 - sum(rollouts.finished) / count
    is_well_formed = bench.task.is_well_formed
    well_formed = None if is_well_formed is None else sum(rollouts.well_formed(is_well_formed)) / count
    num_prompts = min(len(rewards_P_G), max(1, CALIBRATION_SCORED // rollouts.group_size))
    few = rollouts[:num_prompts]
    entropy = _entropy(bench, few)
    reason = "" if spread >= MIN_SPREAD else _reason(mean_reward, truncated, well_formed, entropy)
    return Calibration(
        status="no_signal" if reason else "ok",
        reason=reason,
        num_completions=count,
        mean_reward=mean_reward,
        spread=spread,
        truncated=truncated,
        well_formed=well_formed,
        entropy=entropy,
        mean_prompt_tokens=(rollouts.num_tokens - rollouts.num_generated) / count,
        mean_completion_tokens=rollouts.num_generated / count,
        mean_prefill_tokens=rollouts.num_read / count,
        group_pass=asdict(bench.scorer.pass_size(few) * (1 / num_prompts)),
        few_pass=asdict(bench.scorer.pass_size(few.thinned(RESPONSE_GROUP)) * (1 / num_prompts)),
        example={
            "prompt": bench.tokenizer.decode(rollouts.prompt_ids[0])[:500],
            "completion": rollouts.texts[0][:500],
            "reward": rollouts.rewards[0],
        },
        reward_metrics=rollouts.logged,
    )


def refuse(calibration: Calibration, task: Task) -> NoSignalError:
    """Builds the error for a calibration with status 'no_signal'."""
    cure = CURES[calibration.reason]
    if calibration.reason == "truncated" and task.environment is not None:
        cure = (
            "episodes end before they are solved, because an action is cut off (raise --max-new-tokens) or the context "
            "is full (shorten the observations, or take a model with more positions)"
        )
    return NoSignalError(
        f"task {task.name} gives no signal, it is {calibration.reason} for this base model "
        f"({calibration.sentence()}): {cure}."
    )


def _reason(mean_reward: float, truncated: float, well_formed: float | None, entropy: float) -> str:
    """Returns why rewards do not vary. The order matters: a random model is also truncated and badly formatted."""
    # A constant reward of 0.1 rewards the format only, so the task is not solved.
    if mean_reward >= 0.5:
        return "saturated"
    if entropy > RANDOM_ENTROPY:
        return "too hard"
    if truncated > 0.5:
        return "truncated"
    if well_formed is not None and well_formed < 0.2:
        return "badly formatted"
    return "too hard"


def _entropy(bench: Workbench, rollouts: Rollouts) -> float:
    batch = bench.scorer.batch(rollouts)
    with scoring(bench.model, bench.engine.temperature), torch.no_grad():
        surprise = -float(bench.scorer.log_probs(batch).sum()) / max(1, rollouts.num_generated)
    if not math.isfinite(surprise):
        raise ModelError(
            f"model '{bench.config.model}' computes probabilities that are not finite for the task's prompts: its "
            "weights are damaged, or its float16 overflows; fetch it again, or give a bfloat16 or float32 copy."
        )
    return surprise / math.log(bench.model.config.get_text_config().vocab_size)
