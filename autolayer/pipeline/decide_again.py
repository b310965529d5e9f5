"""Decides a finished search again, with another --regret or --top-k, from what was measured and without a model."""

from dataclasses import replace
from pathlib import Path

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, RunFolderError
from autolayer.core.run_folder import STUDY, RunFolder
from autolayer.pipeline.result_rows import outcome_fields
from autolayer.reporting.results import PickResult
from autolayer.search.decide_again import decide_again


def decide_run_again(folder: Path, *, regret: float | None = None, top_k: int | None = None) -> PickResult:
    """Returns the result that the runs of a search give with these settings. It writes nothing into the run folder.

    If other layers are chosen than the run trained, the result holds no scores, because nothing trained these layers.

    Args:
        folder: The run folder of a `pick` whose search is over.
        regret: Contribution that you are ready to lose. None takes the run's.
        top_k: Layers to train together. None takes the run's.

    Raises:
        RunFolderError: The folder holds no search.
        ConfigError: A setting cannot work, or the run did not race that many layers.
    """
    result = PickResult.read(folder)
    given = {name: value for name, value in (("regret", regret), ("top_k", top_k)) if value is not None}
    Config(model=result.model, **given)  # refuses values that cannot work  # pyright: ignore[reportArgumentType]
    run = RunFolder(folder)
    if result.verdict is None:
        raise RunFolderError(
            f"{folder} has no finished search, so there is nothing to decide again: let `pick` search."
        )
    if not (run / STUDY).is_file():
        raise RunFolderError(f"{folder} has no {STUDY}, because its search is in another --storage: copy it there.")
    outcome, posterior, allowed = decide_again(run / STUDY, regret)
    raced = len(outcome.best)
    size = raced if top_k is None else top_k
    rungs = sum(len(row.rungs) for row in outcome.ranking)
    notes = [f"decided again with --regret {allowed:g} and --top-k {size} from {rungs} short runs; nothing was trained"]
    decided = outcome_fields(outcome, single=raced == 1)
    if size != raced:
        if raced > 1 or size > len(posterior.ranked):
            why, instead = f"this run can choose among {len(posterior.ranked)} layers", "at most as many"
            if raced > 1:
                why, instead = f"this run compared sets of {raced} layers", f"{raced}"
            raise ConfigError(f"--top-k {size} cannot be decided here: {why}. Give {instead}, or start a new `pick`.")
        best = tuple(sorted(posterior.candidates[i].layers[0] for i in posterior.ranked[:size]))
        decided = {**dict.fromkeys(decided), "best_layers": best, "tied_layers": (), "verdict": "budget_spent"}
        notes.append("sets were not raced: these layers have the highest expected contributions one by one")
    if not (trained := result.trained_layers == decided["best_layers"]):
        decided |= dict.fromkeys(("trained_layers", "trained_score", "gain", "suites", "reward_metrics"))
    status = result.status if trained else "incomplete"
    return replace(result, **decided, status=status, notes=(*notes, *result.notes))
