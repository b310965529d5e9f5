"""Decides a finished search again, with another --regret or --top-k, from what was measured and without a model."""

from dataclasses import replace
from pathlib import Path

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, RunFolderError
from autolayer.core.run_folder import STUDY, RunFolder
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
    if not run.has(STUDY):
        raise RunFolderError(f"{folder} has no {STUDY}, because its search is in another --storage: copy it there.")
    outcome, posterior, allowed = decide_again(run / STUDY, regret)
    raced = len(outcome.best)
    size = raced if top_k is None else top_k
    rungs = sum(len(row.rungs) for row in outcome.ranking)
    notes = [f"decided again with --regret {allowed:g} and --top-k {size} from {rungs} short runs; nothing was trained"]
    best, tied = outcome.best, outcome.tied if raced == size else ()
    if size != raced:
        if raced > 1 or size > len(posterior.ranked):
            raise ConfigError(
                f"--top-k {size} cannot be decided here: this run raced {len(outcome.ranking)} candidates of "
                f"{raced} layer{'s' * (raced > 1)}. Give at most as many single layers, or start a new `pick`."
            )
        best = tuple(sorted(posterior.candidates[i].layers[0] for i in posterior.ranked[:size]))
        notes.append("sets were not raced: these layers have the highest expected contributions one by one")
    trained = result.trained_layers == best
    changes = {} if trained else dict.fromkeys(("trained_layers", "trained_score", "gain", "suites", "reward_metrics"))
    return replace(
        result,
        **changes,
        status=result.status if trained else "incomplete",
        best_layers=best,
        tied_layers=tuple(sorted({*(layers[0] for layers in tied), *best})) if tied and raced == 1 else (),
        verdict=outcome.verdict if size == raced else "budget_spent",
        stop_reason=outcome.stop_reason if size == raced else None,
        expected_regret=outcome.expected_regret if size == raced else None,
        learning_rate=outcome.winner.learning_rate if size == raced else None,
        notes=(*notes, *result.notes),
    )
