"""The curves that ship with the package, and what `compare` says where only the best and the worst layers are known."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from compare_helpers import contribution, picked, rows, shown
from scipy import stats

from autolayer.cli.commands import compare as command
from autolayer.comparison import metrics
from autolayer.comparison.compare import compare
from autolayer.comparison.published import published, published_curves
from autolayer.core.errors import DataError, UnknownNameError


def closeness(num_layers: int, depth: float = 0.45) -> dict[int, float]:
    return {layer: -abs(layer / (num_layers - 1) - depth) for layer in range(num_layers)}


# The data


def test_entries_are_of_layers_that_the_model_has() -> None:
    for name, entry in published_curves().items():
        curve = published(name)
        named = {*curve.values, *curve.best, *curve.worst}
        assert named and named <= set(range(entry.num_layers)), name
        assert not set(curve.best) & set(curve.worst) and curve.is_measured, name
        assert len(set(curve.best)) == len(curve.best) and len(set(curve.worst)) == len(curve.worst), name


def test_values_of_the_sources() -> None:
    assert published("qwen3-4b").best == (16, 14, 19, 22, 17, 15, 12, 18, 20, 10)
    assert published("qwen3-4b").worst == (2, 3, 1, 30, 32, 29, 27, 33, 4, 28)
    assert published("qwen3-1.7b-8k").best[:10] == (10, 9, 16, 12, 13, 2, 7, 14, 15, 11)
    assert published("qwen3-8b").values == {0: -0.51, 16: 1.07}
    assert published("qwen2.5-3b").values == {4: 0.17, 18: 1.01}
    # 11.4 points of exact match, where LoRA on all layers gains 12.8.
    assert published("qwen3-8b-lora").values[6] == pytest.approx(11.4 / 12.8, abs=0.001)
    assert published("smollm2-sums").values[25] == 0.06


def test_every_name_is_in_the_help_and_in_the_error() -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    with pytest.raises(UnknownNameError) as error:
        published("qwen3-5b")
    for name in published_curves():
        assert name in text.replace("\n", " ") and f"published:{name}" in str(error.value)


# The area under the curve


def test_auc_by_hand() -> None:
    # Of six pairs (chosen, other), the chosen one is higher in 4, equal in 1.
    assert metrics.auc([3, 1, 2, 0, 1], [True, True, False, False, False]) == pytest.approx((4 + 0.5) / 6)
    assert metrics.auc([1, 1, 1], [True, False, False]) == 0.5
    assert metrics.auc([1, 2], [True, True]) is None and metrics.auc([1, 2], [False, False]) is None


def test_auc_is_the_mann_whitney_statistic() -> None:
    scores = closeness(36)
    chosen = [layer in published("qwen3-4b").best for layer in range(36)]
    inside = [scores[layer] for layer in range(36) if chosen[layer]]
    outside = [scores[layer] for layer in range(36) if not chosen[layer]]
    found = metrics.auc(list(scores.values()), chosen)
    assert found == pytest.approx(stats.mannwhitneyu(inside, outside)[0] / (10 * 26))


def test_pearson_is_scipys() -> None:
    truth_L = list(published("qwen3-1.7b").values.values())
    scores_L = list(closeness(28).values())
    assert metrics.pearson(scores_L, truth_L) == pytest.approx(stats.pearsonr(scores_L, truth_L)[0])
    assert metrics.pearson([1, 1, 1], [1, 2, 3]) is None


# Judging by the ends


def test_closeness_to_depth_45_finds_the_best_ten() -> None:
    """It is known to reach .93 for Qwen3-1.7B (evaluated with 8192 tokens) and .97 for Qwen3-4B."""
    for name, best in (("qwen3-1.7b-8k", 0.93), ("qwen3-4b", 0.97)):
        num_layers = published_curves()[name].num_layers
        (judged,) = compare(picked(closeness(num_layers), num_layers=num_layers), f"published:{name}").comparisons
        prediction = rows(judged)["prediction"]
        assert prediction.auc_best == pytest.approx(best, abs=0.005)
        assert prediction.spearman is prediction.regret is prediction.pearson is None
        assert f"a layer of the best 10 above another one with probability {best}" in judged.verdict
        assert rows(judged)["random"].auc_worst == 0.5
        assert len(judged.points) == num_layers


def test_a_single_best_layer_is_judged_by_its_place() -> None:
    """In Qwen3-8B layer 16 is the best one: closeness to .40 puts 14, 13 and 15 above it, and 32 below."""
    (judged,) = compare(picked(closeness(36, 0.4), num_layers=36), "published:qwen3-8b").comparisons
    assert rows(judged)["prediction"].auc_best == pytest.approx(32 / 35, abs=0.02)
    assert "It puts the best layer, 16, above another one" in judged.verdict
    assert "Its pick" not in judged.verdict and "None" not in shown(compare(picked(), contribution()))


def test_whole_curves_have_both_ends_too() -> None:
    (judged,) = compare(picked(closeness(28), num_layers=28), "published:qwen3-1.7b").comparisons
    values = published("qwen3-1.7b").values
    best = sorted(values, key=lambda layer: -values[layer])[:10]
    wanted = metrics.auc(list(closeness(28).values()), [layer in best for layer in range(28)])
    assert rows(judged)["prediction"].auc_best == wanted
    assert rows(judged)["prediction"].regret is not None and judged.best == ()
    (small,) = compare(picked(), contribution()).comparisons
    assert rows(small)["prediction"].auc_best == 1.0, "half of eight layers count as the best ones"


def test_only_ends_predict_nothing_and_are_drawn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only its best and worst layers, so it predicts nothing"):
        compare("published:qwen3-4b", "published:qwen3-4b")
    compare(picked(closeness(24), num_layers=24), "published:third-24-layers", out=tmp_path)
    assert "worst layers" in (tmp_path / "comparison.svg").read_text()
