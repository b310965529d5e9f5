"""Reads the rows of `--data`: .jsonl, .json, .csv or .parquet, a folder of `save_to_disk`, or a data set of the Hub.

Each reader yields a row's place, such as 'line 3', and the row, or the ValueError that says why it cannot be read. The
values are those of the file: `datasets` would make 7 of a CSV's 007 and unite the types of a column, so that texts are
read here, and tables from Arrow.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolayer.core.config import DATA_FILES
from autolayer.core.errors import DataError
from autolayer.tasks.base import Row
from autolayer.tasks.hub import load_hub
from autolayer.tasks.rewards import show

if TYPE_CHECKING:
    import pyarrow

Found = Iterator[tuple[str, Row | ValueError]]
SAVED = ("state.json", "dataset_dict.json")
"""Files of which `save_to_disk` writes one into its folder."""
LONGEST_CELL = 2**31 - 1


def check_path(path: str, split: str | None) -> None:
    """Refuses what is no data, as far as this is known without reading it."""
    file, suffix = Path(path), Path(path).suffix.lower()
    kinds = f"a {', '.join(DATA_FILES)} file, a folder written by save_to_disk, or OWNER/NAME of a data set on the Hub"
    if file.is_dir():
        if not any((file / name).is_file() for name in SAVED):
            raise DataError(f"--data {path} is a folder that save_to_disk has not written: give {kinds}.")
    elif file.exists() or suffix in DATA_FILES or not is_hub_name(path):
        if suffix not in DATA_FILES:
            raise DataError(f"--data {path} cannot be read: give {kinds}.")
        if not file.is_file():
            raise DataError(f"--data {path} does not exist (looked for {file.absolute()}): give the path of a file.")
        if split is not None:
            raise DataError(
                f"--split {split} has no effect, because the file {path} has no named splits: leave it out."
            )


def is_hub_name(path: str) -> bool:
    """Returns True for OWNER/NAME and OWNER/NAME:SUBSET, if there is no such file or folder."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", path) is not None and not Path(path).exists()


def read_rows(path: str, split: str | None) -> Found:
    """Yields every row and its place."""
    if is_hub_name(path) and Path(path).suffix.lower() not in DATA_FILES:
        repository, _, subset = path.partition(":")
        return _table_rows(_arrow(path, load_hub(repository, subset or None), split))
    if Path(path).is_dir():
        return _table_rows(_arrow(path, _from_disk(path), split))
    if Path(path).suffix.lower() == ".parquet":
        return _table_rows(_parquet(path))
    content = Path(path).read_bytes()
    if Path(path).suffix.lower() == ".csv":
        return _csv_rows(content)
    # `to_json` of pandas and datasets writes lines into a .json file as well.
    is_list = Path(path).suffix.lower() == ".json" and content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return _json_rows(path, content) if is_list else _lines(content)


def data_content(path: str, split: str | None) -> bytes:
    """Returns what tells data that has been altered: a file's bytes, or the values of all rows."""
    file = Path(path).expanduser()
    return file.read_bytes() if file.is_file() else repr(list(read_rows(path, split))).encode("utf-8", "replace")


def _lines(content: bytes) -> Found:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield f"line {number}", _attempt(line)


def _json_rows(path: str, content: bytes) -> Found:
    rows: Any = _attempt(content, list)
    if isinstance(rows, ValueError):
        raise DataError(f"--data {path} cannot be read: {rows}.")
    for number, row in enumerate(rows):
        yield f"row {number}", row if isinstance(row, dict) else _no_object(row)


def _attempt(text: bytes, kind: type = dict) -> Any:
    try:
        found = json.loads(text.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return _not_utf8(error)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, character {error.colno}" if error.lineno > 1 else f"character {error.pos + 1}"
        return ValueError(f"not valid JSON ({error.msg} at {place})")
    except RecursionError:
        return ValueError("its JSON is nested too deeply")
    except ValueError as error:
        return error
    return found if isinstance(found, kind) else _no_object(found)


def _csv_rows(content: bytes) -> Found:
    """Yields every cell as a text, and None for an empty one."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield f"line {error.object[: error.start].count(10) + 1}", _not_utf8(error)
        return
    before = csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 0
    try:
        header = next(reader, [])
        line = reader.line_num
        if twice := sorted({name for name in header if header.count(name) > 1}):
            yield "line 1", ValueError(f"the columns {', '.join(map(repr, twice))} are there twice: rename them")
            return
        for cells in iter(lambda: next(reader, None), None):
            started, line = line + 1, reader.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                why = "put quotes around a cell that holds a comma or a line break"
                yield f"line {started}", ValueError(f"{len(cells)} cells for {len(header)} columns: {why}")
                continue
            # pandas writes its index as a column without a name.
            row = zip(header, cells, strict=True)
            yield f"line {started}", {name: cell or None for name, cell in row if name}
    except csv.Error as error:
        yield f"line {line + 1}", ValueError(f"not valid CSV ({error})")
    finally:
        csv.field_size_limit(before)


def _table_rows(table: "pyarrow.Table") -> Found:
    for number, row in enumerate(table.to_pylist()):
        wrong = [name for name, value in row.items() if isinstance(value, float) and value != value]
        kept = {name: value for name, value in row.items() if not name.startswith("__index_level_")}  # of pandas
        problem = f"its {', '.join(map(repr, wrong))} is NaN; use null or a number"
        yield f"row {number}", ValueError(problem) if wrong else kept


def _parquet(path: str) -> "pyarrow.Table":
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path).read()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"--data {path} cannot be read as parquet ({_first_line(error)}): write the file again."
        ) from None


def _from_disk(path: str) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(path)
    except Exception as error:  # its type depends on what is missing
        raise DataError(
            f"--data {path} cannot be read as a folder of save_to_disk ({_first_line(error)}): write it again."
        ) from error


def _arrow(path: str, found: Any, split: str | None) -> "pyarrow.Table":
    """Returns the rows of one split of a `Dataset` or `DatasetDict`, without decoding images and sounds."""
    if isinstance(found, dict):
        names = ", ".join(found)
        if split is None and len(found) > 1:
            raise DataError(f"--data {path} has several splits ({names}): name the one to train on with --split.")
        if split is not None and split not in found:
            raise DataError(f"--data {path} has no split '{split}': it has {names}.")
        found = found[split or next(iter(found))]
    elif split is not None:
        raise DataError(f"--split {split} has no effect, because {path} has no named splits: leave it out.")
    return found.with_format("arrow")[:]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON; use null or a number")


def _no_object(value: Any) -> ValueError:
    return ValueError(f"{show(value, 60)} is not a JSON object")


def _not_utf8(error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"not UTF-8 ({error.reason}): save the file as UTF-8")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
