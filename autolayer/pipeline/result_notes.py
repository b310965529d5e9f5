"""Writes the notes of a result: sentences for the user that qualify its numbers."""

from collections.abc import Iterator

from autolayer.core.config import Config
from autolayer.core.layer_set import name_layers
from autolayer.core.run_folder import ADAPTER
from autolayer.core.statistics import Interval
from autolayer.models import lora
from autolayer.pipeline.calibrate_stage import CalibrationStage
from autolayer.pipeline.probe_stage import ProbeStage
from autolayer.pipeline.result_rows import best_gains
from autolayer.pipeline.run_context import RunContext
from autolayer.pipeline.search_stage import SearchStage
from autolayer.pipeline.train_stage import TrainStage
from autolayer.probes.predictor import MIN_BASES

MANY_TRUNCATED = 0.2
"""Share of completions that hit the token limit, above which a note says so."""


def run_notes(run: RunContext) -> Iterator[str]:
    """Yields notes on the whole run: files edited during the run, and vLLM's numerics."""
    if run.changed_files:
        files = " and ".join(run.changed_files)
        yield f"the {files} file was changed during the run: parts of it were made with the old one"
    if effective := run.bench.effective:
        mean = sum(effective) / len(effective)
        yield (
            f"correcting for vLLM's numerics leaves an effective sample of {mean:.1%} of the tokens in the mean of "
            f"the batches, {min(effective):.1%} in the worst"
        )


def stage_notes(
    run: RunContext,
    calibration: CalibrationStage,
    probes: ProbeStage | None,
    search: SearchStage | None,
    training: TrainStage | None,
    interval: Interval | None,
) -> Iterator[str]:
    """Yields the notes of each stage that ran; `interval` is that of the gain, if the training ran."""
    if (truncated := calibration.calibration.truncated) > MANY_TRUNCATED:
        yield f"{truncated:.0%} of the base model's completions hit the token limit"
    if probes is not None:
        yield from _probe_notes(run, probes)
    if search is not None:
        yield from _search_notes(run, search)
    if training is not None and interval is not None:
        yield from _training_notes(run, training, interval)


def finding_cost_notes(config: Config, share: float | None, share_of_seconds: float | None) -> Iterator[str]:
    """Yields a note if finding the layer cost more than --budget, in work or in seconds (None: not judged)."""
    budget = config.budget or 0.0
    if share is not None and share > budget:
        digits = 0 if f"{share:.0%}" != f"{budget:.0%}" else 2
        yield (
            f"finding cost {share:.{digits}%} of one full run, more than the {budget:.{digits}%} asked for: "
            f"{config.steps} steps of {config.prompts_per_step} prompts are too few to probe for less"
        )
    if share_of_seconds is not None and share_of_seconds > budget:
        yield (
            f"finding cost {share_of_seconds:.2%} of one full run in seconds, more than the {budget:.2%} asked for: it "
            "was slower than training on this machine"
        )


def _probe_notes(run: RunContext, probes: ProbeStage) -> Iterator[str]:
    yield from probes.report.notes
    if run.config.history is not None and not probes.report.learned_from:
        yield f"--history was not used: it needs measurements of at least {MIN_BASES} base models with probe scores"


def _search_notes(run: RunContext, search: SearchStage) -> Iterator[str]:
    outcome = search.outcome
    if len(outcome.best) < run.config.top_k:
        yield f"only {len(outcome.best)} candidate layers move the policy: no more can be trained together"
    for row in outcome.ranking:
        if row.failed:
            yield f"{name_layers(row.layers)}: a short run failed ({row.failed})"
    best_at = best_gains(outcome)
    shown = {row.measured.steps for row in outcome.ranking if row.measured is not None}
    if flat := sorted(steps for steps in shown if best_at[steps] <= 0):
        steps = " and ".join(map(str, flat))
        yield f"no layer had gained by step {steps}, so these short runs say nothing about contribution"


def _training_notes(run: RunContext, training: TrainStage, interval: Interval) -> Iterator[str]:
    arm, steps = training.arm, run.config.steps or 0
    if run.config.adapter is not None:
        yield f"LoRA adapters of rank {lora.RANK} were trained: the folder {ADAPTER} has them"
    if arm.step < steps:
        yield f"--hours ended the training after {arm.step} of {steps} steps; the same command resumes it"
    if interval.low == interval.high:
        yield (
            f"all {interval.num_items} items changed by the same amount, so the interval has no width, which is not "
            "certainty: evaluate on more items"
        )
