"""--data in every form that people have: the same rows come out, or the row that cannot be read is named."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from hub_cache import make_dataset_cache

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, DataError
from autolayer.tasks import SPLITS, Task, load_task
from autolayer.tasks.data_files import data_content

REWARD = "def one(completions, **kwargs):\n    return [1.0 for _ in completions]\n"
ROWS = [
    {"question": f'Wie viel ist {n}, «é» 数 🎉?\nIn one "word".', "solution": f"00{n}", "hint": None if n % 2 else "x"}
    for n in range(60)
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(data: str, *, chat: bool = False, **settings: Any) -> Task:
    return load_task(Config(model="m", data=data, reward="reward.py:one", **settings), chat=chat)


def write_jsonl(path: Path) -> None:
    path.write_text("\n".join(map(json.dumps, ROWS)))


def write_crlf(path: Path) -> None:
    path.write_bytes("\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode("utf-8-sig"))


def write_json(path: Path) -> None:
    path.write_text("\ufeff" + json.dumps(ROWS, indent=2), encoding="utf-8")


def write_csv(path: Path) -> None:
    """As Excel and pandas write one: a byte order mark, CRLF, and an index without a name."""
    import csv

    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", *ROWS[0]])
        writer.writerows([number, *row.values()] for number, row in enumerate(ROWS))


def write_parquet(path: Path) -> None:
    Dataset.from_list(ROWS).to_parquet(path)


def write_folder(path: Path) -> None:
    Dataset.from_list(list(reversed(ROWS))).select(range(len(ROWS) - 1, -1, -1)).save_to_disk(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("d.jsonl", write_jsonl), ("d.json", write_jsonl), ("d.jsonl", write_crlf), ("d.json", write_json),
     ("d.CSV", write_csv), ("d.parquet", write_parquet), ("d", write_folder)],
)  # fmt: skip
def test_every_form_holds_the_same_rows(place: Path, name: str, write: Callable[[Path], None]) -> None:
    write(place / name)
    task = load(f"./{name}", columns="prompt=question, answer=solution")
    found = [row for split in SPLITS for row in task.splits[split]]
    expected = [{"prompt": row["question"], "answer": row["solution"], "hint": row["hint"]} for row in ROWS]
    assert sorted(found, key=str) == sorted(expected, key=str) and task.name == "d"


def test_a_data_set_of_the_hub_with_its_subset_and_split(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    make_dataset_cache(place, "me/riddles", "main", {"train": ROWS, "test": ROWS[:5]})
    task = load("me/riddles:main", split="train", columns={"prompt": "question"})
    assert sum(map(len, task.splits.values())) == 60 and task.name == "riddles:main"
    with pytest.raises(DataError, match=r"several splits \(train, test\): name the one to train on with --split"):
        load("me/riddles:main", columns={"prompt": "question"})
    with pytest.raises(DataError, match="has no split 'trian': it has train, test"):
        load("me/riddles:main", split="trian")
    with pytest.raises(DataError, match="the data set me/other could not be read"):
        load("me/other")


def test_altered_rows_are_seen(place: Path) -> None:
    """A folder's files may differ where its rows do not, and a file is compared byte by byte."""
    Dataset.from_list(ROWS).save_to_disk(place / "a")
    Dataset.from_list([*ROWS, *ROWS]).select(range(60)).save_to_disk(place / "b")
    Dataset.from_list([*ROWS[1:], ROWS[0] | {"hint": "y"}]).save_to_disk(place / "c")
    assert data_content("a", None) == data_content("b", None) != data_content("c", None)
    write_jsonl(place / "d.jsonl")
    assert data_content("d.jsonl", None) == (place / "d.jsonl").read_bytes()


def test_one_of_several_splits_is_named(place: Path) -> None:
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:3])}).save_to_disk(place / "both")
    assert sum(map(len, load("both", split="train", columns="prompt=question").splits.values())) == 60
    with pytest.raises(DataError, match="several splits"):
        load("both")
    Dataset.from_list(ROWS).save_to_disk(place / "one")
    for data in ("one", "d.jsonl"):
        write_jsonl(place / "d.jsonl")
        with pytest.raises(DataError, match="--split train has no effect"):
            load(data, split="train")


PARTS = [{"type": "text", "text": "Name "}, {"type": "text", "text": "it."}]


