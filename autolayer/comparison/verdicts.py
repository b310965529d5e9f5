"""Verdicts: the outcome of a comparison in plain words, no stronger than the numbers are.

A sentence never says more than "on this file": which layer contributes depends on the model and the task. No torch.
"""

from collections.abc import Iterable

from autolayer.comparison.comparison import NUM_ENDS, JudgedRanking, Judgement
from autolayer.comparison.curves import Curve
from autolayer.core.layer_set import name_layers

LIKELY_CHANCE = 0.05
"""Probability above which the verdict mentions that a random ranking does as well."""


def verdict(judged: Judgement) -> str:
    """Returns the verdict on one measured file."""
    if judged.best or judged.worst:
        return _on_ends(judged)
    baselines, probes = _ranked(judged.rows, "baseline"), _ranked(judged.rows, "probe")
    if not baselines:
        return "Measured contribution is the same for every layer: there is nothing to rank."
    best, prediction = baselines[0], judged.rows[0]
    if prediction.kind != "prediction":
        better = probes and (probes[0].spearman or 0.0) > (best.spearman or 0.0)
        sentences = [
            "The prediction is the measured file itself, so only baselines and probes are judged.",
            f"The best baseline is {best.name} (Spearman {best.spearman:.2f}).",
            _best_probe(probes, "ranks better" if better else "does not beat it") if probes else "",
        ]
        return " ".join(filter(None, sentences))
    if prediction.spearman is None:
        return f"The prediction is the same for every layer, so it ranks nothing. {_regret(judged, prediction)}"
    sentences = [_against(best, prediction.spearman, baselines), _noise(best), _ceiling(judged, prediction.spearman)]
    if prediction.spearman > 0 and prediction.chance is not None and prediction.chance > LIKELY_CHANCE:
        sentences.append(
            f"A random ranking of {len(judged.points)} layers does as well with probability {prediction.chance:.2f}."
        )
    sentences.append(_regret(judged, prediction))
    if probes and (probes[0].spearman or 0.0) > prediction.spearman:
        sentences.append(_best_probe(probes, "ranks better"))
    return " ".join(filter(None, [*sentences, "This is one model and one task."]))


def notes(predicted: Curve, measured: Curve) -> tuple[str, ...]:
    """Returns notes on what was left out or assumed."""
    found = []
    if predicted.setting not in (measured.setting, predicted.source):
        found.append(f"predicted for {predicted.setting}; measured on {measured.setting}")
    if predicted.num_layers is None and measured.num_layers is None:
        found.append("no file says how many layers the model has: one more than the highest is assumed")
    if left := predicted.layers - measured.layers:
        found.append(f"left out, not measured: {name_layers(left)}")
    if left := measured.layers - predicted.layers:
        found.append(f"left out, not predicted: {name_layers(left)}")
        if measured.ceiling is not None:
            found.append("the ceiling is that of all measured layers")
    if measured.by_seed is None and not measured.only_ends:
        found.append(
            "regret is in sample: with one value a layer the best layer is chosen on the values it is scored on"
        )
    return tuple(found)


def _on_ends(judged: Judgement) -> str:
    """Returns the verdict where only the best and the worst layers are known."""
    rows = {row.name: row for row in judged.rows}
    position, prediction = rows["position"], judged.rows[0]
    sentences = []
    for kind, layers, where in (("best", judged.best, "above"), ("worst", judged.worst, "below")):
        ours, theirs = (getattr(row, f"auc_{kind}") for row in (prediction, position))
        if ours is not None:
            count = min(NUM_ENDS, len(layers))
            named = f"the {kind} layer, {layers[0]}," if count == 1 else f"a layer of the {kind} {count}"
            sentences.append(
                f"It puts {named} {where} another one with probability {ours:.2f} (position {theirs:.2f})."
            )
    for place, layer in enumerate(judged.best, start=1):
        if prediction.picks == (layer,):
            sentences.append(f"Its pick, layer {layer}, is number {place} of the source.")
    known = "Only the best and the worst layers are known, so the prediction is judged by where it puts these."
    return " ".join([known, *sentences, "A random ranking has 0.50. This is one model and one task."])


def _best_probe(probes: list[JudgedRanking], ranks: str) -> str:
    hindsight = f", the best of {len(probes)} with hindsight," if len(probes) > 1 else ""
    return f"The single probe {probes[0].name}{hindsight} {ranks} ({probes[0].spearman:.2f})."


def _against(best: JudgedRanking, value: float, baselines: list[JudgedRanking]) -> str:
    rival = best.spearman or 0.0
    if value > rival:
        return (
            f"On this file the prediction ranks the layers better than every baseline: Spearman {value:.2f}, "
            f"and {rival:.2f} for {best.name}, the best of them."
        )
    if value == rival:
        return f"On this file the prediction ranks the layers as well as {best.name}, a baseline: Spearman {value:.2f}."
    position = next((row.spearman for row in baselines if row.name == "position" != best.name), None)
    alone = "" if position is None else f" ({position:.2f} for position alone)"
    return (
        f"On this file the prediction does not beat {best.name}, a baseline: Spearman {value:.2f}, against "
        f"{rival:.2f}{alone}."
    )


def _noise(best: JudgedRanking) -> str:
    found = best.spearman_difference
    if found is None:
        return "The measured file has no error bars, so it is not known whether that difference is noise."
    clear = "more than" if found.low > 0 or found.high < 0 else "within"
    numbers = f"{found.value:+.2f}, {found.level:.0%} interval {found.low:+.2f} to {found.high:+.2f}"
    return f"The difference is {clear} the noise of the measurement ({numbers})."


def _ceiling(judged: Judgement, spearman: float) -> str:
    if judged.ceiling is None:
        return "The noise ceiling is not known: the file has one value a layer." if judged.num_seeds == 1 else ""
    if judged.ceiling == 0:
        return "The measurement itself cannot tell the layers apart (ceiling 0), so it settles nothing."
    if spearman >= judged.ceiling:
        return f"It reaches the noise ceiling: a perfect prediction would be expected at {judged.ceiling:.2f}."
    return f"A perfect prediction would be expected at {judged.ceiling:.2f}, the noise ceiling."


def _regret(judged: Judgement, prediction: JudgedRanking) -> str:
    lost = {row.name: f"{round(row.regret, 2) + 0.0:.2f}" for row in judged.rows if row.regret is not None}  # no -0.00
    single, picked = len(prediction.picks) == 1, name_layers(prediction.picks)
    return (
        f"Its pick{'' if single else 's'}, {picked}, {'loses' if single else 'lose on average'} {lost['prediction']} "
        f"of the full gain against the best layer; position loses {lost['position']}, a random layer {lost['random']}."
    )


def _ranked(rows: Iterable[JudgedRanking], kind: str) -> list[JudgedRanking]:
    """Returns the rows of a kind that have a Spearman correlation, the best first."""
    known = [row for row in rows if row.kind == kind and row.spearman is not None]
    return sorted(known, key=lambda row: -(row.spearman or 0.0))
