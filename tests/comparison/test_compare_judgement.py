"""`compare`: its numbers, their mean over files, its verdicts."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare_helpers import TRUTH, contribution, picked, rows, shown

from autolayer.comparison import metrics
from autolayer.comparison.compare import compare
from autolayer.comparison.published import published
from autolayer.core import depth_prior
from autolayer.core.errors import DataError
from autolayer.reporting.results import PickResult

# The numbers


def test_every_row_is_judged_by_the_metrics() -> None:
    measured = contribution()
    (judged,) = compare(picked(TRUTH[::-1]), measured).comparisons
    truth_L, truth_S_L = list(measured.values.values()), np.array(list(measured.by_seed().values())).T
    scores = {"prediction": TRUTH[::-1], "gradient_norm": range(8), "sign_gain": range(0, -8, -1),
              "first": range(8, 0, -1), "last": range(8), "position": depth_prior.predicted(range(8), 8),
              "middle": [-abs(layer - 4) for layer in range(8)]}  # fmt: skip
    found = rows(judged)
    assert found.keys() == {*scores, "random"}
    for name, scores_L in scores.items():
        row = found[name]
        assert row.spearman == metrics.spearman(list(scores_L), truth_L)
        assert row.share_of_ceiling == pytest.approx((row.spearman or 0) / 0.9)
        assert row.regret == metrics.regret(list(scores_L), truth_S_L)
    prediction_L = np.array(TRUTH[::-1])
    assert found["prediction"].coverage == metrics.coverage(truth_L, prediction_L - 0.4, prediction_L + 0.4)
    assert found["prediction"].winkler == pytest.approx(
        metrics.winkler(truth_L, prediction_L - 0.4, prediction_L + 0.4)
    )
    assert found["position"].coverage is not None and found["random"].winkler is not None
    assert found["first"].coverage is None and found["gradient_norm"].winkler is None


def test_random_is_its_expectation() -> None:
    measured = contribution(seeds=1)
    (judged,) = compare(picked(), measured).comparisons
    random, values = rows(judged)["random"], list(measured.values.values())
    assert (random.spearman, random.picks) == (0, ())
    assert random.regret == pytest.approx(max(values) - np.mean(values))


def test_a_constant_prediction_ranks_nothing() -> None:
    found = compare(picked([0.75] * 8), contribution())
    prediction = rows(found.comparisons[0])["prediction"]
    assert prediction.spearman is None and prediction.share_of_ceiling is None
    assert prediction.regret == pytest.approx(rows(found.comparisons[0])["random"].regret)
    assert "the same for every layer, so it ranks nothing" in found.comparisons[0].verdict
    assert all(row.spearman_difference is None for row in found.comparisons[0].rows)
    assert re.search(r"^prediction +- +\d", shown(found), re.MULTILINE)


def test_constant_measurements_rank_nothing() -> None:
    flat = contribution([0.5] * 8, noise=0)
    (judged,) = compare(picked(), flat).comparisons
    assert all(row.spearman is None for row in judged.rows) and "there is nothing to rank" in judged.verdict


def test_without_intervals_none_are_judged(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("layer,predicted\n" + "".join(f"{i},{100 * v}\n" for i, v in enumerate(TRUTH)))
    found = compare(tmp_path / "p.csv", contribution())
    assert all(row.coverage is None and row.winkler is None for row in found.comparisons[0].rows)
    assert "Wink-" not in shown(found)


# Verdicts


@pytest.mark.parametrize(
    ("prediction", "measured", "parts"),
    [
        (picked(), contribution(noise=0.001), ["better than every baseline", "reaches the noise ceiling",
                                               "more than the noise", "Its pick, layer 2, loses 0.00"]),
        (picked(), contribution(noise=0.001, ceiling=1.0), ["perfect prediction would be expected at 1.00"]),
        (picked(), contribution(noise=0.6, ceiling=0.0), ["cannot tell the layers apart", "settles nothing"]),
        (picked(range(8)), contribution(), ["does not beat position", "Its pick, layer 7,"]),
        (picked(depth_prior.predicted(range(8), 8).tolist()), contribution(), ["as well as position, a baseline"]),
        (picked([0.3, 0.5, 0.8, 1.1, 0.7, 0.6, 0.2, 0.1]), contribution(noise=1.0), ["is within the noise"]),
        (picked(), contribution(seeds=1), ["noise ceiling is not known"]),
        (picked(), "published:qwen3-1.7b", ["a model with 8 layers"]),
        (picked(range(8), probes={"sign_gain": TRUTH}), contribution(), ["single probe sign_gain ranks better"]),
        (picked([0, 1, 0, 0, 1, 0, 0, 0]), contribution(), ["Its picks, layers 1 and 4, lose on average",
                                                            "A random ranking of 8 layers does as well"]),
    ],
)  # fmt: skip
def test_verdict(prediction: PickResult, measured: Any, parts: list[str]) -> None:
    try:
        text = compare(prediction, measured).comparisons[0].verdict
    except DataError as error:
        text = str(error)
    assert all(part in text for part in parts), text
    assert "  " not in text and "nan" not in text and "None" not in text and "-0.00" not in text


def test_csv_without_error_bars_says_so() -> None:
    prediction = picked(published("qwen3-1.7b").values, num_layers=28)
    verdict = compare(prediction, "published:qwen3-1.7b").comparisons[0].verdict
    assert (
        "better than every baseline" in verdict and "no error bars" in verdict and "one model and one task" in verdict
    )
