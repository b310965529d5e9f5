"""Decides a recorded race again, from the runs that it has made and with another acceptable regret."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from autolayer.core.arms import RungResult
from autolayer.core.costs import Cost
from autolayer.core.errors import RunFolderError
from autolayer.core.whole_files import unseal
from autolayer.search.optuna_storage import open_study, quiet_optuna, reading_study, storage_errors
from autolayer.search.outcome import conclude, settled_verdict
from autolayer.search.posterior import Posterior
from autolayer.search.race import current_posterior
from autolayer.search.race_state import RaceState
from autolayer.search.records import RaceConfig, RaceOutcome
from autolayer.search.study import RACE_STUDY, RaceStudy


def decide_again(path: Path, regret: float | None = None) -> tuple[RaceOutcome, Posterior, float]:
    """Returns the outcome of a race with all its runs, the posterior it rests on, and the regret that it allows.

    The study's file is copied first, because opening a study writes to it.

    Args:
        path: The study, a SQLite file.
        regret: Acceptable loss of contribution. None takes the one of the race.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_optuna(), storage_errors(path), reading_study():
        study = open_study(Path(shutil.copy(path, folder)), RACE_STUDY)
        if "inputs" not in study.user_attrs:
            raise RunFolderError(f"{path} holds no search: there is nothing to decide again.")
        stored = unseal("inputs", study.user_attrs["inputs"])
        settings = {
            name: stored["identity"][name] for name in RaceConfig.__dataclass_fields__ if name in stored["identity"]
        }
        config = RaceConfig(
            **settings,
            is_pretrained=stored.get("is_pretrained", False),
            budget=Cost(),
            eval_cost=Cost(),
            step_cost=lambda layers: Cost(),
        )
        recorded = RaceStudy.of(study, config, stored)
        answers = recorded.answers(recorded.trials())
    config = replace(recorded.config, regret=config.regret if regret is None else regret)
    state = RaceState(config, recorded.candidates)
    state.add(answers, answers)
    posterior = current_posterior(state, recorded.base_I)
    verdict = settled_verdict(
        config, posterior, measured=any(isinstance(each, RungResult) for each in answers.values())
    )
    reason = "the runs that were made do not settle it"
    return conclude(state, posterior, recorded.base_I, verdict, reason), posterior, config.regret
