r"""Final answers: where a text has one, and whether it is right."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from autolayer.core.errors import RewardError
from autolayer.tasks.math import answer_pool, answers
from autolayer.tasks.math.answers import final_answer, judge_answers, plain_number

HANGS = r"\sum_{n=1}^{1000000000} n!"


@pytest.fixture
def _fresh_pool(monkeypatch: pytest.MonkeyPatch):
    """A pool of one thread, whose worker has a short time limit."""
    monkeypatch.setattr(answer_pool, "TIME_LIMIT", 0.7)
    with ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr(answer_pool, "_threads", lambda process: threads)
        yield threads


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{42\\}", r"42\\"),
        (r"\boxed{42", None),
        (r"\boxed{}", None),
        (r"\boxed{5}. I was asked to put it in \boxed{}.", "5"),
        (r"It is \boxed 5.", "5"),
        (r"It is $\boxed {5}$", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed{1} or \boxed{42", None),
        ("The answer is 9!", "9"),
        ("She has 3+4 apples.\n#### 7\n", "7"),
        ("#### $1,234", "1,234"),
        ("#### ", None),
        ("So the answer is 0.5. Done.", "0.5"),
        ("The final answer is: **12**.\nMore", "12"),
        ("Final answer: 3", "3"),
        ("the answer is", None),
        ("I get 42", None),
        ("", None),
        (r"<think>\boxed{1}</think> It is \boxed{2}", "2"),
        (r"<think>\boxed{1}", None),
        (r"<think>\boxed{1}</think> hm", None),
    ],
)
def test_final_answer(text: str, expected: str | None) -> None:
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,234.50", "1234.5"), (r"\$42", "42"), ("-3.", "-3"), (".5", "0.5"), ("1{,}000", "1000"), ("007", "7")],
)
def test_plain_numbers(text: str, value: str) -> None:
    assert plain_number(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", ".", "-", "1,23", "1/2", "42 apples", "50%", "1e5", "x"])
def test_no_plain_numbers(text: str) -> None:
    assert plain_number(text) is None


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("18 dollars", "18"), ("72 clips", "72"), ("18 dollars per day", "18"), ("5 apples.", "5"),
        ("42 (apples)", "42"), (r"\text{18 dollars}", "18"), (r"18\text{ dollars}", "18"), (r"1\,000", "1000"),
        (r"0.5\%", "0.5"), ("50%", "50"), ("5€", "5"), (r"10~\text{cm}", "10"),
        ("$1,234 dollars", "1234"),
    ],
)  # fmt: skip
def test_a_unit_does_not_make_it_wrong(answer: str, gold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "compare", lambda pairs: ["different"] * len(pairs))
    assert judge_answers([answer], [gold]) == ["equal"]
    assert judge_answers([answer], [f"{gold}1"]) == ["different"]


@pytest.mark.parametrize("text", ["3 million", "2 or 3", "5 x", "2 dozen eggs", "3 hours 20 minutes", "12 e", "x = 5"])
def test_what_is_no_unit_stays(text: str) -> None:
    assert answers.without_unit(text) == text


def test_plain_numbers_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "compare", None)
    verdicts = judge_answers(["42", "42.0", "41", None, "9" * 400 + "x"], ["42"] * 5)
    assert verdicts == ["equal", "equal", "different", "no answer", "too long"]


def test_math_verify_decides_the_rest() -> None:
    right = [
        (r"\frac{1}{2}", "0.5"), (r"42 \text{ apples}", "42"), ("(x+1)^2", "x^2+2x+1"), (r"2^{10}", "1024"),
        (r"50\%", "50"), (r"5\text{ cm}^2", "5"), ("[1, 2)", "[1,2)"), (r"\{1, 2\}", r"\{2, 1\}"),
        ("(1, 2)", "(1,2)"), (r"\text{A}", "A"), ("x=5", "5"), (r"\sqrt{8}", r"2\sqrt{2}"),
        ("90°", "90"), (r"90^\circ", "90°"), (r"\varnothing", r"\emptyset"),
    ]  # fmt: skip
    wrong = [
        (r"\frac{1}{3}", "0.5"), ("apples", "42"), ("x+1", "x^2+2x+1"), (r"\frac{1}{", "0.5"), ("[1,2]", "(1,2)"),
        ("3 or 4", "3"), ("3 million", "3"), ("(2, 1)", "(1,2)"), (r"\text{B}", "A"), ("2 hours 30 minutes", "2"),
    ]  # fmt: skip
    found = [judge_answers([answer], [gold])[0] == "equal" for answer, gold in right + wrong]
    assert found == [True] * len(right) + [False] * len(wrong)


def test_it_works_in_a_thread() -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(judge_answers([r"\frac{2}{4}"], ["0.5"])))
    thread.start()
    thread.join()
    assert found == ["equal"]


def test_a_right_answer_that_is_no_mathematics_is_an_error() -> None:
    with pytest.raises(RewardError, match="correct the 'answer' column"):
        judge_answers([r"\frac{1}{2}"], [""])


def test_a_hanging_answer_is_killed_counted_and_the_pool_goes_on(
    _fresh_pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    assert judge_answers([HANGS, r"\frac{1}{2}"], ["42", "0.5"]) == ["timeout", "equal"]
    assert time.monotonic() - started < 60
    assert "counted as incorrect" in caplog.text and "timeout" in caplog.text


def test_many_hanging_answers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "compare", lambda pairs: ["timeout"] * len(pairs))
    with pytest.raises(RewardError, match="8 of 8 answers could not be judged"):
        judge_answers([f"{HANGS}+{n}" for n in range(8)], ["42"] * 8)


def test_a_worker_that_died_is_replaced(_fresh_pool: ThreadPoolExecutor) -> None:
    assert judge_answers([r"\frac{1}{2}"], ["0.5"])[0] == "equal"
    process = _fresh_pool.submit(lambda: answer_pool._own.worker).result().process
    process.kill()
    process.wait()
    assert judge_answers([r"\frac{1}{4}"], ["0.25"]) == ["equal"]


def test_a_worker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('no sympy here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RewardError, match="no sympy here.*math-verify"):
        answer_pool.Worker()


def test_a_worker_whose_caller_is_gone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_pool, "TIME_LIMIT", 0.5)
    process = answer_pool.Worker().process
    assert process.stdin is not None
    process.stdin.write(json.dumps({"answer": HANGS, "gold": "42"}) + "\n")
    process.stdin.close()
    assert process.wait(60) == -signal.SIGALRM


def test_the_workers_see_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    worker = answer_pool.Worker()
    assert b"SECRET_TOKEN" not in Path(f"/proc/{worker.process.pid}/environ").read_bytes()


def test_a_script_without_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from autolayer.tasks.math.answers import judge_answers\nprint(judge_answers(['1/2'], ['0.5'])[0])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("equal\n", "")
