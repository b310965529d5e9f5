"""Public data sets of the Hugging Face Hub, read through `datasets` from the network or a local cache, and checked."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from typing import Any

from autolayer.errors import DataError


def read_hub(
    repository: str, configuration: str | None, splits: Mapping[str, set[str]]
) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The public splits of a data set.

    Args:
        repository: Its name, such as `openai/gsm8k`.
        configuration: Its configuration, or None for the only one.
        splits: The splits that are needed, each with the columns that it must have.

    Raises:
        DataError: It is neither reachable nor in a cache, or is not what it should be.
    """
    import datasets

    try:
        public: Any = datasets.load_dataset(repository, configuration)
    except Exception as error:  # its type depends on how the network failed; the message names it
        public = _read_cache(repository, configuration, splits)
        if public is None:
            raise DataError(_unreachable(repository, error)) from error
    for split, columns in splits.items():
        if split not in public or not columns <= set(public[split].column_names):
            raise DataError(
                f"{repository} as found here has no '{split}' split with the columns {' and '.join(sorted(columns))}: "
                f"the cache holds something else under that name. Remove it from {_caches()} and load it again."
            )
    return {split: public[split] for split in splits}


def _read_cache(repository: str, configuration: str | None, splits: Mapping[str, set[str]]) -> Any:
    """The files that `hf download --repo-type dataset` leaves, which `datasets` does not look at when offline."""
    import datasets
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repository, repo_type="dataset", local_files_only=True)
    except OSError:  # not there; what was tried first is what the user is told
        return None
    files = {split: sorted(glob.glob(f"{folder}/{configuration or '**'}/{split}-*.parquet")) for split in splits}
    return datasets.load_dataset("parquet", data_files=files) if all(files.values()) else None


def _caches() -> str:
    import datasets.config
    import huggingface_hub.constants

    return f"{datasets.config.HF_DATASETS_CACHE} and {huggingface_hub.constants.HF_HUB_CACHE}"


def _unreachable(repository: str, error: Exception) -> str:
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return (
        f"the data set {repository} could not be read{offline}: {type(error).__name__}: {error}. Tried the Hugging "
        f"Face Hub, and the caches {_caches()}. Where there is a network: `hf download {repository} --repo-type "
        "dataset`, then copy the cache here and point HF_HOME at its folder. Or bring your own copy: --data FILE.jsonl "
        "--reward FILE.py:function."
    )
