"""Reads and checks public data sets of the Hugging Face Hub, through `datasets` or from a local copy.

A data set that cannot be read is never replaced by another one, because the score would be taken for a score on the
first. Left out on purpose: streaming, since splits are cut by hash and need every row.
"""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from autolayer.core.errors import DataError
from autolayer.core.offline import check_hub

_copies: ContextVar[tuple[Path, list[str]] | None] = ContextVar("copies", default=None)
"""The folder of `local_copies`, and the names of the data sets that were read from it."""


@contextmanager
def local_copies(folder: str | None) -> Iterator[list[str]]:
    """Makes `read_hub` read only from FOLDER/OWNER/NAME, and yields the names read so far. None changes nothing."""
    names: list[str] = []
    token = _copies.set(None if folder is None else (Path(folder), names))
    try:
        yield names
    finally:
        _copies.reset(token)


def read_hub(
    repository: str, configuration: str | None, splits: Mapping[str, set[str]]
) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Returns public splits of a data set such as `openai/gsm8k`, as `datasets.Dataset`s.

    `splits` maps the splits that are needed to the columns that each must have.
    """
    if (copies := _copies.get()) is None:
        public, where = load_hub(repository, configuration), _caches()
    else:
        folder, names = copies
        names.append(repository)
        public, where = _from_copy(folder, repository, configuration), str(folder / repository)
    for split, columns in splits.items():
        if split not in public or not columns <= set(public[split].column_names):
            found = ", ".join(f"'{name}' ({', '.join(part.column_names)})" for name, part in public.items())
            raise DataError(
                f"{repository} as found here has no '{split}' split with the columns {', '.join(sorted(columns))}; it "
                f"has: {found}. This is another data set under that name: remove it from {where} and load it again. "
                f"If the public set itself has changed, give an older copy: `{_download(repository)} --revision COMMIT "
                f"--local-dir FOLDER/{repository}`, then --data FOLDER."
            )
        if not len(public[split]):
            raise DataError(
                f"{repository} as found here has no row in its '{split}' split: the copy is incomplete. Remove it from "
                f"{where} and load it again."
            )
    return {split: public[split] for split in splits}


def load_hub(repository: str, configuration: str | None) -> Any:
    """Returns all splits of a data set of the Hub, or of its caches, as a `datasets.DatasetDict`."""
    import datasets
    from huggingface_hub import snapshot_download

    check_hub()
    try:
        return datasets.load_dataset(repository, configuration)
    except Exception as error:  # its type depends on how the network failed; the message names it
        try:
            # The cache of `hf download`, which `datasets` does not read when offline.
            folder = snapshot_download(repository, repo_type="dataset", local_files_only=True)
        except OSError:  # not in the cache either; the first error is the one to report
            offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
            raise DataError(
                f"the data set {repository} could not be read{offline}: {type(error).__name__}: {error}. Tried the "
                f"Hugging Face Hub, and the caches {_caches()}. Where there is a network: `{_download(repository)}`, "
                "then copy the cache here and point HF_HOME at its folder; or "
                f"`{_download(repository)} --local-dir FOLDER/{repository}` and give --data FOLDER. Or bring prompts "
                "and a reward of your own: --data FILE --reward FILE.py:function."
            ) from error
        return _read_folder(Path(folder), repository, configuration)


def _from_copy(copies: Path, repository: str, configuration: str | None) -> Any:
    folder = copies / repository
    if not folder.is_dir():
        raise DataError(
            f"--data {copies} has no copy of the data set {repository} (looked for {folder}): make one with "
            f"`{_download(repository)} --local-dir {folder}`, or leave --data out to read the Hugging Face Hub."
        )
    return _read_folder(folder, repository, configuration)


def _read_folder(folder: Path, repository: str, configuration: str | None) -> Any:
    """Reads a copy of the repository: configurations as its README names them, else folders of files by split."""
    import datasets

    if glob.has_magic(str(folder)):  # `datasets` would also read other folders
        raise DataError(f"the copy of {repository} in {folder} cannot be read: rename the folder without *, ? and [.")
    try:
        try:
            return datasets.load_dataset(str(folder), configuration)
        except ValueError:  # its README names no such configuration
            if configuration is None or not (folder / configuration).is_dir():
                raise
            return datasets.load_dataset(str(folder / configuration))
    except Exception as error:  # its type depends on the kind of file
        raise DataError(
            f"the copy of {repository} in {folder} cannot be read: {type(error).__name__}: {error}. It should hold "
            f"what `{_download(repository)}` brings, or one parquet, jsonl or json file for each split"
            + (f" in a folder '{configuration}'." if configuration else ".")
        ) from error


def _download(repository: str) -> str:
    return f"hf download {repository} --repo-type dataset"


def _caches() -> str:
    import datasets.config
    import huggingface_hub.constants

    return f"{datasets.config.HF_DATASETS_CACHE} and {huggingface_hub.constants.HF_HUB_CACHE}"
