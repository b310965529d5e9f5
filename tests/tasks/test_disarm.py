"""Scorers that would run what a model wrote, and do not."""

import os
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym as gym

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError
from autolayer.tasks import check_name, reasoning_gym
from autolayer.tasks.math import answer_pool, disarm

COUNTDOWN = [
    "__import__('os').system('touch {file}') + 1",
    "open('{file}', 'w').write('x')",
    "exec(chr(49))",
    "(exec)(chr(49))",
    "().__class__.__base__.__subclasses__()",
    "globals()",
    "x.as_poly()",
    "[x for x in (1, 2)]",
    "lambda: 1",
    "exit()",
]
"""sympy's parse_expr would evaluate these, with all builtins."""

N_QUEENS = [
    "entry['metadata']['valid_answers'][0].split(chr(10))",
    "[[open('{file}', 'w')]]",
    "entry",
    "__import__('os').environ",
]
"""`eval` inside the scorer, where the right answers are within reach."""


@pytest.fixture(scope="module")
def pool():
    made = answer_pool.Pool(1, "autolayer.tasks.reasoning_gym")
    yield made
    made.close()


def score(pool: answer_pool.Pool, name: str, answer: str) -> tuple[str, str]:
    """What an attack earns, and a right answer after it in the same process."""
    entry = gym.create_dataset(name, size=1, seed=0)[0]
    gold = reasoning_gym._packed(name, entry)
    first, second = pool.compare([(answer, gold), (entry["answer"], gold)])
    return first, second


@pytest.mark.parametrize(
    ("name", "attack"), [*(("countdown", a) for a in COUNTDOWN), *(("n_queens", a) for a in N_QUEENS)]
)
def test_an_answer_that_is_a_program_does_nothing(
    name: str, attack: str, pool: answer_pool.Pool, tmp_path: Path
) -> None:
    earned, right = score(pool, name, attack.replace("{file}", str(tmp_path / "file")))
    assert earned == "error" or float(earned) <= 0.05, "a scorer's least for any attempt"
    assert float(right) == 1.0 and not list(tmp_path.iterdir())


def test_no_answer_forges_the_next_ones(pool: answer_pool.Pool) -> None:
    forge = (
        "exec('import reasoning_gym.games.countdown as c; c.CountdownDataset.score_answer = lambda *a: 1.0') or 1",
        "[c for c in ().__class__.__base__.__subclasses__() if 'Countdown' in str(c)][0]",
    )
    for attack in forge:
        score(pool, "countdown", attack)
    assert float(score(pool, "countdown", "1")[0]) < 0.2


def test_the_control_does_run_them() -> None:
    """Without disarming, the same scorer evaluates what it is given: else the tests above would show nothing."""
    entry = gym.create_dataset("countdown", size=1, seed=0)[0]
    os.environ.pop("AUTOLAYER_WAS_HERE", None)
    attack = "__import__('os').environ.__setitem__('AUTOLAYER_WAS_HERE', '1') or 1"
    gym.create_dataset("countdown", size=1, seed=0).score_answer(attack, entry)
    assert os.environ.pop("AUTOLAYER_WAS_HERE", None) == "1"


@pytest.mark.parametrize(
    "name", ["countdown", "polynomial_multiplication", "simple_integration", "bitwise_arithmetic", "spiral_matrix"]
)
def test_right_answers_are_still_right(name: str, pool: answer_pool.Pool) -> None:
    dataset = gym.create_dataset(name, size=8, seed=1)
    pairs = [(dataset[i]["answer"], reasoning_gym._packed(name, dataset[i])) for i in range(8)]
    assert list(map(float, pool.compare(pairs))) == [1.0] * 8


@pytest.mark.parametrize("text", ["3*(4 + x)**2 - 1/2", "2*sin(x)/3 + C", "-.5e-3 + x1", "log(abs(x)) ^ 2", " 5! "])
def test_arithmetic_passes(text: str) -> None:
    assert disarm.check_expression(text) == text.strip()


@pytest.mark.parametrize("text", ["x.y", "1.real", "'a'", "a_b", "f[0]", "x; y", "x: 1", "Integral(x, x)", "é", "@x"])
def test_everything_else_does_not(text: str) -> None:
    with pytest.raises(ValueError, match="not arithmetic"):
        disarm.check_expression(text)


@pytest.mark.parametrize(("text", "value"), [("[[1, 'a'], (2, {})]", [[1, "a"], (2, {})]), ("(0x1f ^ 3) - 2", 26)])
def test_eval_reads_literals_and_arithmetic(text: str, value: Any) -> None:
    assert disarm._eval(text) == value


def test_the_workers_see_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    worker = answer_pool.Worker()
    try:
        environment = Path(f"/proc/{worker._process.pid}/environ")
        if not environment.exists():
            pytest.skip("only Linux shows the environment of a process")
        assert b"SECRET_TOKEN" not in environment.read_bytes()
    finally:
        worker.close()


def test_a_data_set_that_runs_programs_to_make_its_questions_is_refused() -> None:
    with pytest.raises(ConfigError, match="codeio is refused .*unsandboxed.*take another"):
        check_name(Config(model="m", task="reasoning-gym:codeio"))
