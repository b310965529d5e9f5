"""`reasoning-gym:NAME`: generated offline, scored by the data set itself."""

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import reasoning_gym as gym

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, DataError, RewardError, UnknownNameError
from autolayer.tasks import check_name, load_task, reasoning_gym
from autolayer.tasks.math import answer_pool
from autolayer.tasks.rewards import text_of

NAMES = ("chain_sum", "leg_counting", "spell_backward", "basic_arithmetic", "gcd", "calendar_arithmetic", "maze")
SIZES = {"train": 2048, "probe": 256, "select": 256, "eval": 512}


def load(name: str, chat: bool = False):
    return load_task(Config(model="m", task=f"reasoning-gym:{name}"), chat=chat)


def oracle(name: str) -> dict[str, str]:
    """Right answers by question."""
    dataset = gym.create_dataset(name, size=6144, seed=reasoning_gym.SEED)
    return {dataset[i]["question"].strip(): dataset[i]["answer"] for i in range(900)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_is_a_task(name: str) -> None:
    task = load(name)
    assert {split: len(rows) for split, rows in task.splits.items()} == SIZES and task.name == f"reasoning-gym:{name}"
    questions = [row["prompt"] for rows in task.splits.values() for row in rows]
    assert len(set(questions)) == len(questions), "every question once"
    rows = task.splits["train"][:12]
    answers = oracle(name)
    right = [answers[row["prompt"].split("Question: ", 1)[1].removesuffix("\nAnswer:")] for row in rows]
    assert (
        task.score(rows, [f"So <answer>0</answer>, no: <answer> {answer} </answer>." for answer in right]) == [1.0] * 12
    )
    assert max(task.score(rows, ["<answer>no such thing</answer>"] * 12)) < 1
    assert task.score(rows, right) == [0.0] * 12, "an answer without its tags is none"
    assert task.is_well_formed is not None
    assert task.is_well_formed("<answer>1</answer>") and not task.is_well_formed("<answer>1")
    assert not task.is_well_formed("1\nQuestion: next? <answer>1</answer>"), "that answers another question"


@pytest.mark.slow
def test_it_is_the_same_in_every_process() -> None:
    code = (
        "from autolayer.core.config import Config; from autolayer.tasks import load_task\n"
        "task = load_task(Config(model='m', task='reasoning-gym:chain_sum'), chat=False)\n"
        "print(task.splits['eval'][7]['prompt'][-40:].encode())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(load("chain_sum").splits["eval"][7]["prompt"][-40:].encode())


def test_a_chat_model_gets_the_same_questions_as_messages() -> None:
    plain, chat = load("gcd"), load("gcd", chat=True)
    row = chat.splits["probe"][3]
    assert chat.is_chat and row["entry"] == plain.splits["probe"][3]["entry"]
    assert (
        "<answer>" in text_of(row["prompt"])
        and text_of(row["prompt"]).split("\n\n")[0] in (plain.splits["probe"][3]["prompt"])
    )
    assert chat.score([row], ["<answer>-1</answer>"]) == [0.0]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="reasoning-gym data set 'chainsum'. Did you mean 'chain_sum'"):
        check_name(Config(model="m", task="reasoning-gym:chainsum"))
    with pytest.raises(UnknownNameError, match="reasoning-gym:NAME"):
        check_name(Config(model="m", task="reasoninggym"))


def test_without_the_extra_the_pip_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "autolayer\[reasoning-gym\]"'):
        check_name(Config(model="m", task="reasoning-gym:chain_sum"))


def test_too_few_questions_and_what_cannot_be_made_are_refused() -> None:
    with pytest.raises(DataError, match="'coin_flip' has .* different questions among 6144, too few"):
        load("coin_flip")
    with pytest.raises(DataError, match="cannot make 'composite' with its default settings"):
        load("composite")


def test_a_scorer_that_fails_scores_nothing_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """prime_factorization reads numbers only, and raises on anything else."""
    task, metrics = load("prime_factorization"), {}
    reasoning_gym.unscored.clear()
    rows = task.splits["eval"][:4]
    reward: Any = task.reward
    found = reward(
        prompts=[row["prompt"] for row in rows], completions=["<answer>two</answer>", "", "no", "<answer></answer>"],
        completion_ids=[], entry=[row["entry"] for row in rows], log_metric=metrics.__setitem__,
    )  # fmt: skip
    assert found == [0.0] * 4 and metrics == {"answers/unjudged": 0.25}
    assert reasoning_gym.unscored == {"error": 1} and "1 answers score 0 because scoring failed" in caplog.text


def test_many_killed_answers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late:
        def compare(self, pairs: list) -> list[str]:
            return ["timeout"] * len(pairs)

    task = load("chain_sum")
    monkeypatch.setattr(answer_pool, "pool", lambda *names: Late())
    with pytest.raises(RewardError, match="8 of 8 answers could not be scored"):
        task.score(task.splits["eval"][:8], ["<answer>1</answer>"] * 8)


@pytest.mark.slow
def test_an_answer_that_hangs_its_scorer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """countdown hands the answer to sympy, which would compute this for ever."""
    monkeypatch.setattr(answer_pool, "TIME_LIMIT", 1.0)
    pool = answer_pool.Pool(1, "autolayer.tasks.reasoning_gym")
    monkeypatch.setattr(answer_pool, "pool", lambda *names: pool)
    reasoning_gym.unscored.clear()
    entry = gym.create_dataset("countdown", size=1, seed=0)[0]
    gold = reasoning_gym._packed("countdown", entry)
    try:
        assert reasoning_gym._score(["9**9**9**9", entry["answer"]], [gold, gold], None) == [0.0, 1.0]
        assert reasoning_gym.unscored.total() == 1 and reasoning_gym.unscored.keys() <= {"timeout", "crash"}
    finally:
        pool.close()
