"""The sentences of a report, made from a result alone: the terminal and report.html show the same ones."""

from collections.abc import Sequence

from autolayer.core.layer_set import name_layers
from autolayer.reporting.results import PickResult

AS_GOOD = 0.05
"""Contribution by which the expectation for a layer may be lower than for the chosen one that it is as good as."""


def headline(result: PickResult) -> str:
    """Returns the answer in one or two sentences: the layer, what training it gained, and how sure the choice is."""
    return " ".join(filter(None, headline_parts(result)))


def headline_parts(result: PickResult) -> tuple[str, str]:
    """Returns the two parts of the headline: the answer, and how sure it is, which may be empty."""
    if result.status == "prior":
        band, chosen = name_layers(result.tied_layers or ()), _of_all(result, result.best_layers or ())
        return f"{chosen} by depth alone: nothing was measured.", f"Depth predicts as much for {band}."
    return _answer(result), _confidence(result)


def _answer(result: PickResult) -> str:
    if result.trained_layers is not None:
        subject = _of_all(result, result.trained_layers)
        if (gain := result.gain) is None or result.base_score is None or result.trained_score is None:
            return f"{subject}: trained."
        return (
            f"{subject}: score {result.base_score:.3f} -> {result.trained_score:.3f} "
            f"({gain.value:+.3f}, {gain.level:.0%} interval {gain.low:+.3f} to {gain.high:+.3f})."
        )
    if not result.best_layers:
        return "Not finished: the base model has a training signal, and no layer has been tried yet."
    subject = _of_all(result, result.best_layers)
    verb = "is" if len(result.best_layers) == 1 else "are"
    if result.verdict is not None:
        return f"{subject} {verb} chosen and not trained yet."
    measured = any(row.measured is not None for row in result.ranking or ())
    return f"Not finished: {subject.lower()} {verb} best so far{'' if measured else ', by prediction only'}."


def _confidence(result: PickResult) -> str:
    others = [layer for layer in result.tied_layers or () if layer not in (result.best_layers or ())]
    probability = probability_best(result)
    chance = "" if probability is None else f": the best with probability {probability:.2f}"
    if result.verdict == "clear":
        if "only candidate" in (result.stop_reason or ""):
            return "There was no other candidate."
        return f"The clear winner{chance}."
    if result.verdict is None:
        return ""
    if not others:
        if result.verdict == "tied":
            return "No other choice could gain enough more to matter."
        return f"No clear winner when the search ended{chance}."
    band = [layer for layer in layers_as_good(result) if layer in others]
    rest = [layer for layer in others if layer not in band]
    parts = [
        f"{name_layers(layers)} {'is' if len(layers) == 1 else 'are'} {what}"
        for layers, what in ((band, "expected to do as well"), (rest, "not ruled out"))
        if layers
    ]
    return f"No clear winner: {', and '.join(parts)}{_cheaper(result)}."


def layers_as_good(result: PickResult) -> list[int]:
    """Returns the tied layers that are expected to do as well as the chosen one; with status prior all tied layers."""
    tied = list(result.tied_layers or ())
    if result.status == "prior":
        return tied
    expected = {row.layer: row.expected for row in result.ranking or () if row.expected is not None}
    least = max((expected[layer] for layer in result.best_layers or () if layer in expected), default=0.0) - AS_GOOD
    return [layer for layer in tied if layer in expected and expected[layer] >= least]


def _cheaper(result: PickResult) -> str:
    """Says what training costs where the chosen layer is the cheapest of equals: backward stops at a trained layer."""
    costs = {row.layer: row.relative_cost for row in result.ranking or () if row.relative_cost is not None}
    tied = [layer for layer in result.tied_layers or () if layer in costs]
    best = result.best_layers or ()
    if result.verdict != "tied" or len(best) != 1 or best[0] not in tied or best[0] == min(tied):
        return ""
    share = (costs[best[0]] or 0.0) / (costs[min(tied)] or 1.0)
    return f"; a training step of layer {best[0]} takes {share:.0%} of the work of one of layer {min(tied)}"


def probability_best(result: PickResult) -> float | None:
    """Returns the probability that the chosen layer, or set of layers, is the best, or None if it is unknown."""
    best = tuple(result.best_layers or ())
    for row in result.sets or ():
        if tuple(row.layers) == best:
            return row.probability_best
    known = [row.probability_best for row in result.ranking or () if (row.layer,) == best]
    return known[0] if known else None


