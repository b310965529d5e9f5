"""Records a race in an Optuna study, so that a worker needs nothing else to join or resume it.

The study's user attribute `inputs` holds the candidates, base rewards and costs. Each trial has the user attributes
`run`, `worker` (the process that runs it) and, once it has finished, `result` or `failed`. What decides the race is
sealed, because SQLite does not notice that bits have changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from pydantic import TypeAdapter

from autolayer.core.arms import RungResult
from autolayer.core.costs import Cost
from autolayer.core.errors import RunFolderError
from autolayer.core.whole_files import seal, unseal
from autolayer.search.optuna_storage import (
    Storage,
    open_storage,
    open_study,
    quiet_optuna,
    reading_study,
    shown_storage,
    storage_errors,
)
from autolayer.search.race import Answer
from autolayer.search.records import Candidate, RaceConfig, Run

RACE_STUDY = "autolayer"
_RUN, _RESULT, _CANDIDATES = TypeAdapter(Run), TypeAdapter(RungResult), TypeAdapter(tuple[Candidate, ...])


def check_storage(storage: Storage, signature: str | None = None) -> None:
    """Refuses, before any work is done, a storage that does not open or holds a race of another signature."""
    with quiet_optuna(), storage_errors(storage), reading_study():
        backend = open_storage(storage)
        if signature is None or RACE_STUDY not in optuna.get_all_study_names(backend):
            return
        found = optuna.load_study(study_name=RACE_STUDY, storage=backend).user_attrs.get("inputs")
        if found is not None and found["identity"]["signature"] != signature:
            raise _other_race(storage, ["signature"])


def _other_race(storage: Storage, names: Sequence[str]) -> RunFolderError:
    return RunFolderError(
        f"the study '{RACE_STUDY}' in {shown_storage(storage)} holds a race with another {', '.join(names)}: give "
        "another --storage or --out, or the settings it was started with."
    )


@dataclass(frozen=True, kw_only=True)
class RaceStudy:
    """An Optuna study with the inputs of the race that it records."""

    study: optuna.Study
    config: RaceConfig
    candidates: tuple[Candidate, ...]
    base_I: tuple[float, ...]

    @classmethod
    @reading_study()
    def open(
        cls,
        storage: Storage,
        config: RaceConfig,
        candidates: Sequence[Candidate],
        base_I: Sequence[float],
        *,
        resumes: bool = False,
    ) -> RaceStudy:
        """Creates the study, or opens the existing one and adopts its candidates, base rewards and costs.

        Predictions measured on another machine differ in the last digits, and all workers must decide the same.
        With `resumes`, a study that is not there is refused.
        """
        study, wanted = open_study(storage, RACE_STUDY), _study_inputs(config, candidates, base_I)
        if "inputs" not in study.user_attrs:
            if resumes:
                raise StorageInternalError("its race is lost, which has begun")
            study.set_user_attr("inputs", seal("inputs", wanted))
        stored = unseal("inputs", study.user_attrs["inputs"])
        if stored["identity"] != json.loads(json.dumps(wanted["identity"])):
            names = [name for name, value in stored["identity"].items() if value != wanted["identity"][name]]
            raise _other_race(storage, names)
        opened = cls.of(study, config, stored)
        opened.answers(opened.trials())  # damage is found before anything is trained
        return opened

    @classmethod
    def of(cls, study: optuna.Study, config: RaceConfig, inputs: dict[str, Any]) -> RaceStudy:
        """Returns a study with the candidates, base rewards and costs of its `inputs`."""
        return cls(
            study=study,
            config=_with_stored_costs(config, inputs),
            candidates=_CANDIDATES.validate_python(inputs["candidates"]),
            base_I=tuple(inputs["base_select_rewards_I"]),
        )

    def trials(self) -> list[FrozenTrial]:
        """Returns all trials that carry a run, oldest first."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if "run" in trial.user_attrs]

    def answers(self, trials: Sequence[FrozenTrial]) -> dict[Run, Answer]:
        """Returns one answer for each finished run. An interrupted run has none, so that the race repeats it."""
        answers: dict[Run, Answer] = {}
        retried_up_to = self.study.user_attrs.get("failures_retried_up_to_trial", -1)
        for trial in trials:
            run = run_of(trial)
            if "result" in trial.user_attrs:
                answers.setdefault(run, _result(run, trial))
            elif "failed" in trial.user_attrs and trial.number > retried_up_to:
                answers.setdefault(run, trial.user_attrs["failed"])
        return answers

    def retry_failures(self) -> None:
        """Discards all failures so far, so that the next process repeats these runs."""
        self.study.set_user_attr(
            "failures_retried_up_to_trial", max((trial.number for trial in self.trials()), default=-1)
        )

    def is_duplicate(self, number: int) -> bool:
        """Returns True if an older trial carries the same run: two workers may enqueue it at the same time."""
        trials = self.trials()
        mine = next(trial for trial in trials if trial.number == number)
        rivals = [t for t in trials if t.number < number and t.user_attrs["run"] == mine.user_attrs["run"]]
        return any(not t.state.is_finished() or "result" in t.user_attrs for t in rivals)


def run_of(trial: FrozenTrial | optuna.Trial) -> Run:
    """Returns the run that a trial carries."""
    return _RUN.validate_python(unseal("run", trial.user_attrs["run"]))


def sealed_result(run: Run, result: RungResult) -> dict[str, Any]:
    """Returns a result as a trial's attribute, bound to its run."""
    return seal(f"result of {run.key}", asdict(result))


def _result(run: Run, trial: FrozenTrial) -> RungResult:
    return _RESULT.validate_python(unseal(f"result of {run.key}", trial.user_attrs["result"]))


def _study_inputs(config: RaceConfig, candidates: Sequence[Candidate], base_I: Sequence[float]) -> dict[str, Any]:
    same = ("signature", "seed", "num_layers", "total_steps", "regret", "confidence", "rate_span", "fixed_rate")
    return {
        "identity": {name: getattr(config, name) for name in same}
        | {"candidates": [list(candidate.layers) for candidate in candidates], "num_select": len(base_I)},
        "candidates": [asdict(candidate) for candidate in candidates],
        "base_select_rewards_I": [float(reward) for reward in base_I],
        "is_pretrained": config.is_pretrained,
        "budget": asdict(config.budget),
        "eval_cost": asdict(config.eval_cost),
        "earlier": asdict(config.earlier),
        "step_costs": [asdict(config.step_cost(candidate.layers)) for candidate in candidates],
    }


def _with_stored_costs(config: RaceConfig, inputs: dict[str, Any]) -> RaceConfig:
    costs = {
        tuple(candidate["layers"]): Cost(**cost)
        for candidate, cost in zip(inputs["candidates"], inputs["step_costs"], strict=True)
    }
    return replace(
        config,
        budget=Cost(**inputs["budget"]),
        eval_cost=Cost(**inputs["eval_cost"]),
        earlier=Cost(**inputs.get("earlier", {})),
        step_cost=lambda layers: costs[layers] if layers != "full" else config.step_cost(layers),
    )
