"""Loading a task: by name, from data, from the user's own files, and what must be refused with a sentence."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autolayer.core.config import Config
from autolayer.core.errors import AutolayerError, ConfigError, DataError, RewardError, UnknownNameError
from autolayer.tasks import SPLITS, TASKS, Task, check_task_name, load_task, split_rows

MESSAGES = [{"role": "user", "content": "1+1="}]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a reward in it."""
    (tmp_path / "rewards.py").write_text("def equals(completions, **kwargs):\n    return [1.0 for _ in completions]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load_lines(files: Path, *lines: Any, chat: bool = False, **settings: Any) -> Task:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (files / "data.jsonl").write_text(text, encoding="utf-8")
    config = Config(model="m", data="data.jsonl", reward="rewards.py:equals", **settings)
    return load_task(config, chat=chat)


# Names and settings.


@pytest.mark.parametrize(
    ("task", "error", "words"),
    [
        ("maths", UnknownNameError, "unknown task 'maths'. Did you mean 'math'. Known tasks: math, math:arith.*--data"),
        ("math:arit", UnknownNameError, "Did you mean 'math:arith'"),
        ("openai/gsm8k", UnknownNameError, "unknown task"),
        ("", ConfigError, "--task '' cannot work"),
        ("none.py:TASK", ConfigError, "none.py does not exist"),
        ("none.py", ConfigError, "write none.py:NAME"),
        ("none.py:a b", ConfigError, "not of the form FILE.py:NAME"),
    ],
)
def test_task_names_are_checked_at_once(files: Path, task: str, error: type[AutolayerError], words: str) -> None:
    with pytest.raises(error, match=words):
        check_task_name(Config(model="m", task=task))


def test_a_packaged_model_is_told_the_form_that_fits() -> None:
    forms = {"math": "math:arith"}
    with pytest.raises(ConfigError, match="packaged model 'tiny'.*use --task math:arith"):
        check_task_name(Config(model="tiny", task="math"), forms)
    check_task_name(Config(model="tiny", task="math:arith"), forms)


def test_checking_a_name_imports_nothing_heavy() -> None:
    code = (
        "import sys; from autolayer.core.config import Config; from autolayer.tasks import check_task_name\n"
        "check_task_name(Config(model='m', task='math'))\n"
        "print({'torch', 'transformers', 'datasets', 'math_verify', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("chat", [False, True])
def test_arith_is_a_task(chat: bool) -> None:
    task = load_task(Config(model="m", task="math:arith"), chat=chat)
    sizes = {split: len(rows) for split, rows in task.splits.items()}
    assert sizes == {"train": 4096, "probe": 512, "select": 512, "eval": 1024}
    assert (task.is_chat, task.max_new_tokens, task.num_eval) == (chat, 8, 512)
    rows = task.splits["eval"][:4]
    assert task.score(rows, [row["answer"] for row in rows]) == [1.0] * 4
    assert task.score(rows, ["no"] * 4) == [0.0] * 4
    assert task.is_well_formed is not None and task.is_well_formed("07") and not task.is_well_formed("seven")


def test_the_configuration_goes_before_the_task() -> None:
    task = load_task(Config(model="m", task="math:arith", max_new_tokens=4, num_eval=10, thinking=False), chat=True)
    assert (task.max_new_tokens, task.num_eval) == (4, 10)
    assert task.chat_template_kwargs == {"enable_thinking": False}
    assert load_task(Config(model="m", task="math:arith"), chat=True).chat_template_kwargs == {}


def test_thinking_needs_a_chat_template() -> None:
    with pytest.raises(ConfigError, match="thinking switch belongs to the chat template"):
        load_task(Config(model="m", task="math:arith", thinking=True), chat=False)


def test_plain_text_for_a_chat_model_is_remarked_upon(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_lines(files, *[{"prompt": split, "split": split} for split in SPLITS], chat=True)
    assert "chat template of m is not applied" in caplog.text


def test_every_built_in_task_has_its_line() -> None:
    assert all(task.description and "\n" not in task.description for task in TASKS.values())


# --data


def test_data_is_split_by_hash(files: Path) -> None:
    rows = [{"prompt": f"question {i}", "answer": i} for i in range(200)]
    task = load_lines(files, *rows)
    assert task.name == "data" and task.max_new_tokens == 1024 and not task.is_chat
    assert task.splits == split_rows(rows)
    assert task.score(task.splits["eval"][:2], ["a", "b"]) == [1.0, 1.0]


def test_data_with_splits_of_its_own(files: Path) -> None:
    lines = [{"prompt": f"{split} {i}", "split": split} for split in SPLITS for i in range(3)]
    task = load_lines(files, *lines)
    assert {split: len(rows) for split, rows in task.splits.items()} == dict.fromkeys(SPLITS, 3)
    assert all(row["prompt"].startswith(split) for split, rows in task.splits.items() for row in rows)
    assert "split" not in task.splits["train"][0], "the reward does not see it"


def test_a_byte_order_mark_and_blank_lines_do_no_harm(files: Path) -> None:
    lines = [f'\ufeff{{"prompt": "é 0", "split": "{SPLITS[0]}"}}', "", "  \r"]
    task = load_lines(files, *lines, *[{"prompt": split, "split": split} for split in SPLITS[1:]])
    assert task.splits["train"] == [{"prompt": "é 0"}]


def test_a_column_that_some_rows_lack_is_none(files: Path) -> None:
    lines = [{"prompt": split, "split": split} for split in SPLITS]
    task = load_lines(files, *lines, {"prompt": "more", "split": "train", "hint": "h"})
    assert task.splits["eval"] == [{"prompt": "eval", "hint": None}]


def test_what_looks_odd_about_the_rows_is_remarked_upon_once(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [{"prompt": split, "split": split, "answer": "1"} for split in SPLITS]
    load_lines(files, *lines, {"prompt": "more", "split": "train"}, {"prompt": "train", "split": "train", "answer": 2})
    assert "1 of 6 rows have no 'answer': it is None there" in caplog.text
    assert "1 of 6 rows repeat another row's prompt" in caplog.text
    assert caplog.text.count("few rows (train 3, probe 1, select 1, eval 1)") == 1


def test_programs_cannot_be_judged_without_tests(files: Path) -> None:
    """Said when the data are read, not when training comes to the row."""
    (files / "programs.py").write_text(
        "from autolayer.tasks.code.code_task import make_code_reward\n"
        "reward = make_code_reward(allow_unsandboxed=True)\n"
    )
    rows = [{"prompt": s, "split": s, "problem": {"tests": ["assert f(1) == 1"]}} for s in SPLITS]
    rows[2]["problem"] = {"tests": []}
    (files / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"task 'data', row 0 of 'select': the tests \[\] are no list with a test"):
        load_task(Config(model="m", data="data.jsonl", reward="programs.py:reward"), chat=False)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "is empty"),
        (["", " "], "is empty"),
        ([{"prompt": "a"}, '{"prompt": '], "line 2: not valid JSON"),
        ([{"prompt": "a"}, "", '{"prompt": "b", "answer": NaN}'], "line 3: NaN is not valid JSON"),
        ([["a"]], r"line 1: \['a'\] is not a JSON object"),
        ([{"prompt": "a"}, {"question": "b", "answer": 1}], "line 2: it has no 'prompt'.*question, answer"),
        ([{"prompt": 3}], "line 1: its 'prompt' is a int"),
        ([{"prompt": None}], "line 1: its 'prompt' is a NoneType"),
        ([{"prompt": ""}], "line 1: its 'prompt' is empty"),
        ([{"prompt": [{"role": "user"}]}], "line 1: .*no message such as"),
        ([{"prompt": "a"}, {"prompt": MESSAGES}], "line 2: texts and message lists are mixed"),
        ([{"prompt": "a", "split": "test"}], "line 1: its 'split' is 'test', none of train, probe, select, eval"),
        ([{"prompt": "a", "split": ["train"]}], r"line 1: its 'split' is \['train'\]"),
        ([{"prompt": "a", "split": "eval"}, {"prompt": "b"}], "line 2: some rows have a 'split'"),
        ([{"prompt": "a"}] + ["x"] * 9, "line 6: .*; and 4 more"),
        ([{"prompt": "3"}], "no row in train and probe and select .*eval 1.*more rows"),
        ([{"prompt": "a", "split": "train"}, {"prompt": "a", "split": "eval"}], "no row in probe and select"),
        (
            [{"prompt": split, "split": split} for split in SPLITS] + [{"prompt": "eval", "split": "train"}],
            "'eval' is in 'train' and in 'eval'",
        ),
        ([{"prompt": split, "split": split, "completion": "x"} for split in SPLITS], "completion itself: rename"),
        ([{"prompt": [{"role": "user", "content": s}], "split": s} for s in SPLITS], "m has no chat template"),
    ],
)
def test_data_that_cannot_be_used(files: Path, lines: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_lines(files, *lines)


def test_data_that_is_not_utf8_names_the_line(files: Path) -> None:
    (files / "latin.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n')
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        load_task(Config(model="m", data="latin.jsonl", reward="rewards.py:equals"), chat=False)


@pytest.mark.parametrize(
    ("path", "words"),
    [("none.jsonl", "does not exist"), ("folder.jsonl", "is a folder that save_to_disk has not written"),
     ("none.CSV", "does not exist"), ("a.xlsx", "give a .jsonl, .json, .csv, .parquet file"),
     ("plain", "cannot be read: give a .jsonl.* or OWNER/NAME of a data set on the Hub")],
)  # fmt: skip
def test_a_data_file_is_checked_at_once(files: Path, path: str, words: str) -> None:
    (files / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=words):
        check_task_name(Config(model="m", data=path, reward="rewards.py:equals"))


# FILE.py:NAME


TASK_FILE = """
from dataclasses import dataclass
from autolayer.tasks import SPLITS, Task
from beside import PREFIX

def reward(completions, **kwargs):
    return [0.0 for _ in completions]

def make():
    splits = {split: [{"prompt": PREFIX + split}] for split in SPLITS}
    return Task(name="mine", splits=splits, reward=reward, max_new_tokens=4)

def make_for(config, chat):
    assert config.model == "m" and chat is False
    return make()

@dataclass
class Picky:
    level: int

def asks(level):
    return make()

def fails():
    raise OSError("disk on fire")

MINE = make()
NUMBER = 3
returns_number = lambda: 3
"""


@pytest.fixture
def task_file(files: Path) -> Path:
    (files / "beside.py").write_text("PREFIX = 'p '\n")
    (files / "mine.py").write_text(TASK_FILE)
    return files / "mine.py"


@pytest.mark.parametrize("name", ["MINE", "make", "make_for"])
def test_a_task_of_ones_own(task_file: Path, name: str) -> None:
    config = Config(model="m", task=f"{task_file}:{name}")
    check_task_name(config)
    task = load_task(config, chat=False)
    assert task.name == "mine" and task.splits["eval"] == [{"prompt": "p eval"}]


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("MIEN", UnknownNameError, "has no 'MIEN'. Did you mean 'MINE'. It has: .*make, make_for"),
        ("NUMBER", DataError, "is 3, a int"),
        ("returns_number", DataError, "is 3, a int"),
        ("asks", DataError, "asks for level"),
        ("Picky", DataError, "asks for level"),
        ("fails", DataError, r"OSError: disk on fire \(.*mine.py:\d+\)"),
    ],
)
def test_names_that_are_no_task(task_file: Path, name: str, error: type[AutolayerError], words: str) -> None:
    with pytest.raises(error, match=words):
        load_task(Config(model="m", task=f"mine.py:{name}"), chat=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("import nothing_of_this_name", r"ModuleNotFoundError.*broken.py:1"),
        ("def f(:\n", r"SyntaxError.*line 1"),
        ("x = 1\nraise ValueError('no')", r"ValueError: no \(.*broken.py:2\)"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_file_that_cannot_be_imported(files: Path, content: str, words: str) -> None:
    (files / "broken.py").write_text(content)
    with pytest.raises(ConfigError, match=f"importing broken.py failed with {words}"):
        load_task(Config(model="m", task="broken.py:TASK"), chat=False)


def test_a_file_that_changed_is_imported_again(files: Path) -> None:
    from autolayer.tasks.custom import load_reward

    before = load_reward("rewards.py:equals")
    assert load_reward("rewards.py:equals") is before, "once is enough"
    (files / "rewards.py").write_text("def equals(completions, **kwargs):\n    return [2.0 for _ in completions]\n")
    assert load_reward("rewards.py:equals")(completions=["a"]) == [2.0]


@pytest.mark.parametrize(
    ("reward", "error", "words"),
    [
        ("none.py:equals", ConfigError, "none.py does not exist"),
        ("rewards.py", ConfigError, "write rewards.py:function"),
        ("rewards.txt:f", ConfigError, "not of the form FILE.py:function"),
        ("rewards.py:", ConfigError, "not of the form"),
        ("equals", ConfigError, "write path/to/file.py:function"),
        ("rewards.py:equal", UnknownNameError, "Did you mean 'equals'"),
        ("classes.py:Reward", RewardError, "is <class"),
        ("classes.py:NUMBER", RewardError, "is 1: it must be a function"),
    ],
)
def test_rewards_that_cannot_be_used(files: Path, reward: str, error: type[AutolayerError], words: str) -> None:
    (files / "classes.py").write_text("NUMBER = 1\nclass Reward: pass\n")
    (files / "data.jsonl").write_text("\n".join(json.dumps({"prompt": s, "split": s}) for s in SPLITS))
    with pytest.raises(error, match=words):
        load_task(Config(model="m", data="data.jsonl", reward=reward), chat=False)
