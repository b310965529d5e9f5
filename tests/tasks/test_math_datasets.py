r"""`math:NAME`: the public formats, decontamination, local copies, and what is refused.

Every data set is a stand-in in its public format, in an offline cache or in a folder of copies.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dataset_rows import SUITE_ROWS, TRAINING_ROWS, answered, folder_of, skywork, solved
from hub_cache import make_dataset_cache, write_files

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, DataError
from autolayer.models.names import EMBEDDED
from autolayer.tasks import TASKS, check_task_name, load_task
from autolayer.tasks.hub import local_copies, read_hub
from autolayer.tasks.math import formats, public
from autolayer.tasks.math.answers import final_answer
from autolayer.tasks.math.datasets import EVAL_DECODING, MATH_SUBJECTS, SUITES, TRAINING
from autolayer.tasks.math.formats import MathProblem

LOAD = """
import json, sys
from autolayer.core.config import Config
from autolayer.core.errors import AutolayerError
from autolayer.tasks import load_task
try:
    task = load_task(Config(model="m", task=sys.argv[1]), chat=False)
except AutolayerError as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps([{name: list(rows) for name, rows in task.splits.items()}, list(task.suites)]))
"""


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of every data set of the tables."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, rows in TRAINING_ROWS.items():
        folder_of(tmp_path / "copies", TRAINING[name], rows)
    for name, rows in SUITE_ROWS.items():
        folder_of(tmp_path / "copies", SUITES[name], rows)
    return tmp_path / "copies"


def load(copies: Path, name: str, chat: bool = False):
    return load_task(Config(model="m", task=name, data=str(copies)), chat=chat)


@pytest.mark.parametrize("name", TRAINING_ROWS)
def test_a_public_format_becomes_a_task(copies: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    task = load(copies, f"math:{name}")
    rows = [row for split in ("train", "probe", "select") for row in task.splits[split]]
    wanted = 30 if name == "numina" else 40
    assert len(rows) == wanted and task.name == f"math:{name}"
    assert len(task.splits["probe"]) == len(task.splits["select"]) == wanted // 10
    for row in rows:  # every stand-in asks for the double of the first number in it
        number = int("".join(c if c.isdigit() else " " for c in row["prompt"].split("Question:")[1]).split()[0])
        assert row["answer"] == str(2 * number)
        assert r"\boxed{}" in row["prompt"] and row["prompt"].endswith("\nAnswer:")
    assert list(task.suites or ()) == ["math500"] * 4 + ["gsm8k"] * 6 + ["olympiad"] * 2 + ["amc"] * 3
    assert (task.samples, task.eval_decoding, task.num_eval) == ({"amc": 32}, EVAL_DECODING, 15)
    answers = [row["answer"] for row in task.splits["eval"]]
    assert set(answers[10:]) == {"2", "1, 2", "0.0", "1.0", "2.0"}
    assert task.max_new_tokens == 3072
    left_out = {"numina": ("1 proofs", "2 with multiple choice", "1 without an answer"), "math": (),
                "deepscaler": ("1 without an answer",), "skywork": ("1 with several right answers",)}  # fmt: skip
    assert all(words in caplog.text for words in left_out[name])


def test_the_reward_reads_the_answer_of_every_suite(copies: Path) -> None:
    task = load(copies, "math:math")
    rows = task.splits["eval"]
    right = [rf"so \boxed{{{row['answer']}}}" for row in rows]
    assert task.score(rows, right) == [1.0] * len(rows)
    assert task.score(rows, [r"so \boxed{77}"] * len(rows)) == [0.0] * len(rows)
    assert task.score(rows[-5:-3], [r"\boxed{2, 1}"] * 2) in ([0.0, 1.0], [1.0, 0.0]), "several answers in any order"


def test_base_and_chat_models_get_the_same_problems(copies: Path) -> None:
    plain, chat = load(copies, "math:numina"), load(copies, "math:numina", chat=True)
    for split, rows in chat.splits.items():
        assert [row["answer"] for row in rows] == [row["answer"] for row in plain.splits[split]]
        assert all(row["prompt"][0]["role"] == "user" for row in rows)
    assert chat.is_chat and not plain.is_chat


def test_math_reads_all_its_subjects(copies: Path) -> None:
    assert len(MATH_SUBJECTS) == 7
    assert {path.name for path in (copies / "EleutherAI/hendrycks_math").iterdir()} == set(MATH_SUBJECTS)


def test_nothing_of_the_evaluation_is_left_in_training(copies: Path, caplog: pytest.LogCaptureFixture) -> None:
    leaked = [answered(1000), {**answered(1001), "problem": "double  $1001$ ."}]
    twice = [answered(1)]
    folder_of(copies, TRAINING["deepscaler"], [*TRAINING_ROWS["deepscaler"], *leaked, *twice])
    task = load(copies, "math:deepscaler")
    prompts = [row["prompt"] for split in ("train", "probe", "select") for row in task.splits[split]]
    assert len(prompts) == 40 and not any("1000" in prompt or "1001" in prompt for prompt in prompts)
    assert "2 in the evaluation as well" in caplog.text and "1 there twice" in caplog.text


def test_answers_that_nothing_can_be_equal_to_are_left_out(copies: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [{"problem": f"Name no. {number}?", "solution": "s", "answer": r"\text{}"} for number in range(3)]
    folder_of(copies, TRAINING["deepscaler"], [*TRAINING_ROWS["deepscaler"], *bad])
    task = load(copies, "math:deepscaler")
    assert "3 with an answer that math-verify cannot check" in caplog.text
    assert not any(row["answer"] == r"\text{}" for rows in task.splits.values() for row in rows)


def test_only_so_many_problems_are_taken_of_a_large_set(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = load(copies, "math:math").splits
    monkeypatch.setattr(public, "MAX_PROBLEMS", 20)
    some = load(copies, "math:math").splits
    prompts = [
        {row["prompt"] for s in ("train", "probe", "select") for row in splits[s]} for splits in (everything, some)
    ]
    assert len(prompts[1]) == 20 and prompts[1] < prompts[0]


@pytest.mark.parametrize(
    ("read", "row", "found"),
    [
        (formats.gsm8k, {"question": "q", "answer": "a\n#### $1,234"}, MathProblem("q", "$1234")),
        (formats.solved, solved(3), MathProblem("What is 3+3?", "6")),
        (formats.solved, {"problem": "q", "solution": r"\boxed{\frac12}, \boxed{\{1\}}"}, MathProblem("q", r"\{1\}")),
        (formats.solved, {"problem": "q", "solution": "none"}, "without an answer"),
        (formats.solved, {"problem": "q", "solution": rf"\boxed{{{'9' * 400}}}"}, "with an answer of more than 300"),
        (formats.solved, {"problem": " ", "solution": r"\boxed{1}"}, "without a question"),
        (formats.numina, {"problem": "Show that x.", "solution": r"\boxed{1}"}, "proofs"),
        (formats.numina, {"problem": r"$\textbf{(A)}\ 1 \qquad\textbf{(B)}\ 2\qquad\textbf{(C)}\ 3$",
                          "solution": r"\boxed{1}"}, "with multiple choice"),
        (formats.numina, {"problem": "q", "solution": r"\boxed{AC}"}, "with multiple choice"),
        (formats.numina, {"problem": "Which?\nA: 1\nB: 2\nC: 3", "solution": r"\boxed{1}"}, "with multiple choice"),
        (formats.numina, {"problem": "Let A: 1, B: 2, C: 3 be masses. Sum?", "solution": r"\boxed 6"},
         MathProblem("Let A: 1, B: 2, C: 3 be masses. Sum?", "6")),
        (formats.numina, {"problem": "Points A, B, C lie on a line.", "solution": r"\boxed{AB+1}"},
         MathProblem("Points A, B, C lie on a line.", "AB+1")),
        (formats.answered, {"question": "q", "answer": 27.0}, MathProblem("q", "27.0")),
        (formats.olympiad, {"question": "q", "final_answer": ["$1$ and $2$"]}, MathProblem("q", "$1$ and $2$")),
        (formats.olympiad, {"question": "q", "final_answer": [" $x$ "], "context": "c"}, MathProblem("c\n\nq", "x")),
        (formats.skywork, skywork(1, ["2"]), MathProblem("Find 1+1.", "2")),
        (formats.skywork, {**skywork(1, []), "reward_model": {"ground_truth": "34"}}, MathProblem("Find 1+1.", "34")),
        (formats.skywork, {"prompt": [{"content": "Find x. Let's think step by step and output the final answer "
                                                  r"within \boxed{}."}], "reward_model": {"ground_truth": '["3"]'}},
         MathProblem("Find x.", "3")),
        (formats.skywork, skywork(1, ["1", "2"]), "with several right answers"),
    ],
)  # fmt: skip
def test_where_a_row_has_its_answer(read: Any, row: Mapping[str, Any], found: MathProblem | str) -> None:
    got = read(row)
    assert got == found if isinstance(found, MathProblem) else got.startswith(found)


def test_the_right_answer_answers() -> None:
    assert final_answer(solved(4)["solution"]) == "8"


@pytest.mark.parametrize("layout", ["datasets", "hub"])
def test_the_caches_serve_every_set(tmp_path: Path, layout: str) -> None:
    sources = [(TRAINING["deepscaler"], TRAINING_ROWS["deepscaler"])]
    sources += [(SUITES[name], rows) for name, rows in SUITE_ROWS.items()]
    for source, rows in sources:
        make_dataset_cache(tmp_path, source.repository, source.configurations[0], {source.split: rows}, layout=layout)
    splits, suites = offline(tmp_path, "math:deepscaler")
    assert len(splits["train"]) == 32 and sorted(set(suites)) == ["amc", "gsm8k", "math500", "olympiad"]


def test_what_cannot_be_reached_says_what_was_tried(tmp_path: Path) -> None:
    message = offline(tmp_path, "math:numina")
    for words in ("HuggingFaceH4/MATH-500", "HF_HUB_OFFLINE", str(tmp_path), "hf download", "HF_HOME", "--data FOLDER"):
        assert words in message


def offline(hf_home: Path, task: str) -> Any:
    cleared = {"HF_HUB_CACHE", "HF_DATASETS_CACHE", "HUGGINGFACE_HUB_CACHE"}
    environment = {name: value for name, value in os.environ.items() if name not in cleared}
    environment |= {"HF_HOME": str(hf_home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", LOAD, task], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# The folder of copies.


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_copy_may_be_json(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    rows = [{"problem": "q", "answer": "1"}, {"problem": "r", "answer": "2"}]
    lines = "\n".join(map(json.dumps, rows)) if suffix == "jsonl" else json.dumps(rows)
    (folder / f"train.{suffix}").write_text(lines)
    with local_copies(str(tmp_path)) as read:
        assert list(read_hub("org/name", None, {"train": {"problem", "answer"}})["train"]) == rows
    assert read == ["org/name"]


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({"test": [{"problem": "q", "answer": "1"}]}, r"no 'train' split with the columns answer, problem.*'test'"),
        ({"train": [{"problem": "q"}]}, r"no 'train' split with the columns answer, problem.*'train' \(problem\)"),
    ],
)
def test_a_missing_split_or_column_is_named(
    tmp_path: Path, splits: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_files(tmp_path / "org/name/data", splits)
    with local_copies(str(tmp_path)), pytest.raises(DataError, match=words):
        read_hub("org/name", None, {"train": {"problem", "answer"}})


def test_an_empty_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    empty = datasets.Dataset.from_dict({"problem": [], "answer": []})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"train": empty})
    with pytest.raises(DataError, match="org/name as found here has no row in its 'train' split"):
        read_hub("org/name", None, {"train": {"problem"}})


def test_a_copy_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no copy of the data set openai/gsm8k.*hf download openai/gsm8k.*--local-dir"):
        load_task(Config(model="m", task="math", data=str(tmp_path / "empty")), chat=False)


def test_a_copy_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "openai/gsm8k").mkdir(parents=True)
    with pytest.raises(DataError, match="copy of openai/gsm8k in .* cannot be read"):
        load_task(Config(model="m", task="math", data=str(tmp_path)), chat=False)


def test_data_without_a_reward_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data and --reward belong together"):
        Config(model="m", data="sums.jsonl")
    with pytest.raises(ConfigError, match="--data nowhere is not a folder. Without --reward it must"):
        check_task_name(Config(model="m", data="nowhere"))
    with pytest.raises(ConfigError, match="math:arith reads no public data set"):
        load_task(Config(model="m", task="math:arith", data=str(tmp_path)), chat=False)


def test_a_set_without_any_usable_problem_is_refused(copies: Path) -> None:
    folder_of(copies, TRAINING["numina"], [{"problem": "Prove it.", "solution": "Done.", "source": "s"}] * 2)
    with pytest.raises(DataError, match="NuminaMath-CoT as found here has no problem that can be used.*2 proofs"):
        load(copies, "math:numina")


def test_a_packaged_model_is_told_the_form_that_fits() -> None:
    with pytest.raises(ConfigError, match="--task math:numina is too hard.*math:arith"):
        check_task_name(Config(model="tiny", task="math:numina"), EMBEDDED["tiny"].forms)


def test_every_training_set_has_a_name() -> None:
    assert {f"math:{name}" for name in TRAINING} <= set(TASKS)
