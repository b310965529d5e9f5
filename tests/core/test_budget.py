"""Layer-tokens counted on a real model, and plans that keep to their budget."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_model
from workbench_helpers import make_bench, make_task, sample_folds

from autolayer.core.budget import (
    MARGIN,
    UnitCosts,
    calibration_cost,
    calibration_prompts,
    calibration_scored,
    default_budget,
    finding_budget,
    full_run,
    pays_for_race,
    scout_steps,
    smallest_race,
)
from autolayer.core.config import Config, ProbeConfig, SearchConfig
from autolayer.core.costs import Cost, CostModel, PassSize
from autolayer.core.layer_set import Layers
from autolayer.core.probe_plan import largest, plan_probes, probe_budget, probe_cost, response_layers
from autolayer.models.layers import find_layers, head_ratio
from autolayer.models.train_only import train_only
from autolayer.probes.run_probes import run_probes
from autolayer.training.logprobs import ScoreBatch, log_probs, scoring
from autolayer.training.scored_passes import computed

# Costs


def test_amounts_of_work_add_up_and_fit_in_both_components_or_not_at_all() -> None:
    one = Cost(generated_tokens=2, layer_tokens=30, seconds=1)
    assert one + one == one * 2 and one - one == Cost()
    assert one.fits(one) and one.fits(Cost(generated_tokens=2, layer_tokens=30))
    assert not one.fits(Cost(generated_tokens=1.9, layer_tokens=99))
    assert not one.fits(Cost(generated_tokens=99, layer_tokens=29.9))


@pytest.mark.parametrize("layers", [(0,), (2,), (3,), (1, 3), (0, 1, 2, 3), "full"], ids=str)
@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe"])
def test_layer_tokens_are_what_hooks_count_in_a_real_pass(architecture: str, layers: Layers) -> None:
    model = build_model(architecture)
    blocks, head = find_layers(model), model.get_output_embeddings()
    counts = {"forward": 0, "activation": 0, "weight": 0, "head": 0}
    size, scored = PassSize(tokens=21, scored=18), 18  # nothing predicts the first token of a sequence

    def forward(module: Any, arguments: Any, output: torch.Tensor) -> None:
        counts["forward"] += output.shape[0] * output.shape[1]
        if output.requires_grad:
            output.register_hook(lambda g: counts.__setitem__("activation", counts["activation"] + g[..., 0].numel()))

    def final(module: Any, arguments: Any, output: Any) -> None:
        output[0].register_hook(lambda g: counts.__setitem__("head", counts["head"] + int(g.any(-1).sum())))

    for block in blocks:
        block.register_forward_hook(forward)
    model.get_decoder().register_forward_hook(final)
    ids = torch.randint(2, 90, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    batch = ScoreBatch(
        input_ids=ids, attention_mask=mask, completion_mask=mask.clone().index_fill_(1, torch.tensor(0), 0)
    )
    before = computed(model)
    with train_only(model, layers, quiet=True), scoring(model, 1.0, shares_prefixes=False):  # pyright: ignore
        log_probs(model, batch).sum().backward()
        counts["weight"] = 21 * sum(any(p.grad is not None for p in block.parameters()) for block in blocks)
        counts["head"] += scored + scored * (head.weight.grad is not None)  # its forward pass, and its weights
    costs = CostModel(num_layers=4, head_ratio=head_ratio(model))
    in_blocks = counts["forward"] + counts["activation"] + counts["weight"]
    expected = in_blocks + counts["head"] * costs.head_ratio
    assert computed(model) - before == size
    assert costs.train(size, layers).layer_tokens == pytest.approx(expected)
    assert costs.forward(size).layer_tokens == pytest.approx(counts["forward"] + scored * costs.head_ratio)
    assert costs.train(size, layers).generated_tokens == 0


def test_the_heads_share_is_its_parameters_over_those_of_one_block() -> None:
    model = build_model("llama", num_layers=3)
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    assert head_ratio(model) == pytest.approx(model.lm_head.weight.numel() / block)
    costs = CostModel(num_layers=3, head_ratio=0.5)
    total = costs.total(Cost(generated_tokens=10, layer_tokens=100), exchange_rate=2.0)
    assert total == pytest.approx(100 + 10 * (2 - 1) * 3.5), "a token's own forward pass is among the 100"
    assert costs.generate(4, 10) == Cost(generated_tokens=10, layer_tokens=4 * 3 + 10 * 3.5), "reading needs no head"


@pytest.mark.parametrize(("prompt", "completion", "tokens"), [(16, 4, 16 + 8 * 4), (2, 90, 8 * 92), (100, 900, 8000)])
def test_completions_share_their_prompt_where_that_saves_enough(prompt: int, completion: int, tokens: int) -> None:
    assert PassSize.estimated(prompt, completion, 8) == PassSize(tokens=tokens, scored=8 * completion)


# Plans


def _random_case(generator: random.Random) -> tuple[Config, UnitCosts, tuple[int, ...]]:
    num_layers = generator.choice([4, 8, 28, 36, 64])
    count = generator.randint(1, num_layers)
    config = Config(
        model="tiny",
        steps=generator.choice([20, 100, 300, 1000]),
        prompts_per_step=generator.choice([4, 16, 64, 128]),
        group_size=generator.choice([2, 4, 8, 16]),
        budget=generator.choice([0.01, 0.05, 0.25, 1.0]),
        probe=ProbeConfig(share=generator.choice([0.1, 0.3, 0.5])),
    )
    units = UnitCosts(
        costs=CostModel(num_layers=num_layers, head_ratio=generator.choice([0.01, 0.5, 4.0])),
        group_size=config.group_size,
        prompt_tokens=generator.uniform(4, 500),
        completion_tokens=generator.uniform(2, 2000),
    )
    return config, units, tuple(sorted(generator.sample(range(num_layers), count)))


@pytest.mark.slow
def test_planned_probes_fit_their_share_of_the_budget_whatever_the_sizes() -> None:
    generator, kinds = random.Random(0), set()
    for _ in range(1500):
        config, units, candidates = _random_case(generator)
        budget = finding_budget(config, units, candidates)
        plan = plan_probes(config, units, candidates, budget)
        if not plan.fold_prompts:
            assert plan.cutoff_pairs == 0 and "no gradients" in plan.notes[0]
            kinds.add("nothing")
            continue
        folds, layers, group = config.probe.num_folds, len(candidates), config.group_size
        # Counted over again: what each probe does with these sizes.
        whole, few = units.size, PassSize.estimated(units.prompt_tokens, units.completion_tokens, min(2, group))
        depth, head = units.costs.num_layers, units.costs.head_ratio
        # Each layer's passes begin at that layer; what enters it is made once, by going up to the highest.
        measured = response_layers(candidates, plan.response_layers)
        above = sum(few.tokens * (depth - layer) + few.scored * head for layer in measured)
        generate = units.costs.generate(units.prompt_tokens, group * units.completion_tokens)
        shared = (generate + units.costs.train(whole, candidates)) * (folds * plan.fold_prompts)
        shared += Cost(layer_tokens=200 * layers * folds)
        judged = plan.response_folds * plan.response_prompts
        responses = Cost(layer_tokens=judged * (10 * above + few.tokens * max(measured)))
        # Two answers after both prompts of a pair: as they are, at the first and last block, six times half-way.
        answer = min(16, units.completion_tokens)
        two = PassSize.estimated(units.prompt_tokens + (units.completion_tokens - answer) / 2, answer, 2)
        blocks = 2 * depth + 1 + 6 * (depth - depth // 2)
        exchanges = Cost(layer_tokens=2 * plan.cutoff_pairs * (two.tokens * blocks + two.scored * 9 * head))
        total = shared + responses + exchanges
        too_small = any("it uses the minimum" in note for note in plan.notes)
        left = budget - units.costs.forward(whole * calibration_scored(config))
        case = (config, units, candidates, plan)
        assert total.fits(left) and (too_small or total.fits(probe_budget(config, units, candidates, left))), case
        assert (plan.response_folds == 1) == any("representation_change" in note for note in plan.notes)
        assert (plan.cutoff_pairs == 0) == any("cutoff" in note for note in plan.notes)
        assert plan.cutoff_pairs == 0 or 6 <= plan.cutoff_pairs <= 16
        assert plan.response_prompts >= 4 and plan.fold_prompts >= 4
        kinds.add((too_small, plan.response_folds > 1))
    assert len(kinds) >= 4  # small, medium and large budgets all occurred


def test_a_larger_budget_never_makes_a_probe_smaller_but_where_it_begins_to_pay_for_a_race() -> None:
    generator, with_race = random.Random(1), 0
    for _ in range(300):
        config, units, candidates = _random_case(generator)
        budgets = [finding_budget(config, units, candidates) * factor for factor in (0.3, 1.0, 3.0)]
        scored = units.costs.forward(units.size * calibration_scored(config))
        budgets, whole = [budget - scored for budget in budgets], budgets
        spends = [probe_budget(config, units, candidates, budget) for budget in budgets]
        race = smallest_race(config, units, candidates)
        races = [(race + spend).fits(budget) for spend, budget in zip(spends, budgets, strict=True)]
        for spend, budget, has_race in zip(spends, budgets, races, strict=True):
            assert spend == (budget * (config.probe.share or 0) if has_race else budget)
        assert races == sorted(races)  # what pays for a race goes on paying for it
        with_race += races == [True] * 3
        plans = [plan_probes(config, units, candidates, budget) for budget in whole]
        for name in ("fold_prompts", "response_folds"):
            sizes = [getattr(plan, name) for plan, has_race in zip(plans, races, strict=True) if has_race == races[-1]]
            assert sizes == sorted(sizes)
    assert 30 < with_race < 270


def test_the_smallest_race_costs_what_its_runs_do() -> None:
    config = Config(model="tiny", steps=100, prompts_per_step=4, search=SearchConfig(num_select=20))
    costs = CostModel(num_layers=6, head_ratio=1.0)
    units = UnitCosts(costs=costs, group_size=8, prompt_tokens=3, completion_tokens=5)
    # By hand: 4 arms make 2 steps of 32 completions and are evaluated on 20 items, the base on 20 as well.
    race = smallest_race(config, units, (5,))
    assert [scout_steps(steps) for steps in (1, 30, 100, 200, 400)] == [1, 2, 2, 3, 5]
    assert race.generated_tokens == pytest.approx(5 * (2 * 32 + 20 + 20))  # one candidate: a race of one arm
    race = smallest_race(config, units, (5, 5, 5, 5, 5))
    assert race.generated_tokens == pytest.approx(5 * (4 * 2 * 32 + 5 * 20))
    # A group reads its prompt of 3 tokens in 6 blocks and writes 40 in 7; a pass over its tree of 43 tokens scores 40,
    # forward in 6 blocks and the head, backward in 1 + 1 and the head. An item reads 3 and writes 5.
    group = (3 * 6 + 40 * 7) + (43 * 6 + 40) + (43 * (1 + 1) + 40)
    assert race.layer_tokens == pytest.approx(4 * 2 * 4 * group + 5 * 20 * (3 * 6 + 5 * 7))


def test_the_budget_is_the_share_of_the_cheapest_full_run_less_a_margin() -> None:
    config = Config(model="tiny", steps=10, prompts_per_step=4, budget=0.5)
    costs = CostModel(num_layers=6, head_ratio=1.0)
    units = UnitCosts(costs=costs, group_size=8, prompt_tokens=3, completion_tokens=5)
    runs = [full_run(config, units, (layer,)) for layer in (1, 4)]
    assert runs[0].layer_tokens > runs[1].layer_tokens
    assert finding_budget(config, units, (1, 4)) == runs[1] * (0.5 * MARGIN)
    # By hand: 40 groups of 8 completions, 3 tokens read and 40 written; forward 6 and the head, backward 2 + 1 and it.
    assert runs[1].layer_tokens == pytest.approx(40 * ((3 * 6 + 40 * 7) + (43 * 6 + 40) + (43 * (2 + 1) + 40)))
    assert runs[1].generated_tokens == 40 * 8 * 5


def test_finding_is_a_small_part_of_a_long_run_by_default() -> None:
    """The search costs at most a tenth of Qwen3-8B's 400 steps, and has a race in it."""
    assert [default_budget(steps) for steps in (1, 160, 200, 400, 1600)] == [0.25, 0.25, 0.2, 0.1, 0.05]
    costs = CostModel(num_layers=36, head_ratio=3.2)
    units = UnitCosts(costs=costs, group_size=8, prompt_tokens=100, completion_tokens=900)
    candidates = tuple(range(36))
    for steps in (72, 100, 200, 400, 1000, 4000):
        config = Config(model="tiny", steps=steps, prompts_per_step=64, budget=default_budget(steps))
        budget = finding_budget(config, units, candidates)
        sizes, calibrated = plan_probes(config, units, candidates, budget), calibration_prompts(config)
        spent = calibration_cost(config, units) + probe_cost(config, units, candidates, sizes, sampled=calibrated)
        assert pays_for_race(config, units, candidates, budget - spent), steps


