"""Verdicts: the outcome of a comparison in plain words, no stronger than the numbers are.

A sentence never says more than "on this file": which layer contributes depends on the model and the task. No torch.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from autolayer.comparison.comparison import JudgedRanking, Judgement, MeanJudgement

LIKELY_CHANCE = 0.05
"""Probability above which the verdict mentions that a random ranking does as well."""
FEW_FILES = 10
"""Number of files below which a percentile bootstrap is clearly too narrow."""


def file_verdict(judged: Judgement) -> str:
    """Returns the verdict on one measured file."""
    if all(row.spearman is None for row in judged.rows):
        return "Measured contribution is the same for every layer: there is nothing to rank."
    prediction, baselines = judged.prediction, _ranked(judged.rows, "baseline")
    if prediction is None:
        return _without_prediction(judged, baselines[0])
    if prediction.spearman is None:
        return f"The prediction is the same for every layer, so it ranks nothing. {_regret(judged, prediction)}"
    sentences = [
        _against_baselines(prediction, baselines),
        _noise(baselines[0]),
        _ceiling(judged, prediction.spearman),
    ]
    if prediction.spearman > 0 and prediction.chance is not None and prediction.chance > LIKELY_CHANCE:
        sentences.append(
            f"A random ranking of {len(judged.points)} layers does as well with probability {prediction.chance:.2f}."
        )
    beyond = prediction.spearman_without_depth
    if beyond is not None and beyond <= 0 < prediction.spearman:
        sentences.append(f"Beyond a trend in depth it ranks nothing (Spearman {beyond:.2f} without it).")
    sentences.append(_regret(judged, prediction))
    probes = _ranked(judged.rows, "probe")
    if probes and (probes[0].spearman or 0.0) > prediction.spearman:
        hindsight = f", the best of {len(probes)} with hindsight," if len(probes) > 1 else ""
        sentences.append(f"The single probe {probes[0].name}{hindsight} ranks better ({probes[0].spearman:.2f}).")
    return " ".join(filter(None, [*sentences, "This is one model and one task."]))


def mean_verdict(mean: MeanJudgement) -> str:
    """Returns the verdict on all files together."""
    prediction = next((row for row in mean.rows if row.kind == "prediction"), None)
    if prediction is None or prediction.spearman is None:
        return f"Not every one of the {mean.num_comparisons} files gives the prediction a rank correlation: no mean."
    baselines = _ranked(mean.rows, "baseline")
    text = f"Over {mean.num_comparisons} files the prediction's mean Spearman is {prediction.spearman:.2f}."
    judged = [row for row in baselines if row.spearman_difference is not None]
    if not judged:
        best = baselines[0]
        return (
            f"{text} The best baseline is {best.name} with {best.spearman:.2f}; two files are too few to say whether "
            "the difference means anything."
        )
    beaten = [row.name for row in judged if row.spearman_difference is not None and row.spearman_difference.low > 0]
    behind = [row.name for row in judged if row.spearman_difference is not None and row.spearman_difference.high < 0]
    open_ = [row.name for row in judged if row.name not in (*beaten, *behind)]
    parts = [
        f"it is ahead of {_names(beaten)}" if beaten else "",
        f"it cannot be told apart from {_names(open_)}" if open_ else "",
        f"it is behind {_names(behind)}" if behind else "",
    ]
    return f"{text} By the intervals over files {'; '.join(filter(None, parts))}."


def notes(judged: Judgement, assumed: bool) -> tuple[str, ...]:
    """Returns notes on what was left out or assumed.

    Args:
        judged: The judgement; its verdict may be missing.
        assumed: True if no file said how many layers the model has.
    """
    found = []
    if judged.predicted_for != judged.measured_on and judged.predicted_for != judged.predicted:
        found.append(f"predicted for {judged.predicted_for}; measured on {judged.measured_on}")
    if assumed:
        found.append(
            f"no file says how many layers the model has: {judged.num_layers} is assumed, one more than the highest"
        )
    if judged.only_predicted:
        found.append(f"left out, not measured: {_layers(judged.only_predicted)}")
    if judged.only_measured:
        found.append(f"left out, not predicted: {_layers(judged.only_measured)}")
        if judged.ceiling is not None:
            found.append("the ceiling is that of all measured layers")
    if judged.in_sample:
        found.append(
            "regret is in sample: with one value a layer the best layer is chosen on the values it is scored on"
        )
    return tuple(found)


def mean_notes(judged: Sequence[Judgement]) -> tuple[str, ...]:
    """Returns notes on the mean over several files."""
    found = []
    if 3 <= len(judged) < FEW_FILES:
        found.append(f"intervals over {len(judged)} files are narrower than their level says")
    settings = Counter(one.measured_on for one in judged)
    repeated = [name for name, count in settings.items() if count > 1]
    if repeated:
        found.append(f"the files count as independent, but several measure {_names(repeated)}")
    return tuple(found)


def _without_prediction(judged: Judgement, best: JudgedRanking) -> str:
    sentences = [
        "The prediction is the measured file itself, so only baselines and probes are judged.",
        f"The best baseline is {best.name} (Spearman {best.spearman:.2f}).",
    ]
    if probes := _ranked(judged.rows, "probe"):
        first = probes[0]
        beats = "beats it" if (first.spearman or 0) > (best.spearman or 0) else "does not beat it"
        hindsight = f", the best of {len(probes)} with hindsight," if len(probes) > 1 else ""
        sentences.append(f"The probe {first.name} ({first.spearman:.2f}){hindsight} {beats}.")
    return " ".join(sentences)


def _against_baselines(prediction: JudgedRanking, baselines: list[JudgedRanking]) -> str:
    best = baselines[0]
    value, rival = prediction.spearman or 0.0, best.spearman or 0.0
    if value > rival:
        return (
            f"On this file the prediction ranks the layers better than every baseline: Spearman {value:.2f}, "
            f"and {rival:.2f} for {best.name}, the best of them."
        )
    if value == rival:
        return f"On this file the prediction ranks the layers as well as {best.name}, a baseline: Spearman {value:.2f}."
    text = (
        f"On this file the prediction does not beat {best.name}, a baseline: Spearman {value:.2f}, against {rival:.2f}"
    )
    position = next((row.spearman for row in baselines if row.name == "position"), None)
    if best.name == "position" or position is None:
        return f"{text}."
    return f"{text} ({position:.2f} for position alone)."


def _noise(best: JudgedRanking) -> str:
    difference = best.spearman_difference
    if difference is None:
        return "The measured file has no error bars, so it is not known whether that difference is noise."
    numbers = (
        f"{difference.value:+.2f}, {difference.level:.0%} interval {difference.low:+.2f} to {difference.high:+.2f}"
    )
    if difference.low > 0 or difference.high < 0:
        return f"The difference is more than the noise of the measurement ({numbers})."
    return f"The difference is within the noise of the measurement ({numbers})."


def _ceiling(judged: Judgement, spearman: float) -> str:
    if judged.ceiling is None:
        return "The noise ceiling is not known: the file has one value a layer." if judged.in_sample else ""
    if judged.ceiling == 0:
        return "The measurement itself cannot tell the layers apart (ceiling 0), so it settles nothing."
    if spearman >= judged.ceiling:
        return f"It reaches the noise ceiling: a perfect prediction would be expected at {judged.ceiling:.2f}."
    return f"A perfect prediction would be expected at {judged.ceiling:.2f}, the noise ceiling."


def _regret(judged: Judgement, prediction: JudgedRanking) -> str:
    rows = {row.name: row for row in judged.rows}
    picked = prediction.picks
    who = f"Its pick, layer {picked[0]}," if len(picked) == 1 else f"Its picks, {_layers(picked)},"
    verb = "loses" if len(picked) == 1 else "lose on average"
    return (
        f"{who} {verb} {_value(prediction.regret_top1)} of the full gain against the best layer; "
        f"position loses {_value(rows['position'].regret_top1)}, a random layer {_value(rows['random'].regret_top1)}."
    )


def _ranked(rows: Iterable[JudgedRanking], kind: str) -> list[JudgedRanking]:
    """Returns the rows of a kind that have a Spearman correlation, the best first."""
    known = [row for row in rows if row.kind == kind and row.spearman is not None]
    return sorted(known, key=lambda row: -(row.spearman or 0.0))


def _value(number: float | None) -> str:
    return "-" if number is None else f"{round(number, 2) + 0.0:.2f}"  # + 0.0 turns -0.00 into 0.00


def _layers(layers: Sequence[int]) -> str:
    """Returns the name of some layers: 'layer 3', or 'layers 0-3 and 7'."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"layer{'s' if len(layers) > 1 else ''} {_names(words)}"


def _names(words: Sequence[str]) -> str:
    """Returns some words as a list in a sentence: 'a', 'a and b', 'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