def test_messages_with_text_parts_and_filled_in_nulls(place: Path) -> None:
    """Arrow gives every message the fields of all others."""
    rows = [{"prompt": [{"role": "user", "content": f"{i}", "name": None}], "n": i} for i in range(60)]
    rows[0]["prompt"] = [{"role": "system", "content": "s", "name": "a"}, {"role": "user", "content": "0"}]
    Dataset.from_list(rows).to_parquet(place / "d.parquet")
    found = [row for part in load("d.parquet", chat=True).splits.values() for row in part]
    assert [{"role": "user", "content": "1"}] in [row["prompt"] for row in found]
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    lines = [{"prompt": [calls, {"role": "user", "content": PARTS}], "split": s} for s in ("train",)]
    lines += [{"prompt": [{"role": "user", "content": s}], "split": s} for s in SPLITS[1:]]
    (place / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert load("p.jsonl", chat=True).splits["train"][0]["prompt"] == [
        {**calls, "content": ""},
        {"role": "user", "content": "Name it."},
    ]


def json_text(*rows: Mapping[str, Any]) -> bytes:
    return json.dumps(rows).encode()


IMAGE = [{"role": "user", "content": [{"type": "image", "url": "x.png"}]}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.json", b'[{"prompt": "a"},\n {"prompt": }]', r"cannot be read: not valid JSON \(.*line 2, character 13"),
        ("d.json", b'{"prompt": "a", "rows": [\n1]}', r"line 1: not valid JSON"),
        ("d.json", b"[3]", "rows, counted from 0, that cannot be used: row 0: 3 is not a JSON object"),
        ("d.json", b"[]", "is empty"),
        ("d.json", b'[{"prompt": "a", "n": NaN}]', "NaN is not valid JSON"),
        ("d.json", json_text({"prompt": "a"}, {"prompt": 3}), "row 1: its 'prompt' is a int"),
        ("d.json", json_text({"prompt": IMAGE}), "row 0: .*holds the part .*only parts of type 'text'"),
        ("d.json", json_text({"text": "a"}), r"row 0: it has no 'prompt' \(its columns: text\); --columns prompt="),
        ("d.csv", b"prompt;answer\r\n1+1;2\r\n", "line 2: it has no 'prompt' .its columns: prompt;answer"),
        ("d.csv", b"prompt,answer\n1+1,2\n\n\"1,\n1\",2,3\n", "line 4: 3 cells for 2 columns: put quotes around"),
        ("d.csv", b"prompt,answer\n1+1\n", "line 2: 1 cells for 2 columns"),
        ("d.csv", b"prompt,answer\n,2\n", "line 2: its 'prompt' is a NoneType"),
        ("d.csv", b"prompt,a,a\n1,2,3\n", "line 1: the columns 'a' are there twice"),
        ("d.csv", b'prompt\nx\n"open', "line 3: not valid CSV"),
        ("d.csv", b"prompt\nx\n\xe9\n", "line 3: not UTF-8"),
        ("d.csv", "prompt\nx\n".encode("utf-16"), "line 1: not UTF-8"),
        ("d.csv", b"", "is empty"),
        ("d.parquet", b"PAR", "cannot be read as parquet"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(place: Path, name: str, content: bytes, words: str) -> None:
    (place / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as refused:
        load(name)
    assert "\n" not in str(refused.value)


def test_a_table_with_nan_is_refused_as_json_is(place: Path) -> None:
    Dataset.from_dict({"prompt": ["a", "b"], "n": [1.0, float("nan")]}).to_parquet(place / "d.parquet")
    with pytest.raises(DataError, match="row 1: its 'n' is NaN; use null or a number"):
        load("d.parquet")


def test_long_cells_are_read(place: Path) -> None:
    lines = [f"{s}{'x' * 200_000},{s}" for s in SPLITS]
    (place / "d.csv").write_text("prompt,split\n" + "\n".join(lines))
    assert len(load("d.csv").splits["eval"][0]["prompt"]) > 200_000


def test_a_mapping_takes_the_place_of_a_column_of_that_name(place: Path) -> None:
    rows = [{"prompt": "old", "text": f"new {s}", "completion": "c", "split": s} for s in SPLITS]
    (place / "d.json").write_text(json.dumps(rows))
    task = load("d.json", columns={"prompt": "text", "reference": "completion"})
    assert task.splits["eval"] == [{"prompt": "new eval", "reference": "c"}]


@pytest.mark.parametrize(
    ("columns", "words"),
    [("prompt", "give NEW=COLUMN pairs"), ("prompt=", "give NEW"), ("a=b,a=c", "give NEW"), ({"a": 3}, "give NEW"),
     ("", "give NEW"), ([], "give NEW"), (7, "give NEW")],
)  # fmt: skip
def test_columns_that_cannot_be_used(columns: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(model="m", data="d.csv", reward="r.py:f", columns=columns)


def test_columns_that_the_data_lack(place: Path) -> None:
    (place / "d.json").write_text(json.dumps([{"prompt": s, "split": s} for s in SPLITS]))
    with pytest.raises(DataError, match="--columns answer=solution names no column of d.json: it has prompt, split"):
        load("d.json", columns="answer=solution")
    with pytest.raises(ConfigError, match="--split and --columns belong to --data and --reward"):
        Config(model="m", columns="a=b")
    with pytest.raises(ConfigError, match="--data and --reward belong together"):
        Config(model="m", data="d.csv")


def test_older_runs_keep_their_signature() -> None:
    signed: Sequence[str] = list(Config(model="m", data="d.jsonl", reward="r.py:f").signed())
    assert not {"split", "columns"} & set(signed)
    assert {"split", "columns"} <= set(
        Config(model="m", data="a/b", split="s", columns="a=b", reward="r.py:f").signed()
    )
