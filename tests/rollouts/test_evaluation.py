"""The reading of `eval`: suites and their weights, several samples, decoding, truncation and form, top-k and top-p."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as reference
from tiny_models import build_tokenizer
from workbench_helpers import Untouched, make_bench, make_task

import autolayer
from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, DataError
from autolayer.core.statistics import paired_interval
from autolayer.reporting.html import html_page
from autolayer.reporting.results import PickResult
from autolayer.reporting.terminal import Report
from autolayer.rollouts.evaluation import (
    Evaluation,
    average_by_item,
    evaluation_requests,
    item_indices,
    relative_weights,
    suite_scores,
)
from autolayer.rollouts.length_limits import apply_length_limits
from autolayer.rollouts.rollouts import Rollouts, request_seed
from autolayer.tasks import Task
from autolayer.tasks.suites import Decoding

DECODING = Decoding(temperature=0.6, top_p=0.9, top_k=3, max_new_tokens=7)


def suited(num_a: int = 16, num_b: int = 8, samples: int = 3, **fields: Any) -> Task:
    """The 24 items of `eval` in two suites, one of them with several samples."""
    task = make_task()
    suites = (["a", "a", "b"] * 24)[: num_a + num_b]
    assert Counter(suites) == {"a": num_a, "b": num_b}
    values = {name: getattr(task, name) for name in ("name", "splits", "reward", "max_new_tokens")}
    return Task(**values, suites=suites, samples={"b": samples}, **fields)


# Weights and intervals.


def test_every_suite_weighs_the_same() -> None:
    found = Evaluation(
        rewards_I=(1.0, 0.0, 0.5), truncated_I=(0.0, 1.0, 0.25), well_formed_I=None, suites_I=("a", "a", "b")
    )
    assert found.score == 0.5 * (0.5 + 0.5)
    assert (found.mean(found.truncated_I, "a"), found.mean(found.truncated_I, "b")) == (0.5, 0.25)


def test_measure_weighs_items_by_suite() -> None:
    """`measure` takes plain means: of scaled rewards they are the score."""
    task, rewards_I = suited(), np.random.default_rng(0).random(24)
    scale_I = relative_weights(task, 24)
    scaled_I = rewards_I * scale_I
    parts = [rewards_I[[name == suite for name in task.suites or ()]].mean() for suite in "ab"]
    assert scaled_I.mean() == pytest.approx(np.mean(parts))
    assert relative_weights(make_task(), 24).tolist() == [1.0] * 24


def test_the_stratified_interval_by_hand() -> None:
    # Differences: a = 1, 0, 1, 0 (mean .5, variance 1/3), b = .5, 0 (mean .25, variance 1/8).
    after, before = [1.0, 0.0, 1.0, 1.0, 0.75, 0.25], [0.0, 0.0, 0.0, 1.0, 0.25, 0.25]
    interval = paired_interval(after, before, 0.9, ["a", "a", "a", "a", "b", "b"])
    part_a, part_b = 1 / 3 / 4 / 4, 1 / 8 / 2 / 4
    freedom = (part_a + part_b) ** 2 / (part_a**2 / 3 + part_b**2 / 1)
    reach = reference.t.ppf(0.95, freedom) * math.sqrt(part_a + part_b)
    assert interval.value == pytest.approx(0.375)
    assert (interval.low, interval.high) == pytest.approx((0.375 - reach, 0.375 + reach))


def test_one_suite_is_the_ordinary_interval() -> None:
    after, before = [1.0, 0.0, 1.0, 1.0, 0.5], [0.0, 0.0, 1.0, 0.0, 0.25]
    one, ordinary = paired_interval(after, before, suites_I=["a"] * 5), paired_interval(after, before)
    assert (one.low, one.value, one.high) == pytest.approx((ordinary.low, ordinary.value, ordinary.high))
    with pytest.raises(ValueError, match="two or more pairs of every suite"):
        paired_interval(after, before, suites_I=["a", "a", "a", "a", "b"])


def test_stratified_intervals_cover_the_true_gain() -> None:
    generator, trials = np.random.default_rng(0), 2000
    suites = ["large"] * 40 + ["small"] * 5
    gain_I = np.where(np.array(suites) == "large", 0.1, 0.9)  # the truth is the mean of the two, .5
    spread_I = np.where(np.array(suites) == "large", 1.0, 2.0)
    covered = 0
    for _ in range(trials):
        after = gain_I + spread_I * generator.normal(size=45)
        interval = paired_interval(list(after), [0.0] * 45, suites_I=suites)
        covered += interval.low <= 0.5 <= interval.high
    assert abs(covered / trials - 0.95) < 0.015


# What is asked.


def test_all_items_or_a_proportional_part_of_each_suite() -> None:
    task = suited()
    assert item_indices(task, "eval", 24) == item_indices(task, "eval", 99) == list(range(24))
    part = item_indices(task, "eval", 12)
    assert Counter(task.suites[i] for i in part) == {"a": 8, "b": 4}  # pyright: ignore
    assert part == sorted(part) and part[:6] == list(range(6)), "the first items of each"
    assert Counter(task.suites[i] for i in item_indices(task, "eval", 1)) == {"a": 2, "b": 2}  # pyright: ignore
    assert item_indices(task, "select", 5) == item_indices(make_task(), "eval", 5) == list(range(5))


def test_samples_of_an_item_have_seeds_of_their_own() -> None:
    asked = evaluation_requests(suited(eval_decoding=DECODING), "eval", 24, 7)
    assert asked.counts_I == (1, 1, 3) * 8 and len(asked.rows) == len(set(asked.seeds)) == 8 * 5
    assert asked.seeds[:3] == [request_seed(7, "eval", index) for index in range(3)]
    assert asked.rows[2] == asked.rows[3] == asked.rows[4] != asked.rows[5]
    assert asked.decoding == DECODING
    plain = evaluation_requests(suited(eval_decoding=DECODING), "select", 24, 7)
    assert (plain.counts_I, plain.decoding) == ((1,) * 24, None)
    fewer = evaluation_requests(suited(), "eval", 12, 7)
    assert set(fewer.seeds) <= set(asked.seeds), "reading fewer items changes no other's noise"


def test_an_item_is_the_mean_of_its_samples() -> None:
    task = suited()
    asked = evaluation_requests(task, "eval", 24, 0)
    count = len(asked.rows)
    rewards, finished = [float(i) for i in range(count)], [i % 2 == 0 for i in range(count)]
    rollouts = Rollouts.of_one_turn([[1]] * count, [[1]] * count, ["1"] * count, rewards, finished, 1)
    found = average_by_item(task, asked, rollouts)
    assert found.rewards_I[:4] == (0.0, 1.0, 3.0, 5.0)
    assert found.truncated_I[:3] == pytest.approx((0.0, 1.0, 1 / 3))
    assert found.well_formed_I is None and found.suites_I[:3] == ("a", "a", "b")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"suites": ["a"] * 23}, "24 rows in 'eval' and 23 suites"),
        ({"suites": ["a"] * 23 + ["b"]}, "the suite b has a single item"),
        ({"suites": ["a"] * 24, "samples": {"c": 2}}, "samples has 'c': 2.*any of the suites: a"),
        ({"suites": ["a"] * 24, "samples": {"a": 0}}, "samples has 'a': 0; give a whole number above 0"),
        ({"samples": {"a": 2}}, "there are none"),
    ],
)
def test_suites_that_do_not_fit_are_refused(fields: dict[str, Any], words: str) -> None:
    task = make_task()
    with pytest.raises(DataError, match=words):
        Task(name="test", splits=task.splits, reward=task.reward, max_new_tokens=5, **fields)


@pytest.mark.parametrize("change", [{"temperature": 0}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}])
def test_a_decoding_that_draws_nothing_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(DataError, match="cannot work: give a temperature above 0"):
        Decoding(**{"temperature": 1.0, "max_new_tokens": 4, **change})


def fitted(lengths: dict[str, tuple[int, ...]], positions: int, **fields: Any) -> Task:
    splits = {name: [{"prompt": f"{name[:2]}{'x' * (n - 2)}"} for n in wanted] for name, wanted in lengths.items()}
    task = Task(name="toy", splits=splits, reward=lambda prompts, **_: [0.0] * len(prompts), max_new_tokens=8, **fields)
    return apply_length_limits(Config(model="m"), task, build_tokenizer(), positions)


SHORT = {"train": (5, 9), "probe": (8,), "select": (3, 4), "eval": (6, 12)}


def test_a_long_item_of_the_evaluation_shortens_nothing_but_its_own_answer(caplog: pytest.LogCaptureFixture) -> None:
    """A long problem of OlympiadBench must not keep a model of 4096 positions from training at 3000 new tokens."""
    task = fitted(SHORT, 17)
    assert task.max_new_tokens == 8 and "1 of 2 prompts of 'eval' leave fewer than 8 new tokens" in caplog.text
    assert fitted(SHORT, 20).max_new_tokens == 8
    assert fitted(SHORT, 16).max_new_tokens == 7, "the longest training prompt has 9"
    long = Decoding(temperature=0.6, max_new_tokens=32)
    assert fitted(SHORT, 17, eval_decoding=long).eval_decoding == long, "short prompts have all of it"


def test_prompts_that_fill_the_context_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 positions, but the longest prompt .* has 12 tokens: give shorter"):
        fitted(SHORT, 12)
    with pytest.raises(ConfigError, match="16 positions.*--max-new-tokens 7"):
        apply_length_limits(Config(model="m", max_new_tokens=8), fitted(SHORT, 99), build_tokenizer(), 16)


# Top-k and top-p.


def kept_by_definition(logits: list[float], top_k: int, top_p: float) -> set[int]:
    """The tokens that stay, one by one: the likeliest first, until enough is held."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k:
        order = [i for i in order if logits[i] >= logits[order[min(top_k, len(order)) - 1]]]
    weights = [math.exp(logits[i]) for i in order]
    kept, held = set(), 0.0
    for i, weight in zip(order, weights, strict=True):
        kept.add(i)
        held += weight / sum(weights)
        if held >= top_p:
            return kept
    return kept


