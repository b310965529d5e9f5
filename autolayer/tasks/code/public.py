"""Reads public collections of programming problems, and turns each row into a question and a `problem`.

DeepCoder (agentica-org/DeepCoder-Preview-Dataset) has its tests as JSON in three dialects: TACO's, PrimeIntellect's
and LiveCodeBench's. MBPP (Austin et al. 2021) and HumanEval (Chen et al. 2021) have asserts. Rows whose tests cannot be
used here are left out and counted.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from autolayer.core.errors import DataError
from autolayer.tasks.code.problems import parse_problem
from autolayer.tasks.hub import read_hub

logger = logging.getLogger(__name__)

DEEPCODER, MBPP = "agentica-org/DeepCoder-Preview-Dataset", "google-research-datasets/mbpp"
HUMANEVAL = "openai/openai_humaneval"
DEEPCODER_PARTS = ("primeintellect", "taco", "lcbv5")
MAX_TESTS = 20  # kept of a DeepCoder problem: those with the longest inputs, which are the hardest
MAX_UNUSABLE = 0.2  # as a share of the rows of a collection


class Question(NamedTuple):
    """A problem as the model sees it, and its tests."""

    text: str
    """Description of the program; '' if the prefix says all."""
    problem: str
    """JSON, as in `problems`."""
    prefix: str = ""


def deepcoder() -> list[Question]:
    """Returns the training problems of DeepCoder."""
    found = []
    for part in DEEPCODER_PARTS:
        rows = read_hub(DEEPCODER, part, {"train": {"problem", "tests"}})["train"]
        found += usable(f"{DEEPCODER}, {part}", rows, deepcoder_question)
    return found


def mbpp(configuration: str, splits: Sequence[str]) -> list[Question]:
    """Returns splits of MBPP, in its 'full' or its 'sanitized' configuration."""
    columns = {"text", "test_list"} if configuration == "full" else {"prompt", "test_list"}
    public = read_hub(MBPP, configuration, {split: columns for split in splits})
    return [question for split in splits for question in usable(f"{MBPP}, {split}", public[split], mbpp_question)]


def humaneval() -> list[Question]:
    """Returns HumanEval, which has one split."""
    rows = read_hub(HUMANEVAL, None, {"test": {"prompt", "test", "entry_point"}})["test"]
    return usable(HUMANEVAL, rows, humaneval_question)


def usable(
    name: str, rows: Sequence[Mapping[str, Any]], make: Callable[[Mapping[str, Any]], Question]
) -> list[Question]:
    """Returns the questions of the rows that can be judged, and refuses if more than `MAX_UNUSABLE` of them cannot."""
    found, problems = [], []
    for row in rows:
        try:
            question = make(row)
            parse_problem(question.problem)
            found.append(question)
        except DataError as error:
            problems.append(str(error))
        except (TypeError, ValueError, KeyError, AttributeError) as error:  # a malformed row
            problems.append(f"a row is malformed ({type(error).__name__}: {error}).")
    if len(problems) > MAX_UNUSABLE * len(rows):
        raise DataError(
            f"{len(problems)} of {len(rows)} problems of {name} cannot be used, the first because {problems[0]} This "
            "is not the data set that is known under that name: load it again."
        )
    if problems:
        logger.warning(
            "%s: %d of %d problems are left out, the first because %s", name, len(problems), len(rows), problems[0]
        )
    return found


def deepcoder_question(row: Mapping[str, Any]) -> Question:
    """Reads a row of DeepCoder, in any of its dialects."""
    tests, what = _loaded(row["tests"], "tests"), repr(str(row["problem"])[:80])
    if isinstance(tests, Mapping):
        names = {tests.get("fn_name")}
        pairs = list(zip(tests.get("inputs") or [], tests.get("outputs") or [], strict=False))
    elif isinstance(tests, list) and all(isinstance(test, Mapping) for test in tests):
        names = {_function_of(test, row) for test in tests}
        pairs = [(test.get("input"), _output_of(test)) for test in tests]
    else:
        raise DataError(f"the tests of {what} are of an unknown kind: {str(tests)[:80]}.")
    if not pairs:
        raise DataError(f"{what} has no tests.")
    if len(names) > 1:
        raise DataError(f"the tests of {what} are of several kinds: {sorted(map(str, names))}.")
    pairs = sorted(pairs, key=lambda pair: -len(str(pair[0])))[:MAX_TESTS]
    (name,) = names
    if name is None:
        form = {"inputs": [_text(i) for i, _ in pairs], "outputs": [_text(o) for _, o in pairs]}
        task = "The program reads standard input and prints its answer."
    else:
        form = {"fn_name": name, "inputs": [_arguments(i) for i, _ in pairs], "outputs": [o for _, o in pairs]}
        # LiveCodeBench's outputs are as they are, the others' in a list of one.
        form["wrapped"] = isinstance(tests, Mapping) or not any(map(_is_json, tests))
        task = f"Write the function `{name}`."
    if starter := (row.get("starter_code") or "").strip():
        task = f"Begin with this:\n\n{starter}"
    return Question(f"{str(row['problem']).strip()}\n\n{task}", json.dumps(form))


def mbpp_question(row: Mapping[str, Any]) -> Question:
    """Reads a row of MBPP. The question shows the first test, since only the tests tell the function's name."""
    text, tests = row.get("prompt") or row.get("text") or "", list(row["test_list"])
    setup = "\n".join([*(row.get("test_imports") or []), row.get("test_setup_code") or ""]).strip()
    form = {"tests": tests, "setup": setup}
    example = tests[0] if tests else ""
    return Question(f"{text.strip()}\nYour code should pass tests such as this one:\n\n{example}", json.dumps(form))


def humaneval_question(row: Mapping[str, Any]) -> Question:
    """Reads a row of HumanEval. The tests use helpers of the prompt, not the program's versions of them."""
    test = f"{row['test']}\n\ncheck({row['entry_point']})\n"
    form = {"tests": [test], "entry_point": row["entry_point"], "setup": row["prompt"], "prefix": row["prompt"]}
    return Question("", json.dumps(form), row["prompt"])


def _loaded(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise DataError(f"the {what} are not valid JSON ({error}): {value[:80]!r}.") from None


def _function_of(test: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
    """Returns the name of the function that a test calls, or None for standard input."""
    kind = str(test.get("testtype") or test.get("type") or "stdin")
    if kind.startswith("stdin"):
        return None
    for place in (test.get("metadata"), row.get("metadata")):
        metadata = _loaded(place, "metadata") if place else None
        if isinstance(metadata, Mapping) and metadata.get("func_name"):
            return str(metadata["func_name"])
    if not test.get("fn_name"):
        raise DataError(f"a test of kind {kind} does not say which function it calls: {str(test)[:80]}.")
    return str(test["fn_name"])


def _is_json(test: Mapping[str, Any]) -> bool:
    """Returns True for LiveCodeBench, which writes values as JSON."""
    return test.get("testtype") == "functional"


def _output_of(test: Mapping[str, Any]) -> Any:
    return _value(test.get("output")) if _is_json(test) else test.get("output")


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _arguments(value: Any) -> list[Any]:
    """Returns the arguments: LiveCodeBench has one in each line, as JSON, and the others have a list."""
    return [_value(line) for line in value.split("\n") if line.strip()] if isinstance(value, str) else list(value)


def _value(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return value
