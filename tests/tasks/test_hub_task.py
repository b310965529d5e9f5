"""`math` (GSM8K) and public model names, read from offline caches in a process of their own.

A process, because `HF_HOME` and `HF_HUB_OFFLINE` are read when the libraries are imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_cache import gsm8k_rows, make_gsm8k_cache, make_model_cache

from autolayer.core.errors import DataError
from autolayer.tasks.hub import local_copies, read_hub
from autolayer.tasks.math.reward import math_reward

LOAD_MATH = """
import json, sys
from autolayer.core.config import Config
from autolayer.core.errors import DataError
from autolayer.tasks import load_task
try:
    task = load_task(Config(model="m", task="math"), chat=sys.argv[1] == "chat")
except DataError as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps({split: list(rows) for split, rows in task.splits.items()}))
"""

LOAD_MODEL = """
import json
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-8B")
print(json.dumps([model.config.num_hidden_layers, len(AutoTokenizer.from_pretrained("Qwen/Qwen3-8B"))]))
"""


def offline(hf_home: Path, code: str, *arguments: str):
    cleared = {"HF_HUB_CACHE", "HF_DATASETS_CACHE", "HUGGINGFACE_HUB_CACHE"}
    environment = {name: value for name, value in os.environ.items() if name not in cleared}
    environment |= {"HF_HOME": str(hf_home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("layout", ["datasets", "hub"])
def test_math_reads_an_offline_cache(tmp_path: Path, layout: str) -> None:
    rows = gsm8k_rows(120)
    make_gsm8k_cache(tmp_path, rows, num_test=20, layout=layout)
    splits = offline(tmp_path, LOAD_MATH, "text")
    assert {name: len(part) for name, part in splits.items()} == {"train": 80, "probe": 10, "select": 10, "eval": 20}
    known = {row["question"]: row["answer"].split("#### ")[1] for row in rows[-20:]}
    for row in splits["eval"]:
        question = row["prompt"].split("Question: ")[1].removesuffix("\nAnswer:")
        assert row["answer"] == known[question], "the public test split is `eval`"
    assert set(splits["train"][0]) == {"prompt", "answer"}


def test_a_chat_model_gets_the_same_problems_as_messages(tmp_path: Path) -> None:
    make_gsm8k_cache(tmp_path, gsm8k_rows(60))
    plain, chat = offline(tmp_path, LOAD_MATH, "text"), offline(tmp_path, LOAD_MATH, "chat")
    for name, part in chat.items():
        assert [row["answer"] for row in part] == [row["answer"] for row in plain[name]]
        assert all(row["prompt"][0]["role"] == "user" and r"\boxed{}" in row["prompt"][0]["content"] for row in part)


def test_a_question_in_both_public_splits_stays_in_eval(tmp_path: Path) -> None:
    rows = gsm8k_rows(50)
    make_gsm8k_cache(tmp_path, [rows[0], *rows, rows[0]], num_test=5)
    splits = offline(tmp_path, LOAD_MATH, "text")
    question = rows[0]["question"]
    assert [name for name, part in splits.items() if any(question in row["prompt"] for row in part)] == ["eval"]


def test_without_a_cache_the_error_says_what_to_do(tmp_path: Path) -> None:
    message = offline(tmp_path, LOAD_MATH, "text")
    for words in ("openai/gsm8k", "HF_HUB_OFFLINE", str(tmp_path), "hf download", "HF_HOME", "--data FILE"):
        assert words in message


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "1+1?", "answer": "two"}, "without '####'"),
        ({"question": "1+1?", "solution": "#### 2"}, "columns answer, question"),
    ],
)
def test_something_else_under_the_name_is_refused(tmp_path: Path, row: dict[str, str], words: str) -> None:
    make_gsm8k_cache(tmp_path, [row, row])
    assert words in offline(tmp_path, LOAD_MATH, "text")


@pytest.mark.slow
def test_a_public_model_name_loads_from_the_cache(tmp_path: Path, tiny_folder: Path) -> None:
    make_model_cache(tmp_path, tiny_folder, "Qwen/Qwen3-8B")
    num_layers, vocabulary = offline(tmp_path, LOAD_MODEL)
    assert num_layers == 4 and vocabulary > 90


def test_math_reward_on_texts_and_messages() -> None:
    texts = [r"so \boxed{42}", "so 42", "The answer is 41.", "#### 42\n\nQuestion: next?\nAnswer: #### 7"]
    metrics: dict[str, float] = {}
    columns = {"prompts": ["p"] * 4, "answer": ["42"] * 4, "log_metric": metrics.__setitem__}
    assert math_reward(completions=texts, completion_ids=[], **columns) == [1.0, 0.0, 0.0, 1.0]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert math_reward(completions=messages, completion_ids=[], **columns) == [1.0, 0.0, 0.0, 1.0]
    assert metrics == {"answers/unjudged": 0.0}


def test_a_folder_whose_name_is_a_pattern_is_refused(tmp_path: Path) -> None:
    """`datasets` would read the folder `axb` for `a?b`, too."""
    for name in ("a?b", "a*b", "a[b]"):
        (tmp_path / name / "openai" / "gsm8k").mkdir(parents=True)
        with local_copies(str(tmp_path / name)), pytest.raises(DataError, match="rename the folder"):
            read_hub("openai/gsm8k", "main", {"train": {"question"}})
