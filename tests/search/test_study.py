"""Tests the Optuna study of the race: resuming, failures, sharing, and what stock Optuna shows of it."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import numpy as np
import optuna
import pytest

from autolayer.core.arms import RungResult
from autolayer.core.costs import Cost
from autolayer.core.errors import RunFolderError, SearchError, TrainingError
from autolayer.search import optuna_storage
from autolayer.search.optuna_storage import open_storage, open_study, quiet_optuna, storage_errors
from autolayer.search.records import Candidate, RaceConfig
from autolayer.search.study import RaceStudy
from autolayer.search.worker import run_search

NUM_ITEMS = 32
BASE_I = tuple(np.random.default_rng(0).normal(0.4, 0.2, NUM_ITEMS))
CANDIDATES = [
    Candidate(layers=(layer,), predicted=0.6 + 0.02 * layer, predicted_sd=0.3, learning_rate=1e-4) for layer in range(6)
]
CONFIG = RaceConfig(
    seed=0,
    num_layers=6,
    total_steps=40,
    budget=Cost(generated_tokens=70.0, layer_tokens=70.0),
    step_cost=lambda layers: Cost(generated_tokens=1.0, layer_tokens=1.0),
    eval_cost=Cost(generated_tokens=1.0, layer_tokens=0.5),
    regret=0.0,
    confidence=0.999,
)


class Runner:
    """Simulates short runs, and lists those that were made."""

    def __init__(self, interrupt_at=None, fail_layer=None, seconds=0.0):
        self.made, self.interrupt_at, self.fail_layer, self.seconds = [], interrupt_at, fail_layer, seconds

    def __call__(self, arm, to_step):
        time.sleep(self.seconds)
        if self.interrupt_at is not None and len(self.made) == self.interrupt_at:
            raise KeyboardInterrupt
        layer = arm.layers[0]
        if layer == self.fail_layer:
            raise TrainingError("the gradient became nan")
        self.made.append((arm.key, to_step))
        rng = np.random.default_rng([layer, arm.seed, to_step, int(1e9 * arm.learning_rate)])
        gain = 0.1 * (1 + layer) * to_step / 40
        return RungResult(
            arm=replace(arm, step=to_step, checkpoint=f"arms/{arm.key}"),
            select_rewards_I=tuple(np.add(BASE_I, gain + rng.normal(0, 0.1, NUM_ITEMS))),
            train_rewards_P=tuple(gain + rng.normal(0, 0.1, 4 * (to_step - arm.step))),
            cost=Cost(generated_tokens=to_step - arm.step + 1.0, layer_tokens=to_step - arm.step + 0.5),
        )


def search(folder, run, **changes):
    return run_search(CONFIG, CANDIDATES, BASE_I, run, storage=f"sqlite:///{folder}/study.db", **changes)


@pytest.mark.parametrize("name", ["a?b", "x%20y", "{lr}", "a#b c'd"])
def test_the_study_is_in_the_file_whatever_its_name(tmp_path, name):
    file = tmp_path / name / "study.db"
    file.parent.mkdir()
    with quiet_optuna():
        open_study(file, "autolayer")
        assert optuna.get_all_study_names(open_storage(file)) == ["autolayer"]
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.db")] == [f"{name}/study.db"]
    with pytest.raises(RunFolderError, match="unable to open database file"), storage_errors(tmp_path):
        open_storage(tmp_path)


def trials_of(folder):
    with quiet_optuna():
        return optuna.load_study(study_name="autolayer", storage=f"sqlite:///{folder}/study.db").get_trials()


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """Returns a database with Optuna's tables, which take longer to create than a whole search."""
    folder = tmp_path_factory.mktemp("empty")
    with quiet_optuna():
        optuna.storages.RDBStorage(f"sqlite:///{folder}/study.db")
    return folder / "study.db"


