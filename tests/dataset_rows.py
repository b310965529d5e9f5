"""Rows of public data sets in their public formats."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hub_cache import gsm8k_rows, write_files

from autolayer.tasks.math.datasets import Source

SQUARES = (("3\n", "9\n"), ("12", "144"))


SQUARE_STDIN = [{"type": "stdin_stdout", "input": n, "output": square} for n, square in SQUARES]


DEEPCODER_ROWS = {
    "primeintellect": {"problem": "Square it.", "tests": json.dumps(SQUARE_STDIN)},
    "primeintellect, a function": {
        "problem": "Square it.",
        "tests": json.dumps([{"type": "function_call", "fn_name": "square", "input": [3], "output": [9]}]),
    },
    "taco": {"problem": "Square it.", "tests": json.dumps({"inputs": ["3\n"], "outputs": ["9\n"]})},
    "taco, lines": {"problem": "Square it.", "tests": json.dumps({"inputs": [["3", "x"]], "outputs": [["9"]]})},
    "taco, a function": {
        "problem": "Square it.",
        "tests": json.dumps({"fn_name": "square", "inputs": [[3]], "outputs": [[9]]}),
    },
    "lcbv5": {"problem": "Square it.", "tests": json.dumps([{"testtype": "stdin", "input": "3", "output": "9"}])},
    "lcbv5, a function": {
        "problem": "Square it.",
        "starter_code": "class Solution:\n    def square(self, n: int) -> int:\n        ",
        "tests": json.dumps(
            [{"testtype": "functional", "input": "3", "output": "9", "metadata": {"func_name": "square"}}]
        ),
    },
}


MBPP_ROWS = {
    "full": {"text": "Write a function to square.", "code": "", "test_list": ["assert square(3) == 9"],
             "test_setup_code": "", "challenge_test_list": []},
    "sanitized": {"prompt": "Write a function to square.", "code": "", "test_imports": ["import math"],
                  "test_list": ["assert math.isclose(square(3), 9)", "assert set(square(n) for n in (1, -1)) == {1}"]},
}  # fmt: skip


HUMANEVAL_ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef helper(n):\n    return n\n\n\ndef square(n: int) -> int:\n    """Squares."""\n',
    "entry_point": "square",
    "canonical_solution": "    return n * n\n",
    "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate(3) == helper(9)\n"
    "    for n in range(5):\n        assert abs(candidate(n) - n**2) < 1e-6\n",
}


def solved(number: int, kind: str = "") -> dict[str, str]:
    return {
        "problem": f"What is {number}+{number}{kind}?",
        "solution": rf"First \boxed{{0}}, no: $\boxed{{{2 * number}}}$.",
        "level": "Level 1",
        "type": "Algebra",
    }


def skywork(number: int, answers: Sequence[str]) -> dict[str, Any]:
    return {
        "data_source": "train-math",
        "prompt": [{"role": "user", "content": f"Find {number}+{number}."}],
        "reward_model": {"ground_truth": json.dumps(list(answers)), "style": "rule"},
    }


def answered(number: int, name: str = "problem") -> dict[str, str]:
    return {name: f"Double {number}?", "solution": "s", "answer": str(2 * number)}


TRAINING_ROWS: dict[str, list[dict[str, Any]]] = {
    "math": [solved(number) for number in range(40)],
    "numina": [{**solved(number), "source": "s"} for number in range(30)]
    + [{"problem": "Prove that 1=1.", "solution": r"\boxed{1}", "source": "s"}]
    + [{"problem": "Pick. A. one B. two C. three", "solution": r"\boxed{2}", "source": "s"}]
    + [{"problem": "Which option?", "solution": r"\boxed{\text{(B)}}", "source": "s"}]
    + [{"problem": "How many?", "solution": "It is 4.", "source": "s"}],
    "deepscaler": [answered(number) for number in range(40)] + [{"problem": "Empty?", "solution": "", "answer": ""}],
    "skywork": [skywork(number, [str(2 * number)]) for number in range(40)] + [skywork(99, ["1", "2"])],
}
"""Each in its public format, with what has to be left out of it last."""


SUITE_ROWS: dict[str, list[dict[str, Any]]] = {
    "math500": [{**answered(number), "unique_id": "u"} for number in range(1000, 1004)],
    "gsm8k": gsm8k_rows(6),
    "olympiad": [
        {"question": "Name 2.", "final_answer": ["$2$"], "context": None, "is_multiple_answer": False},
        {"question": "Name both.", "final_answer": ["1", "2"], "context": "Let x be 1.", "is_multiple_answer": True},
    ],
    "amc": [{"question": f"AMC {number}?", "answer": f"{number}.0"} for number in range(3)],
}


def folder_of(copies: Path, source: Source, rows: Sequence[Mapping[str, Any]]) -> None:
    """A copy of a public data set below FOLDER/OWNER/NAME."""
    share = len(rows) // len(source.configurations)
    for place, configuration in enumerate(source.configurations):
        last = place == len(source.configurations) - 1
        part = rows[place * share : None if last else (place + 1) * share]
        write_files(copies / source.repository / (configuration or "data"), {source.split: part})
