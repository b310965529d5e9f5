"""`compare`: what it reads, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from compare_helpers import TRUTH, contribution, picked, rows, saved
from scipy import stats

from autolayer.comparison import metrics
from autolayer.comparison.compare import compare
from autolayer.comparison.published import published
from autolayer.core import depth_prior
from autolayer.core.errors import AutolayerError, DataError, UnknownNameError

# What it reads


def test_every_form_of_a_file_is_the_same_comparison(tmp_path: Path) -> None:
    run, measured = saved(tmp_path / "run", picked()), saved(tmp_path / "measured", contribution())
    expected = compare(picked(), contribution()).comparisons[0]
    for first, second in [(run, measured), (str(run / "result.json"), str(measured / "contribution.json"))]:
        judged = compare(first, second).comparisons[0]
        assert judged.rows == expected.rows and judged.points == expected.points
        assert (judged.predicted, judged.measured) == (str(first), str(second))


def test_csv_files(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "\ufeffLayer, predicted ,low,high,remark\n2, .9,.5,1.3,x\n0,.1,-.3,.5\n1,.5,.1,.9\n3,.7,.3,1.1\n"
    )
    (tmp_path / "m.csv").write_text("layer,contribution\n" + "".join(f"{i},{v}\n" for i, v in enumerate(TRUTH)))
    (judged,) = compare(tmp_path / "p.csv", tmp_path / "m.csv").comparisons
    assert [point.predicted for point in judged.points] == [0.1, 0.5, 0.9, 0.7]
    assert rows(judged)["prediction"].coverage == 1 and judged.num_seeds == 1 and judged.ceiling is None
    assert judged.num_layers == 8 and any("no file says how many layers" in note for note in judged.notes)


def test_the_published_curve_by_name() -> None:
    prediction = picked({layer: -abs(layer - 10) / 27 for layer in range(28)}, num_layers=28)
    (judged,) = compare(prediction, "published:qwen3-1.7b").comparisons
    truth_L = list(published("qwen3-1.7b").values.values())
    expected = stats.spearmanr(depth_prior.predicted(range(28), 28), truth_L)
    assert rows(judged)["position"].spearman == pytest.approx(expected[0])
    assert judged.num_layers == 28 and len(judged.points) == 28 and judged.num_seeds == 1
    assert any("transcribed by a third party" in note for note in judged.notes)


def test_published_contribution_is_computed_from_the_four_benchmarks() -> None:
    """Layer 10: (68.6 + 80.5 + 27.3 + 30.8 - 176.6) / (203.1 - 176.6), the sums of the base and of full RL."""
    assert published("qwen3-1.7b").values[10] == pytest.approx((207.2 - 176.6) / (203.1 - 176.6))


def test_only_common_layers_are_compared_and_the_rest_is_said() -> None:
    prediction = picked({layer: TRUTH[layer] for layer in (0, 1, 2, 3, 4)})
    measured = contribution({layer: TRUTH[layer] for layer in (1, 2, 3, 4, 6, 7)})
    (judged,) = compare(prediction, measured).comparisons
    assert [point.layer for point in judged.points] == [1, 2, 3, 4]
    assert "left out, not measured: layer 0" in judged.notes
    assert "left out, not predicted: layers 6 and 7" in judged.notes
    assert "the ceiling is that of all measured layers" in judged.notes
    assert rows(judged)["last"].picks == (4,) and rows(judged)["middle"].picks == (4,)
    assert rows(judged)["gradient_norm"].picks == (4,)


def test_one_measured_file_predicts_another() -> None:
    other = contribution(TRUTH[::-1], task="code:expr")
    (judged,) = compare(other, contribution()).comparisons
    expected = metrics.spearman(list(other.values.values()), list(contribution().values.values()))
    assert rows(judged)["prediction"].spearman == pytest.approx(expected)
    assert rows(judged)["prediction"].coverage is None, "its intervals are about its own measurement"
    assert "predicted for tiny, code:expr, grpo; measured on tiny, math:arith, grpo" in judged.notes
    assert [row.name for row in judged.rows if row.kind == "probe"] == ["sign_gain"], "baselines are no probes"


def test_a_file_does_not_predict_itself() -> None:
    (judged,) = compare(contribution(), contribution()).comparisons
    assert judged.rows[0].kind == "baseline" and all(point.predicted is None for point in judged.points)
    assert "The prediction is the measured file itself" in judged.verdict and "sign_gain" in judged.verdict
    assert all(row.spearman_difference is None for row in judged.rows)


# What it refuses


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["columns []"]),
        ("layer;contribution\n1;2\n", ["layer;contribution", "needs a header"]),
        ("layer,score\n1,2\n", ["columns ['layer', 'score']"]),
        ("layer,contribution,predicted\n1,2,3\n", ["either contribution or predicted"]),
        ("layer,contribution\n", ["no rows"]),
        ("layer,contribution\n0,0.1\n0,0.2\n", ["line 3", "layer 0 stands there twice"]),
        ("layer,contribution\n0,nan\n", ["line 2", "'nan' is not a finite number"]),
        ("layer,contribution\n0,\n", ["line 2", "contribution '' is not a finite"]),
        ("layer,contribution\n0\n", ["line 2", "contribution None"]),
        ("layer,contribution\n1.5,1\n", ["layer '1.5' is no whole number"]),
        ("layer,contribution\n-1,1\n", ["layer '-1' is no whole number"]),
        ("layer,predicted,low\n1,1,1\n", ["both low and high"]),
        ("layer,predicted,low,high\n1,1,2,0\n", ["low 2.0 is above high 0.0"]),
        ("layer,contribution\n0,1\n1,2\n2,3\n", ["3 layers in common, fewer than 4"]),
        ("layer,contribution\n0,1\n1,2\n2,3\n8,4\n", ["a model with 8 layers", "a model with at least 9 layers"]),
        ("layer,predicted\n0,1\n1,2\n2,3\n3,4\n", ["holds a prediction, which cannot judge another"]),
        ('{"layers": []}', ["is no contribution.json", "give a contribution.json, or the run folder"]),
        ('{"layers": ', ["is no contribution.json", "Invalid JSON"]),
        ('{"ranking": null}', ["is no result.json"]),
        ("[" * 100_000, ["is no contribution.json"]),
        ("[1, 2]", ["is no contribution.json"]),
        ("a\0b", [r"columns ['a\x00b']"]),
    ],
)
def test_what_is_no_curve_is_refused(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "measured"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        compare(picked(), path)
    assert all(part in str(error.value) for part in parts), error.value
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("predicted", "measured", "parts"),
    [
        (picked(ranking=None, probes=None), contribution(), ["predicts nothing yet", "--until probe"]),
        (picked(), contribution(num_layers=12), ["a model with 8 layers", "a model with 12 layers"]),
        (picked({layer: 0.5 for layer in range(3)}), contribution(), ["3 layers in common"]),
        ("nowhere", contribution(), ["nowhere does not exist"]),
        (picked(), "published:qwen3-9b", ["unknown published curve", "published:qwen3-1.7b"]),
        (picked(), ".", ["has neither result.json nor contribution.json"]),
    ],
)
def test_what_cannot_be_compared_is_refused(
    predicted: Any, measured: Any, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((DataError, UnknownNameError)) as error:
        compare(predicted, measured)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_layers": 4}, "it names layers beyond the 4 of the model"),
        ({"probes": {"sign_gain": [float("nan")] * 8}}, "/probes/sign_gain/0: Input should be a finite number (nan)"),
        (
            {"full": {"learning_rate": 1, "gains": [0.1, -0.1, 0.0], "value": 0, "low": 0, "high": 0}},
            "full-parameter gain is not above 0",
        ),
    ],
)
def test_damaged_contributions_are_refused(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    values = {**contribution().to_dict(), **changes}
    (tmp_path / "contribution.json").write_text(json.dumps(values))
    with pytest.raises(DataError) as error:
        compare(picked(), tmp_path)
    assert part in str(error.value)


def test_a_result_cannot_judge(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a prediction"):
        compare(picked(), saved(tmp_path / "run", picked()))
    with pytest.raises(AutolayerError, match="nothing to compare with"):
        compare(picked())