def found_by_search(result: PickResult) -> bool:
    """Returns False for a run of `train`, where the user named the layers."""
    return result.verdict is not None or result.trained_layers is None


def detail_lines(result: PickResult) -> list[str]:
    """Returns the lines below the headline: why the search stopped, and how the scores were read."""
    lines = []
    if result.stop_reason:
        lines.append(f"Why the search stopped: {result.stop_reason.rstrip('.')}.")
    if result.base_score is not None and result.trained_score is None:
        lines.append(f"Score of the base model: {result.base_score:.3f}.")
    if result.gain is not None:
        lines.append(
            f"The gain is paired over {result.gain.num_items} items of the eval split, which nothing else used."
        )
    return [*lines, *_suite_lines(result)]


def cost_line(result: PickResult) -> str | None:
    """Returns what finding the layer cost, as a share of one full training run, or None if nothing was spent."""
    if not result.cost_share_of_full_run:
        return None
    what = "Finding the layer" if found_by_search(result) else "The stages before training"
    shares = [cost.seconds_share for name, cost in result.cost.items() if name != "train"]
    known = [share for share in shares if share is not None]
    seconds = f" ({sum(known):.0%} in seconds)" if known else ""
    return f"{what} cost {result.cost_share_of_full_run:.0%} of one full training run{seconds}."


def _suite_lines(result: PickResult) -> list[str]:
    """Returns a line for each evaluation set, and one with the values that the reward logged."""
    lines, suites = [], result.suites or {}
    for name, suite in suites.items():
        rates = f"cut off {suite.base_truncated:.0%} -> {suite.trained_truncated:.0%}"
        if suite.base_well_formed is not None and suite.trained_well_formed is not None:
            rates += f", look like an answer {suite.base_well_formed:.0%} -> {suite.trained_well_formed:.0%}"
        if len(suites) == 1:  # its scores are in the headline
            lines.append(f"Completions, base -> trained: {rates}")
            continue
        samples = f", {suite.samples} samples each" if suite.samples > 1 else ""
        scores = f"{suite.base_score:.3f} -> {suite.trained_score:.3f}"
        lines.append(f"  {name} ({suite.num_items} items{samples}): {scores}; {rates}")
    if (logged := result.reward_metrics) is not None:
        names = sorted({name for metrics in logged.values() for name, value in metrics.items() if value})
        of_functions = [name for name in names if name.startswith("rewards/") and name.endswith("/mean")]
        others = [name for name in names if name not in of_functions]
        for what, kind in (("Mean of each reward", of_functions), ("Logged by the reward", others)):
            counts = [
                f"{name.removeprefix('rewards/').removesuffix('/mean') if kind is of_functions else name} "
                f"{logged['base'].get(name, 0):.2g} -> {logged['trained'].get(name, 0):.2g}"
                for name in kind
            ]
            lines += [f"{what}, base -> trained: {', '.join(counts)}"] if counts else []
    return lines


def legend(result: PickResult, intervals: Sequence[str] = ("predicted", "measured", "expected")) -> str:
    """Returns the line that explains the columns of the ranking; `intervals` names those shown with an interval."""

    def column(name: str) -> str:
        level = "95%" if name == "measured" else "80%"
        return f"{name} [{level} interval]" if name in intervals else name

    is_measured = result.contribution_reference is not None
    told = ", ".join(map(column, ("predicted", "measured") if is_measured else ("predicted",)))
    measured = "1 is the gain of the best run of as many steps, taken as exact"
    expected = f"; {column('expected')}{' joins both,' if is_measured else ''} for the full run"
    expected = expected if _has(result, "expected") else ""
    cost = ". Cost: a training step against one of all parameters" if _has(result, "relative_cost") else ""
    return f"Contribution: {told}{expected}; {measured if is_measured else 'no layer is measured yet'}{cost}."


def _has(result: PickResult, name: str) -> bool:
    return any(getattr(row, name) is not None for row in result.ranking or ())


def _of_all(result: PickResult, layers: Sequence[int]) -> str:
    if len(layers) == result.num_layers > 1:
        return f"All {result.num_layers} layers"
    return f"{name_layers(layers).capitalize()} of {result.num_layers}"