def test_the_prediction_of_pretrained_models_comes_before_other_probes_and_nothing_exceeds_the_budget() -> None:
    """32 steps of 8 prompts with 16 + 4 tokens, on a model with the shape of SmolLM2-135M."""
    units = UnitCosts(
        costs=CostModel(num_layers=30, head_ratio=8.0),
        group_size=8,
        prompt_tokens=16,
        completion_tokens=4,
        prefill_tokens=2,
        group_pass=PassSize(tokens=35, scored=14),
        few_pass=PassSize(tokens=23, scored=5.25),
    )
    found = {}
    for budget in (0.02, 0.1, 0.25, 1.0):
        config = Config(model="tiny", steps=32, prompts_per_step=8, budget=budget)
        allowed = finding_budget(config, units, tuple(range(30)))
        plan = found[budget] = plan_probes(config, units, tuple(range(30)), allowed, is_small=False)
        sampled = calibration_prompts(config)
        spent = calibration_cost(config, units) + probe_cost(config, units, tuple(range(30)), plan, sampled=sampled)
        assert spent.fits(allowed) or budget == 0.02, "calibration alone costs more"
    assert [plan.cutoff_pairs >= 6 for plan in found.values()] == [False, True, True, True]
    assert [plan.fold_prompts > 0 for plan in found.values()] == [False, False, True, True]
    assert all(plan.response_prompts == 0 for plan in found.values() if not plan.fold_prompts)
    assert "no gradients" in found[0.1].notes[0] and "depth alone" in found[0.02].notes[0]
    assert "self_imitation" in found[0.25].notes[-1] and not found[0.25].imitation_layers


