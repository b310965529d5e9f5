"""Plans a run of `pick` or `train` from the model's configuration and the task's data. No weights are loaded.

Lengths are not known before calibration, so completions are assumed to use all of `max_new_tokens`: shares of the cost
stay about right, absolute numbers are upper bounds.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from autolayer.core import depth_prior
from autolayer.core.budget import (
    UnitCosts,
    calibration_cost,
    calibration_prompts,
    final_layers,
    finding_budget,
    full_run,
    pays_for_race,
)
from autolayer.core.config import Config
from autolayer.core.costs import Cost, CostModel
from autolayer.core.layer_set import parse_layers
from autolayer.core.probe_plan import plan_probes, probe_cost
from autolayer.core.run_folder import CALIBRATION, RunFolder, open_run
from autolayer.distributed.process_group import check_launcher
from autolayer.models.device import find_device
from autolayer.models.layers import find_layers, head_ratio
from autolayer.models.loading import max_positions, meta_model, num_embeddings, read_tokenizer
from autolayer.models.memory_estimate import gradient_bytes
from autolayer.pipeline.checks import check_before_loading
from autolayer.pipeline.defaults import check_names, check_plan, resolve
from autolayer.pipeline.engine_choice import engine_name
from autolayer.pipeline.memory_fit import fit_memory
from autolayer.pipeline.run_plan import RunPlan
from autolayer.pipeline.setup import dtype_of_run
from autolayer.pipeline.throughput import measure_throughput
from autolayer.rollouts.evaluation import evaluation_requests
from autolayer.rollouts.length_limits import apply_length_limits
from autolayer.rollouts.prompts import encode_prompts
from autolayer.tasks import Task

SAMPLED_PROMPTS = 64
"""Prompts from which the length of prompts is estimated."""


def plan_run(config: Config, verb: Literal["pick", "train"] = "pick", *, timed: bool = True) -> RunPlan:
    """Plans a run; with `timed`, a few blocks are timed, which gives an estimate of the run's duration.

    It raises what the run itself would raise at the start.
    """
    check_names(config)
    check_launcher(config.device)
    check_plan(config)
    open_run(config, verb).check()
    task = check_before_loading(config, verb)
    model, tokenizer, device = meta_model(config.model), read_tokenizer(config.model), find_device(config.device)
    model = nn.Module.to(model, dtype_of_run(config, verb, model, device))
    task = apply_length_limits(config, task, tokenizer, max_positions(model.config), num_embeddings(model))
    config = resolve(config, task, verb)
    assert config.prompts_per_step is not None
    named = parse_layers(config.layers, len(find_layers(model)), config.model, allow_full=verb == "train")
    candidates = tuple(range(len(find_layers(model)))) if named == "full" else named
    lengths = _lengths(config, task, tokenizer)
    costs = CostModel(num_layers=len(find_layers(model)), head_ratio=head_ratio(model))
    units = UnitCosts(costs=costs, group_size=config.group_size, **lengths.means)
    budget = finding_budget(config, units, candidates)
    prompts = calibration_prompts(config)
    is_small = not depth_prior.applies(sum(each.numel() for each in model.parameters()))
    probes = plan_probes(config, units, candidates, budget, searches=verb == "pick", is_small=is_small)
    stages = {"calibrate": calibration_cost(config, units)}
    does_probe = verb == "pick" or config.learning_rate is None
    if does_probe:
        stages["probe"] = probe_cost(config, units, candidates, probes, sampled=prompts)
    left = budget - sum(stages.values(), Cost())
    races = verb == "pick" and pays_for_race(config, units, candidates, left)
    if verb == "pick":
        stages["search"] = left if races else Cost()
    training = full_run(config, units, named if verb == "train" else final_layers(config, candidates))

    sampled = evaluation_requests(task, "eval", config.num_eval or 0, config.seed)
    max_new_tokens = (sampled.decoding or task).max_new_tokens
    evaluation = costs.generate(units.prompt_tokens, max_new_tokens * task.max_turns) * (2 * len(sampled.rows))
    throughput = None
    engine = engine_name(config, device.type)
    if timed and engine != "server":
        batch = config.prompts_per_step * config.group_size
        throughput = measure_throughput(
            model, tokenizer, costs, device, width=lengths.longest, batch=batch, vllm=engine == "vllm"
        )
    work = {**stages, "train": training, "evaluate": evaluation}
    return RunPlan(
        verb=verb,
        config=config,
        num_layers=costs.num_layers,
        candidates=candidates,
        calibration_prompts=prompts,
        probes=probes if does_probe else None,
        eval_items=len(sampled.counts_I),
        eval_completions=len(sampled.rows),
        eval_max_new_tokens=max_new_tokens,
        full_run=training,
        finding_budget=budget,
        stages=stages,
        lengths="calibrated" if lengths.calibrated else "allowed",
        races=races,
        seconds=None if throughput is None else {name: throughput.seconds(cost, costs) for name, cost in work.items()},
        memory=fit_memory(
            config,
            model,
            candidates,
            lengths.longest,
            trained=named if verb == "train" else None,
            probes=does_probe,
        ),
        host_bytes={"gradients of the shared batch": gradient_bytes(model, candidates, config.probe.num_folds)}
        if does_probe
        else {},
    )


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Numbers of tokens of an episode."""

    means: dict[str, Any]
    """Mean numbers, by the name that they have in `UnitCosts`."""
    longest: int
    """The largest number of a sequence."""
    calibrated: bool
    """True if the means come from an earlier calibration in the same run folder."""


def _lengths(config: Config, task: Task, tokenizer: Any) -> Lengths:
    """Reads the lengths of an earlier calibration, or assumes the largest allowed ones."""
    rows = task.splits["probe"][:SAMPLED_PROMPTS]
    prompts = [len(ids) for ids in encode_prompts(tokenizer, rows, dict(task.chat_template_kwargs))]
    prompt, action, turns = sum(prompts) / len(prompts), task.max_new_tokens, task.max_turns
    tokens: dict[str, float] = {  # observations are assumed to be as long as actions
        "prompt_tokens": prompt + action * (turns - 1),
        "completion_tokens": action * turns,
        "prefill_tokens": prompt * turns + action * turns * (turns - 1) if turns > 1 else prompt / config.group_size,
    }
    found = RunFolder(config.out).read(CALIBRATION) if config.out else None
    measured = {name: float(v) for name in tokens if isinstance(v := (found or {}).get(f"mean_{name}"), int | float)}
    calibrated = len(measured) == len(tokens)
    return Lengths(
        means=measured if calibrated else tokens,
        longest=task.max_context or max(prompts) + action * turns,
        calibrated=calibrated,
    )