def test_samples_follow_the_cut_distribution(tiny_model: Any, tmp_path: Path) -> None:
    """One token drawn very often, against the softmax of what the definition leaves."""
    bench = make_bench(tiny_model, tmp_path)
    decoding = Decoding(temperature=0.7, top_p=0.8, top_k=5, max_new_tokens=1)
    prompt, num = [3, 5, 7], 4000
    with bench.engine.decoding(decoding):
        drawn = Counter(ids[0] for ids in bench.engine.generate([prompt] * num, range(num)))
    with torch.no_grad():
        logits = (tiny_model(input_ids=torch.tensor([prompt])).logits[0, -1].double() / 0.7).tolist()
    kept = kept_by_definition(logits, 5, 0.8)
    total = sum(math.exp(logits[i]) for i in kept)
    assert set(drawn) <= kept
    for token in kept:
        share = math.exp(logits[token]) / total
        assert abs(drawn[token] / num - share) < 4.5 * math.sqrt(share * (1 - share) / num)


def test_the_engine_goes_back_to_the_policy(tiny_model: Any, tmp_path: Path) -> None:
    bench = make_bench(tiny_model, tmp_path)
    prompts, seeds = [[3, 5]] * 6, range(6)
    before = bench.engine.generate(prompts, seeds)
    with pytest.raises(RuntimeError), bench.engine.decoding(DECODING):
        assert max(map(len, bench.engine.generate(prompts, seeds))) == 7
        raise RuntimeError
    assert bench.engine.generate(prompts, seeds) == before
    with bench.engine.decoding(None):
        assert bench.engine.generate(prompts, seeds) == before
    loose = Decoding(temperature=1.0, max_new_tokens=5)
    with bench.engine.decoding(loose):
        assert bench.engine.generate(prompts, seeds) == before, "nothing cut is the policy itself"