@pytest.mark.parametrize(("tokens", "prompts_per_step", "races"), [((16, 4), 8, False), ((150, 900), 64, True)])
def test_a_run_of_usual_length_pays_for_self_imitation_within_its_budget(
    tokens: tuple[int, int], prompts_per_step: int, races: bool
) -> None:
    costs, candidates = CostModel(num_layers=30, head_ratio=8.0), tuple(range(30))
    units = UnitCosts(costs=costs, group_size=8, prompt_tokens=tokens[0], completion_tokens=tokens[1])
    config = Config(model="tiny", steps=400, prompts_per_step=prompts_per_step, budget=0.1)
    budget = finding_budget(config, units, candidates)
    plan = plan_probes(config, units, candidates, budget, is_small=False)
    assert plan.imitation_layers == 8 and plan.imitation_prompts >= 8
    assert not any("self_imitation" in note for note in plan.notes)
    spent = calibration_cost(config, units)
    spent += probe_cost(config, units, candidates, plan, sampled=calibration_prompts(config))
    assert spent.fits(budget) and pays_for_race(config, units, candidates, budget - spent) == races
    # By hand: 8 layers, four steps and two judgements from each up, and its input; two completions are imitated.
    layers = response_layers(candidates, 8)
    few, group = units.few_size, units.size
    work = sum(4 * (2 * costs.forward(few, layer).layer_tokens + few.tokens) for layer in layers)
    work += sum(2 * costs.forward(group, layer).layer_tokens for layer in layers)
    work += (few.tokens + group.tokens) * 29
    without = replace(plan, imitation_layers=0, imitation_prompts=0)
    alone = probe_cost(config, units, candidates, plan, 0) - probe_cost(config, units, candidates, without, 0)
    assert alone.layer_tokens == pytest.approx(1.2 * work * plan.imitation_prompts + 200 * 8 * 4)
    assert alone.generated_tokens == 0
    sharded = plan_probes(config.model_copy(update={"shard": True}), units, candidates, budget, is_small=False)
    assert not sharded.imitation_layers and "self_imitation left out: it does not go with --shard" in sharded.notes
    few = plan_probes(config, units, candidates[:5], budget, is_small=False)
    named = plan_probes(config, units, candidates, budget, searches=False, is_small=False)
    small = plan_probes(config, units, candidates, budget)
    for other in (few, named, small):  # nothing would read it
        assert not other.imitation_layers and not any("self_imitation" in note for note in other.notes)
    wide = budget * 10
    assert probe_budget(config, units, candidates, wide) == wide * 0.3
    assert probe_budget(config, units, candidates, wide, is_small=False) == wide * 0.5
    assert probe_budget(config, units, candidates, wide, is_small=False, needed=wide * 0.6) == wide


