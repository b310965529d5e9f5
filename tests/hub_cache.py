"""Stand-ins for what a download leaves in HF_HOME, so that public names load offline.

`AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-8B")` reads the hub cache (`hub/models--…`). Offline,
`load_dataset("openai/gsm8k", "main")` reads the Arrow files it prepared once (`datasets/openai___gsm8k/…`) and never
the hub cache, which is what `hf download --repo-type dataset` fills. Both layouts can be made here.

    make_gsm8k_cache(tmp_path, [{"question": "1+1?", "answer": "It is 2.\n#### 2"}, ...])
    subprocess.run(command, env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})
"""

import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetInfo
from datasets.arrow_writer import ArrowWriter
from datasets.naming import camelcase_to_snakecase
from datasets.splits import SplitDict, SplitInfo

COMMIT = "0" * 40


def gsm8k_rows(num: int, seed: int = 0) -> list[dict[str, str]]:
    """Word problems in GSM8K's format, all different for `num` up to a few thousand."""
    pairs = random.Random(seed).sample([(a, b) for a in range(2, 102) for b in range(2, 102)], num)
    return [
        {
            "question": f"Ada has {a} apples and buys {b} more. How many apples does she have?",
            "answer": f"She has {a}+{b}=<<{a}+{b}={a + b}>>{a + b} apples.\n#### {a + b}",
        }
        for a, b in pairs
    ]


def make_gsm8k_cache(
    hf_home: Path, rows: Sequence[Mapping[str, str]], *, num_test: int | None = None, layout: str = "datasets"
) -> None:
    """Puts rows into HF_HOME as `openai/gsm8k`, configuration `main`.

    Args:
        rows: With `question` and `answer`, the answer ending in `#### 42`.
        num_test: How many of them, from the end, are the test split; default: a fifth.
        layout: "datasets", as `load_dataset` leaves it, or "hub", as `hf download` does.
    """
    num_test = max(1, len(rows) // 5) if num_test is None else num_test
    splits = {"train": [dict(row) for row in rows[:-num_test]], "test": [dict(row) for row in rows[-num_test:]]}
    make_dataset_cache(hf_home, "openai/gsm8k", "main", splits, layout=layout)


def make_dataset_cache(
    hf_home: Path,
    repository: str,
    configuration: str | None,
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    layout: str = "datasets",
) -> None:
    """Puts splits into HF_HOME under the name of a public data set; the arguments are those of `make_gsm8k_cache`."""
    if layout == "hub":
        snapshot = "datasets--" + repository.replace("/", "--")
        exists = (hf_home / "hub" / snapshot).exists()
        folder = hf_home / "hub" / snapshot / "snapshots" / COMMIT if exists else _snapshot(hf_home, snapshot)
        (folder / "README.md").write_text("# A stand-in\n")
        write_files(folder / (configuration or "data"), splits)
        return
    owner, name = repository.split("/")
    name, config_name = camelcase_to_snakecase(name), configuration or "default"
    folder = hf_home / "datasets" / f"{owner}___{name}" / config_name / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    infos = SplitDict(dataset_name=name)
    features = Dataset.from_list([dict(row) for part in splits.values() for row in part]).features
    for split, part in splits.items():
        writer = ArrowWriter(path=str(folder / f"{name}-{split}.arrow"), features=features)
        for row in part:
            writer.write(dict(row))
        num_examples, num_bytes = writer.finalize()
        infos.add(SplitInfo(name=split, num_bytes=num_bytes, num_examples=num_examples, dataset_name=name))
    info = DatasetInfo(
        features=features,
        builder_name="parquet",
        dataset_name=name,
        config_name=config_name,
        version="0.0.0",
        splits=infos,
    )
    info.write_to_directory(str(folder))


def write_files(folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """One parquet file for each split, as public repositories have them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in splits.items():
        Dataset.from_list([dict(row) for row in part]).to_parquet(folder / f"{name}-00000-of-00001.parquet")


def make_model_cache(hf_home: Path, folder: Path, name: str) -> None:
    """Puts a local model folder into HF_HOME under a public name such as 'Qwen/Qwen3-8B'."""
    shutil.copytree(folder, _snapshot(hf_home, "models--" + name.replace("/", "--")), dirs_exist_ok=True)


def _snapshot(hf_home: Path, repository: str) -> Path:
    folder = hf_home / "hub" / repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    refs = hf_home / "hub" / repository / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    return folder