def test_only_eval_is_decoded_differently(tiny_model: Any, tmp_path: Path) -> None:
    task = suited(eval_decoding=DECODING, is_well_formed=lambda text: len(text) > 3)
    bench, plain = make_bench(tiny_model, tmp_path / "a", task), make_bench(tiny_model, tmp_path / "b")
    untouched = Untouched(tiny_model)
    assert bench.evaluate("select", 9, seed=1).rewards_I == plain.evaluate("select", 9, seed=1).rewards_I
    found = bench.evaluate("eval", 24, seed=1)
    untouched.check()
    assert found.rewards_I != plain.evaluate("eval", 24, seed=1).rewards_I
    assert found.rewards_I == bench.evaluate("eval", 24, seed=1).rewards_I and len(found.rewards_I) == 24
    assert found.well_formed_I is not None and 0 <= min(found.well_formed_I) <= max(found.well_formed_I) <= 1
    scores = suite_scores(task, found, found)
    assert list(scores) == ["a", "b"] and [s.samples for s in scores.values()] == [1, 3]
    assert found.score == pytest.approx((scores["a"].base_score + scores["b"].trained_score) / 2)


# From end to end.

TWO_SUITES = """
from autolayer.tasks import Task
from autolayer.tasks.math import arith
from autolayer.tasks.generated import exact_reward
from autolayer.tasks.suites import Decoding

splits = {split: arith.arith_problems(split, num) for split, num in
          {"train": 256, "probe": 64, "select": 64, "eval": 30}.items()}
TASK = Task(
    name="two", splits=splits, reward=exact_reward, max_new_tokens=8, is_well_formed=arith.is_two_digits,
    suites=["wide"] * 20 + ["deep"] * 10, samples={"deep": 4},
    eval_decoding=Decoding(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=12),
)
"""


@pytest.mark.slow
def test_pick_reports_every_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "two.py").write_text(TWO_SUITES)
    result = autolayer.pick(
        model="tiny", task=f"{tmp_path / 'two.py'}:TASK", layers="2,3", steps=8, prompts_per_step=4, group_size=4,
        num_eval=30, device="cpu", budget=2.0, out=str(tmp_path / "run"),
    )  # fmt: skip
    assert result.suites is not None and result.gain is not None
    wide, deep = result.suites["wide"], result.suites["deep"]
    assert [(s.num_items, s.samples) for s in (wide, deep)] == [(20, 1), (10, 4)]
    assert result.base_score == pytest.approx((wide.base_score + deep.base_score) / 2)
    assert result.trained_score == pytest.approx((wide.trained_score + deep.trained_score) / 2)
    assert result.gain.value == pytest.approx(result.trained_score - result.base_score)  # pyright: ignore
    assert result.gain.num_items == 30
    for suite in (wide, deep):
        assert 0 <= suite.base_truncated <= 1 and suite.base_well_formed is not None
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert PickResult.from_dict(written).suites == result.suites
    del written["suites"]
    assert PickResult.from_dict(written).suites is None, "results of older versions have none"
    from rich.console import Console

    Console(width=120).print(Report(result))
    page = html_page(result)
    for text in (capsys.readouterr().out, page):
        assert "wide (20 items)" in text and "deep (10 items, 4 samples each)" in text and "cut off" in text