@pytest.fixture
def folder(tmp_path, empty):
    shutil.copy(empty, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder, the runs and the outcome of an undisturbed search."""
    folder, run = tmp_path_factory.mktemp("whole"), Runner()
    return folder, run.made, search(folder, run)


@pytest.mark.slow
def test_same_inputs_same_search(whole, folder):
    _, made, outcome = whole
    run = Runner()
    assert search(folder, run) == outcome and run.made == made
    assert len(made) == len(set(made)) and outcome.spent.fits(CONFIG.budget)


def test_a_finished_search_runs_nothing_again(whole):
    folder, _, outcome = whole
    run = Runner()
    assert search(folder, run) == outcome and run.made == []
    assert sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials_of(folder)) == 1


@pytest.mark.slow
def test_interrupted_anywhere_it_ends_as_if_it_had_not_been(whole, tmp_path, empty):
    _, made, outcome = whole
    for crash in (
        0,
        1,
        len(made) // 2,
        len(made) - 1,
    ):  # test_race.py goes through every point
        folder = tmp_path / str(crash)
        folder.mkdir()
        shutil.copy(empty, folder)
        first, second = Runner(interrupt_at=crash), Runner()
        with pytest.raises(KeyboardInterrupt):
            search(folder, first)
        assert search(folder, second) == outcome
        assert sorted(first.made + second.made) == sorted(made), "a run was made twice or not at all"


@pytest.mark.slow
def test_a_killed_process_loses_only_the_run_it_was_at(whole, folder):
    _, made, outcome = whole
    script = (
        "import os, sys\n"
        "from test_study import Runner, search\n"
        "class Killed(Runner):\n"
        "    def __call__(self, arm, to_step):\n"
        "        if len(self.made) == 3: os._exit(9)\n"
        "        return super().__call__(arm, to_step)\n"
        "search(sys.argv[1], Killed())\n"
    )
    path = os.pathsep.join(str(parent) for parent in Path(__file__).parents[:2])
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert done.returncode == 9
    assert any(trial.state == optuna.trial.TrialState.RUNNING for trial in trials_of(folder))
    run = Runner()
    started = time.monotonic()
    assert search(folder, run) == outcome
    assert sorted(run.made) == sorted(made[3:]) and time.monotonic() - started < 20


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_run_that_a_killed_worker_had_not_signed_is_done_again(is_alone, whole, folder, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        search(folder, Runner(interrupt_at=3))
    with quiet_optuna():
        optuna.load_study(study_name="autolayer", storage=f"sqlite:///{folder}/study.db").ask()
    told = []

    def tell(text, who, seconds):  # then the time is up
        told.append((text % (who, seconds)).split(";")[0])
        monkeypatch.setattr(optuna_storage, "GRACE_SECONDS", -1)

    monkeypatch.setattr(optuna_storage, "GRACE_SECONDS", 10_000)
    monkeypatch.setattr(optuna_storage, "TELL_SECONDS", 0)
    monkeypatch.setattr(optuna_storage.logger, "warning", tell)
    assert search(folder, Runner(), is_alone=is_alone) == whole[2]
    assert told == ["waiting for a worker that has not signed"] * (not is_alone)


def test_best_trial_is_the_winner_and_curves_are_whole(whole):
    folder, _, outcome = whole
    with quiet_optuna():
        study = optuna.load_study(study_name="autolayer", storage=f"sqlite:///{folder}/study.db")
    best = study.best_trial
    assert best.params["layers"] == ",".join(map(str, outcome.best))
    assert best.params["learning_rate"] == pytest.approx(outcome.winner.learning_rate)
    row = next(row for row in outcome.ranking if row.layers == outcome.best)
    assert row.measured is not None
    assert best.value == pytest.approx(row.measured.gain) and best.last_step == row.measured.steps
    assert len(best.intermediate_values) > 1
    assert best.user_attrs["arm"] == f"layer {outcome.best[0]}, rate {outcome.winner.learning_rate:.3g}, seed 0"
    assert study.user_attrs["verdict"] == outcome.verdict


def test_the_dashboard_shows_the_winner_whole_curves_and_names(whole):
    dashboard = pytest.importorskip("optuna_dashboard")
    folder, made, outcome = whole
    app = dashboard.wsgi(optuna.storages.RDBStorage(f"sqlite:///{folder}/study.db"))

    def get(path):
        request = {"PATH_INFO": path}
        setup_testing_defaults(request)
        return json.loads(b"".join(app(request, lambda *status: None)))

    (study,) = get("/api/studies")["study_summaries"]
    found = get(f"/api/studies/{study['study_id']}")
    (best,) = found["best_trials"]
    arms = [{each["key"]: each["value"] for each in trial["user_attrs"]}["arm"] for trial in found["trials"]]
    assert study["study_name"] == "autolayer" and best["params"][0]["param_external_value"] == str(outcome.best[0])
    assert len(arms) == len(made) + 1 and set(arms) > {f"layer {layer}, rate 0.0001, seed 0" for layer in (3, 4, 5)}
    curve = [point["step"] for point in best["intermediate_values"]]
    assert curve == sorted({to_step for key, to_step in made if key == outcome.winner.key}) and len(curve) > 1


def test_the_standing_is_told_before_every_run(folder):
    told, run = [], Runner()
    outcome = search(folder, run, on_standing=told.append)
    assert len(told) == len(run.made) and told[0].leader == (5,) and told[0].spent == Cost()
    assert told[-1].leader == outcome.best and 0 < told[-1].probability <= 1
    assert [standing.spent.layer_tokens for standing in told] == sorted(s.spent.layer_tokens for s in told)


@pytest.mark.slow
def test_the_stock_command_line_opens_it(whole):
    folder, _, outcome = whole
    storage = f"sqlite:///{folder}/study.db"

    def optuna_cli(*arguments):
        command = [Path(sys.executable).with_name("optuna"), *arguments, "--storage", storage, "-f", "json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert [study["name"] for study in optuna_cli("studies")] == ["autolayer"]
    best = optuna_cli("best-trial", "--study-name", "autolayer")
    assert best["params"]["layers"] == ",".join(map(str, outcome.best))


def test_a_run_that_raises_is_a_failure_with_its_reason(folder):
    outcome = search(folder, Runner(fail_layer=5))
    row = next(row for row in outcome.ranking if row.layers == (5,))
    assert row.failed == "TrainingError: the gradient became nan" and row.measured is None and outcome.best != (5,)


def test_rewards_that_are_not_finite_end_the_search(folder):
    class Broken(Runner):
        def __call__(self, arm, to_step):
            result = super().__call__(arm, to_step)
            broken = arm.layers == (5,)
            return replace(result, select_rewards_I=(float("nan"),) * NUM_ITEMS) if broken else result

    with pytest.raises(ValueError, match="not finite"):
        search(folder, Broken())


@pytest.mark.slow
def test_after_total_failure_the_next_call_tries_again(whole, folder):
    def broken(arm, to_step):
        raise TrainingError("no device")

    for _ in range(2):
        with pytest.raises(SearchError, match="no device"):
            search(folder, broken)
    assert search(folder, Runner()) == whole[2]


@pytest.mark.slow
def test_workers_share_the_runs_and_agree(whole, folder):
    _, made, outcome = whole
    workers = [Runner(seconds=0.05) for _ in range(3)]
    outcomes, errors = [], []

    def work(run):
        try:
            outcomes.append(search(folder, run))
        except Exception as error:  # a thread's error would be lost
            errors.append(error)

    threads = [threading.Thread(target=work, args=(run,)) for run in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors and outcomes == [outcome] * 3
    done = [key for run in workers for key in run.made]
    assert len(done) == len(set(done)) and set(done) == set(made), "a run was made twice or not at all"
    assert sum(bool(run.made) for run in workers) > 1


def test_a_run_that_two_workers_have_enqueued_does_not_wait_for_ever(whole, folder):
    shutil.copy(whole[0] / "study.db", folder)
    storage = f"sqlite:///{folder}/study.db"
    study = open_study(storage, "autolayer")
    first = study.get_trials()[0]
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=first.params,
            distributions=first.distributions,
            user_attrs={"run": first.user_attrs["run"]},
        )
    )
    runner = Runner()
    assert search(folder, runner) == whole[2] and not runner.made
    assert all(trial.state.is_finished() for trial in study.get_trials())


def test_at_the_deadline_it_ends_with_what_it_has(whole, folder):
    outcome = search(folder, Runner(), deadline=time.monotonic())
    assert outcome.verdict == "budget_spent" and "time is up" in outcome.stop_reason
    assert outcome.winner.step == 0
    assert search(folder, Runner()) == whole[2], "with more time the same folder goes on"


def test_another_configuration_is_refused(whole):
    folder, *_ = whole
    with pytest.raises(RunFolderError, match="another seed"):
        run_search(replace(CONFIG, seed=7), CANDIDATES, BASE_I, Runner(), storage=f"sqlite:///{folder}/study.db")


def test_a_joining_worker_adopts_the_predictions_of_the_first(whole):
    folder, _, outcome = whole
    others = [replace(candidate, predicted=candidate.predicted + 1e-3) for candidate in CANDIDATES]
    with quiet_optuna():
        record = RaceStudy.open(f"sqlite:///{folder}/study.db", CONFIG, others, BASE_I)
    assert list(record.candidates) == CANDIDATES
    assert run_search(CONFIG, others, BASE_I, Runner(), storage=f"sqlite:///{folder}/study.db") == outcome


@pytest.mark.slow
def test_what_is_not_the_arms_fault_ends_the_search_and_loses_nothing(whole, folder):
    def unlucky(arm, to_step):
        if arm.layers == (5,):
            raise KeyError("a column that the reward wanted")
        return runner(arm, to_step)

    runner = Runner()
    with pytest.raises(KeyError):
        search(folder, unlucky)
    assert search(folder, Runner()) == whole[2]


@pytest.mark.slow
def test_two_configurations_do_not_share_a_storage(whole, folder):
    search(folder, Runner())
    with pytest.raises(RunFolderError, match="another signature"):
        run_search(
            replace(CONFIG, signature="other"), CANDIDATES, BASE_I, Runner(), storage=f"sqlite:///{folder}/study.db"
        )


def test_one_huge_training_reward_does_not_end_the_race(folder):
    class Outlier(Runner):
        def __call__(self, arm, to_step):
            result = super().__call__(arm, to_step)
            rewards = [0.5 + 1e12 * (len(self.made) == 2 and step == 1) for step in range(arm.step, to_step)]
            return replace(result, train_rewards_P=tuple(rewards))

    assert search(folder, Outlier()).winner.step > 0
