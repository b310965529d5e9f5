"""`compare`: what it reads, what it refuses, what it says. Run: pytest tests/test_compare.py"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from test_results import finished

import autolayer
from autolayer import cli
from autolayer.comparing import metrics
from autolayer.comparing.comparison import Comparison, Judgement, Row
from autolayer.comparing.curves import published
from autolayer.comparing.report import ComparisonReport
from autolayer.comparing.run import compare
from autolayer.contribution import ArmGain, Contribution
from autolayer.errors import AutolayerError, DataError, UnknownNameError
from autolayer.results import PickResult, RankingRow

TRUTH = (0.3, 0.5, 1.1, 0.8, 0.7, 0.6, 0.2, 0.1)
FULL_GAIN = 0.2


def contribution(
    truth: Any = TRUTH, *, noise: float = 0.05, seeds: int = 3, seed: int = 0, **changes: Any
) -> Contribution:
    """A measured file: every seed is the truth and noise. A dict measures only some layers."""
    truth = truth if isinstance(truth, dict) else dict(enumerate(truth))
    generator = np.random.default_rng(seed)
    layers = {}
    for layer, value in truth.items():
        gains = tuple(float(FULL_GAIN * (value + noise * generator.normal())) for _ in range(seeds))
        mean = float(np.mean(gains)) / FULL_GAIN
        layers[layer] = ArmGain(
            learning_rate=1e-3, gains=gains, value=mean, low=mean - 2 * noise, high=mean + 2 * noise
        )
    full = ArmGain(learning_rate=1e-3, gains=(FULL_GAIN,) * seeds, value=FULL_GAIN, low=0.1, high=0.3)
    fields: dict[str, Any] = {
        "model": "tiny", "base": "abc", "architecture": "qwen3", "num_parameters": 1000, "task": "math:arith",
        "algorithm": "grpo", "num_layers": 8, "steps": 50, "prompts_per_step": 8, "group_size": 8,
        "seeds": tuple(range(seeds)), "num_items": 256, "base_score": 0.4, "full": full, "layers": layers,
        "best_layers": (2,), "level": 0.95, "seed_sd": 0.01, "ceiling": 0.9 if seeds > 1 else None,
        "estimator": "made up for a test", "rates": (1e-3,),
        "probes": {"rl_burst": tuple(range(len(layers))), "last": tuple(range(len(layers)))},
    }  # fmt: skip
    return Contribution(**(fields | changes))


def picked(predicted: Any = TRUTH, **changes: Any) -> PickResult:
    """A run stopped after `probe`: predictions with 80% intervals of half width .4, and two probes."""
    predicted = predicted if isinstance(predicted, dict) else dict(enumerate(predicted))
    rows = [
        RankingRow(layer=layer, predicted=value, predicted_low=value - 0.4, predicted_high=value + 0.4)
        for layer, value in sorted(predicted.items(), key=lambda item: -item[1])
    ]
    num_layers = changes.get("num_layers", 8)
    probes = {name: [sign * float(layer) if layer in predicted else None for layer in range(num_layers)]
              for name, sign in (("gradient_norm", 1), ("rl_burst", -1), ("random", 1))}  # fmt: skip
    later = dict.fromkeys(("tied_layers", "trained_layers", "verdict", "stop_reason", "expected_regret", "base_score",
                           "trained_score", "gain", "contribution_reference", "baselines"))  # fmt: skip
    fields: dict[str, Any] = {**later, "status": "incomplete", "num_layers": 8, "candidates": tuple(sorted(predicted)),
                              "best_layers": (rows[0].layer,), "ranking": tuple(rows), "probes": probes}  # fmt: skip
    return replace(finished(), **(fields | changes))


def rows(judged: Judgement) -> dict[str, Row]:
    return {row.name: row for row in judged.rows}


def saved(folder: Path, value: PickResult | Contribution) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = "result.json" if isinstance(value, PickResult) else "contribution.json"
    (folder / name).write_text(json.dumps(value.to_dict()))
    return folder


def shown(found: Comparison, width: int = 140) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(ComparisonReport(found))
    return stream.getvalue()


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
    assert rows(judged)["prediction"].coverage == 1 and judged.in_sample and judged.ceiling is None
    assert judged.num_layers == 8 and any("8 is assumed" in note for note in judged.notes)


def test_the_published_curve_by_name() -> None:
    prediction = picked({layer: -abs(layer - 10) / 27 for layer in range(28)}, num_layers=28)
    (judged,) = compare(prediction, "published:qwen3-1.7b").comparisons
    assert rows(judged)["position"].spearman == pytest.approx(0.757, abs=0.001)
    assert judged.num_layers == 28 and len(judged.points) == 28 and judged.in_sample
    assert any("transcribed by a third party" in note for note in judged.notes)


def test_published_contribution_is_computed_from_the_four_benchmarks() -> None:
    """Layer 10: (68.6 + 80.5 + 27.3 + 30.8 - 176.6) / (203.1 - 176.6), the sums of the base and of full RL."""
    assert published("qwen3-1.7b").values[10] == pytest.approx((207.2 - 176.6) / (203.1 - 176.6))


def test_only_common_layers_are_compared_and_the_rest_is_said() -> None:
    prediction = picked({layer: TRUTH[layer] for layer in (0, 1, 2, 3, 4)})
    measured = contribution({layer: TRUTH[layer] for layer in (1, 2, 3, 4, 6, 7)})
    (judged,) = compare(prediction, measured).comparisons
    assert [point.layer for point in judged.points] == [1, 2, 3, 4]
    assert judged.only_predicted == (0,) and judged.only_measured == (6, 7)
    assert "left out, not measured: layer 0" in judged.notes and "left out, not predicted: layers 6-7" in judged.notes
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
    assert [row.name for row in judged.rows if row.kind == "probe"] == ["rl_burst"], "baselines are no probes"


def test_a_file_does_not_predict_itself() -> None:
    (judged,) = compare(contribution(), contribution()).comparisons
    assert judged.prediction is None and all(point.predicted is None for point in judged.points)
    assert "The prediction is the measured file itself" in judged.verdict and "rl_burst" in judged.verdict
    assert all(row.ahead is None for row in judged.rows)


# The numbers


def test_every_row_is_judged_by_the_metrics() -> None:
    measured = contribution()
    (judged,) = compare(picked(TRUTH[::-1]), measured).comparisons
    truth_L, truth_S_L = list(measured.values.values()), np.array(list(measured.by_seed().values())).T
    scores = {"prediction": TRUTH[::-1], "gradient_norm": range(8), "rl_burst": range(0, -8, -1),
              "first": range(8, 0, -1), "last": range(8), "position": [-abs(layer / 7 - 0.4) for layer in range(8)],
              "middle": [-abs(layer - 4) for layer in range(8)]}  # fmt: skip
    found = rows(judged)
    assert found.keys() == {*scores, "random"}
    for name, scores_L in scores.items():
        row = found[name]
        assert row.spearman == metrics.spearman(list(scores_L), truth_L)
        assert row.share_of_ceiling == pytest.approx((row.spearman or 0) / 0.9)
        assert row.kendall == metrics.kendall(list(scores_L), truth_L)
        assert row.spearman_without_depth == metrics.spearman_without_depth(list(scores_L), truth_L, range(8))
        assert row.regret_top1 == metrics.regret(list(scores_L), truth_S_L)
        assert row.regret_top3 == metrics.regret(list(scores_L), truth_S_L, top=3)
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
    assert (random.spearman, random.kendall, random.spearman_without_depth, random.picks) == (0, 0, 0, ())
    assert random.regret_top1 == pytest.approx(max(values) - np.mean(values))


def test_a_constant_prediction_ranks_nothing() -> None:
    found = compare(picked([0.75] * 8), contribution())
    prediction = rows(found.comparisons[0])["prediction"]
    assert prediction.spearman is None and prediction.kendall is None and prediction.share_of_ceiling is None
    assert prediction.regret_top1 == pytest.approx(rows(found.comparisons[0])["random"].regret_top1)
    assert "the same for every layer, so it ranks nothing" in found.comparisons[0].verdict
    assert all(row.ahead is None for row in found.comparisons[0].rows)
    assert re.search(r"^prediction +- +- ", shown(found), re.MULTILINE)


def test_constant_measurements_rank_nothing() -> None:
    flat = contribution([0.5] * 8, noise=0)
    (judged,) = compare(picked(), flat).comparisons
    assert all(row.spearman is None for row in judged.rows) and "there is nothing to rank" in judged.verdict


def test_few_layers_are_not_detrended() -> None:
    (judged,) = compare(picked({layer: TRUTH[layer] for layer in range(5)}), contribution()).comparisons
    assert all(row.spearman_without_depth is None and row.kendall_without_depth is None for row in judged.rows)


def test_without_intervals_none_are_judged(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("layer,predicted\n" + "".join(f"{i},{100 * v}\n" for i, v in enumerate(TRUTH)))
    found = compare(tmp_path / "p.csv", contribution())
    assert all(row.coverage is None and row.winkler is None for row in found.comparisons[0].rows)
    assert "Winkler" not in shown(found) and not found.comparisons[0].is_contribution


# Several files


def files(count: int = 4) -> list[Contribution]:
    return [contribution(np.roll(TRUTH, place // 2), seed=place, task=f"task-{place}") for place in range(count)]


def test_the_mean_over_files_with_paired_intervals() -> None:
    found = compare(picked(), *files())
    assert found.mean is not None and found.mean.num_comparisons == len(found.comparisons) == 4
    mean = {row.name: row for row in found.mean.rows}
    prediction, position = ([rows(judged)[name] for judged in found.comparisons] for name in ("prediction", "position"))
    assert mean["prediction"].spearman == pytest.approx(np.mean([row.spearman or 0 for row in prediction]))
    differences = [(one.spearman or 0) - (other.spearman or 0) for one, other in zip(prediction, position, strict=True)]
    ahead, regret = mean["position"].ahead, mean["position"].regret_ahead
    assert ahead is not None and regret is not None and mean["prediction"].ahead is None
    assert ahead.value == pytest.approx(np.mean(differences)) and ahead.num_items == 4
    assert min(differences) <= ahead.low <= ahead.value <= ahead.high <= max(differences)
    assert regret.value == pytest.approx((mean["prediction"].regret_top1 or 0) - (mean["position"].regret_top1 or 0))
    assert "Over 4 files" in found.mean.verdict and "narrower than their level says" in found.mean.notes[0]


def test_two_files_have_a_mean_and_no_interval() -> None:
    found = compare(picked(), *files(2))
    assert found.mean is not None and all(row.ahead is None for row in found.mean.rows)
    assert "two files are too few" in found.mean.verdict
    assert compare(picked(), contribution()).mean is None


def test_a_value_missing_on_one_file_has_no_mean() -> None:
    small = contribution({layer: TRUTH[layer] for layer in range(5)}, task="other")
    found = compare(picked(), contribution(), small)
    assert found.mean is not None
    assert all(row.spearman_without_depth is None and row.spearman is not None for row in found.mean.rows)


def test_files_of_one_setting_are_not_independent() -> None:
    found = compare(picked(), *(contribution(seed=seed) for seed in range(3)))
    assert found.mean is not None and any("tiny, math:arith, grpo" in note for note in found.mean.notes)


# Verdicts


@pytest.mark.parametrize(
    ("prediction", "measured", "parts"),
    [
        (picked(), contribution(noise=0.001), ["better than every baseline", "reaches the noise ceiling",
                                               "more than the noise", "Its pick, layer 2, loses 0.00"]),
        (picked(), contribution(noise=0.001, ceiling=1.0), ["perfect prediction would be expected at 1.00"]),
        (picked(), contribution(noise=0.6, ceiling=0.0), ["cannot tell the layers apart", "settles nothing"]),
        (picked(range(8)), contribution(), ["does not beat position", "Its pick, layer 7,"]),
        (picked([-abs(layer / 7 - 0.4) for layer in range(8)]), contribution(), ["as well as position, a baseline"]),
        (picked([0.3, 0.5, 0.8, 1.1, 0.7, 0.6, 0.2, 0.1]), contribution(noise=1.0), ["is within the noise"]),
        (picked(), contribution(seeds=1), ["noise ceiling is not known"]),
        (picked(), "published:qwen3-1.7b", ["a model with 8 layers"]),
        (picked(range(8), probes={"rl_burst": TRUTH}), contribution(), ["single probe rl_burst ranks better"]),
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


# What it refuses


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["columns (none)"]),
        ("layer;contribution\n1;2\n", ["layer;contribution", "needs a header"]),
        ("layer,score\n1,2\n", ["columns layer, score"]),
        ("layer,contribution,predicted\n1,2,3\n", ["either contribution or predicted"]),
        ("layer,contribution\n", ["no rows"]),
        ("layer,contribution\n0,0.1\n0,0.2\n", ["line 3", "layer 0 stands there twice"]),
        ("layer,contribution\n0,nan\n", ["line 2", "'nan' is no finite number"]),
        ("layer,contribution\n0,\n", ["line 2", "contribution '' is no finite"]),
        ("layer,contribution\n0\n", ["line 2", "contribution None"]),
        ("layer,contribution\n1.5,1\n", ["layer '1.5' is no whole number"]),
        ("layer,contribution\n-1,1\n", ["layer '-1' is no whole number"]),
        ("layer,predicted,low\n1,1,1\n", ["low alone"]),
        ("layer,predicted,low,high\n1,1,2,0\n", ["low 2.0 is above high 0.0"]),
        ("layer,contribution\n0,1\n1,2\n2,3\n", ["3 layers in common, fewer than 4"]),
        ("layer,contribution\n0,1\n1,2\n2,3\n8,4\n", ["has layer 8", "8 layers (0..7)"]),
        ("layer,predicted\n0,1\n1,2\n2,3\n3,4\n", ["holds a prediction, which cannot judge another"]),
        ('{"layers": []}', ["is no contribution.json", "measure again"]),
        ('{"layers": ', ["damaged JSON"]),
        ('{"ranking": null}', ["is no result of autolayer"]),
        ("[1, 2]", ["is no contribution.json"]),
        ("a\0b", ["is no text file"]),
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
        (picked(), contribution(num_layers=12), ["a model with 8 layers", "one with 12"]),
        (picked({layer: 0.5 for layer in range(3)}), contribution(), ["3 layers in common"]),
        ("nowhere", contribution(), ["nowhere does not exist"]),
        (picked(), "published:qwen3-8b", ["unknown published curve", "published:qwen3-1.7b"]),
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
        ({"num_layers": 4}, "layers [4, 5, 6, 7] of a model with 4 blocks"),
        ({"probes": {"rl_burst": [float("nan")] * 8}}, "probe score that is not finite"),
        ({"full": ArmGain(learning_rate=1, gains=(0.1, -0.1, 0.0), value=0, low=0, high=0)}, "gained nothing"),
    ],
)
def test_damaged_contributions_are_refused(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    values = {**contribution().to_dict(), **json.loads(json.dumps(changes, default=vars))}
    (tmp_path / "contribution.json").write_text(json.dumps(values))
    with pytest.raises(DataError) as error:
        compare(picked(), tmp_path)
    assert part in str(error.value)


def test_a_result_cannot_judge_and_no_file_counts_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a prediction"):
        compare(picked(), saved(tmp_path / "run", picked()))
    with pytest.raises(DataError, match="given twice"):
        compare(picked(), contribution(), saved(tmp_path / "measured", contribution()))
    with pytest.raises(AutolayerError, match="nothing to compare with"):
        compare(picked())


# What people get


def test_the_report_has_every_row_and_fits() -> None:
    found = compare(picked(), *files(3))
    text = shown(found)
    for name in ("prediction", "random", "first", "middle", "last", "position", "gradient_norm", "rl_burst"):
        assert len(re.findall(rf"^{name} +-?\d", text, re.MULTILINE)) == 4, name
    assert "noise ceiling 0.90" in text and "mean of 3 files" in text and "nan" not in text and "None" not in text
    for width in (40, 60, 80, 200):
        lines = shown(found, width).splitlines()
        assert max(map(len, lines)) <= width and not any("…" in line for line in lines)


def call(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as leaving:
        cli.main(list(arguments))
    out, err = capfd.readouterr()
    return leaving.value.code, out, err


def test_json_is_one_object_and_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, measured = saved(tmp_path / "run", picked()), saved(tmp_path / "measured", contribution())
    out = tmp_path / "a" / "b"
    code, text, _ = call(capfd, "compare", str(run), str(measured), "--json", "--out", str(out))
    values = json.loads(text)
    assert code == 0 and list(values) == ["schema_version", "comparisons", "mean"] and values["schema_version"] == 1
    assert text == (out / "comparison.json").read_text()
    assert "NaN" not in text and values["comparisons"][0]["rows"][0]["name"] == "prediction"
    code, text, _ = call(capfd, "compare", str(run), str(measured), "--out", str(out))
    assert code == 0 and "Spear" in text and "comparison.svg" in text.replace("\n", "")


def test_what_the_user_can_mend_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for arguments in ([], ["nowhere"], ["nowhere", "published:qwen3-1.7b"], ["published:qwen3-1.7b", "published:x"],
                      ["published:qwen3-1.7b", "published:qwen3-1.7b", "--out", str(tmp_path / "file")]):  # fmt: skip
        code, out, err = call(capfd, "compare", *arguments)
        assert code == 2 and out == "" and err.startswith("autolayer: error: ") and err.count("\n") == 1


def test_figures_are_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        compare(picked(), *files(2), out=tmp_path / folder)
    for name in ("comparison.png", "comparison.svg", "comparison.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    svg = (tmp_path / "one" / "comparison.svg").read_text()
    assert "predicted [80% interval]" in svg and "measured [95% interval]" in svg and "dc:date" not in svg
    assert all(name in svg for name in ("position", "middle", "first", "last", "noise ceiling 0.90"))
    assert (tmp_path / "one" / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["own scale", "itself", "no error bars"])
def test_figures_of_less_usual_inputs(tmp_path: Path, kind: str) -> None:
    (tmp_path / "p.csv").write_text("layer,predicted\n" + "".join(f"{i},{1e4 * v}\n" for i, v in enumerate(TRUTH)))
    measured: Any = "published:qwen3-1.7b" if kind == "no error bars" else contribution(model="$x_1$")
    predicted: Any = {"own scale": tmp_path / "p.csv", "itself": measured, "no error bars": tmp_path / "p.csv"}[kind]
    compare(predicted, measured, out=tmp_path)
    svg = (tmp_path / "comparison.svg").read_text()
    assert ("predicted (own scale)" in svg) == (kind != "itself")


def test_without_matplotlib_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(AutolayerError, match=r"pip install 'autolayer\[figures\]'"):
        compare(picked(), contribution(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert compare(picked(), contribution()).comparisons, "no figure, no matplotlib"


def test_it_is_a_verb_of_the_library_and_needs_no_torch(tmp_path: Path) -> None:
    assert autolayer.compare is compare and "compare" in autolayer.__all__
    code = (
        "import sys, autolayer\n"
        "autolayer.compare('published:qwen3-1.7b', 'published:qwen3-1.7b')\n"
        "print(callable(autolayer.compare), *{'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