def test_calibration_takes_a_tenth_of_the_budgets_rollouts_within_bounds() -> None:
    def prompts(budget: float, steps: int) -> int:
        return calibration_prompts(Config(model="tiny", steps=steps, prompts_per_step=16, budget=budget))

    assert prompts(0.25, 300) == 120 and prompts(0.01, 10) == 12 and prompts(1.0, 10_000) == 3 * 64


def test_largest() -> None:
    def square(number: int) -> Cost:
        return Cost(layer_tokens=number * number)

    assert [largest(square, Cost(layer_tokens=n), 5) for n in (0, 1, 8, 9, 24, 1000)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_bill_of_real_probes_is_within_what_the_plan_set_aside(dtype: torch.dtype, tmp_path: Path) -> None:
    names, layers = ("train", "probe", "select", "eval"), (1, 3)
    prompts = {name: [f"{i}+{j}=" for j in range(100, 300)] for i, name in enumerate(names)}
    bench = make_bench(build_model("qwen3", dtype=dtype), tmp_path, make_task(prompts=prompts, max_new_tokens=6))
    bench.engine.eos_token_ids = [200]  # never: every completion has 6 tokens
    probing = ProbeConfig(share=0.6)
    config = Config(model="tiny", steps=60, prompts_per_step=16, group_size=4, budget=0.8, probe=probing)
    units = UnitCosts(costs=bench.costs, group_size=4, prompt_tokens=6, completion_tokens=6)
    budget = finding_budget(config, units, layers) * (config.probe.share or 0)
    plan = plan_probes(config, units, layers, finding_budget(config, units, layers))
    assert not plan.notes
    rollouts = sample_folds(bench, prompts=2, num_folds=1)[0]
    start = bench.spent
    run_probes(bench, layers, rollouts, plan, num_folds=3, total_steps=60, seed=0)
    spent = bench.spent - start
    assert spent.fits(budget), (spent, budget)
    assert spent.layer_tokens > 0.6 * budget.layer_tokens  # nor does most of it stay unused
