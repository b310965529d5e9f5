"""`atlas`: many measured contributions as one table and one figure, each with its source."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from compare_helpers import TRUTH, contribution, picked, saved

from autolayer.cli.commands import cli
from autolayer.comparison.atlas import COLUMNS, make_atlas
from autolayer.comparison.published import published_curves
from autolayer.core.errors import AutolayerError, ConfigError

ROOT = Path(__file__).parents[2]
LAYERBENCH = ROOT / "examples" / "layerbench" / "results"


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, ["atlas", *map(str, arguments)], catch_exceptions=False)


def test_an_entry_is_what_the_file_says(tmp_path: Path) -> None:
    path = saved(tmp_path / "a" / "b", contribution(noise=0.0)) / "contribution.json"
    (entry,) = make_atlas([tmp_path, path, tmp_path / "a"]).entries
    assert (entry.source, entry.setting) == (str(path), "tiny, math:arith, grpo")
    assert (entry.best_layer, entry.num_layers, entry.num_seeds, len(entry.values)) == (2, 8, 3, 8)
    assert entry.best_depth == pytest.approx(2 / 7) and entry.contribution == pytest.approx(1.1)
    assert (entry.low, entry.high) == pytest.approx((1.1, 1.1)) and entry.middle == pytest.approx(TRUTH[4])
    assert entry.prior_regret == pytest.approx(1.1 - TRUTH[3]), "the prior puts layer 3 of 8 first"


def test_of_few_layers_the_prior_chooses_among_the_measured_ones() -> None:
    (entry,) = make_atlas(["published:qwen3-1.7b-12-sets"]).entries
    assert entry.values == {1: 1.32, 7: 1.09, 10: 1.03, 24: 0.06}
    assert entry.prior_regret == pytest.approx(1.32 - 1.03) and entry.middle is None and entry.low is None


def test_where_only_the_ends_are_known_nothing_is_made_up() -> None:
    best, worst = make_atlas(["published:qwen3-1.7b-8k", "published:third-24-layers"]).entries
    assert best.only_ends and best.best_layer == 10 and best.contribution is best.prior_regret is None
    assert worst.best_layer is worst.best_depth is worst.contribution is None and worst.values == {22: 0.84, 23: 0.68}


def test_its_first_entries() -> None:
    found = make_atlas(["published:all", LAYERBENCH, LAYERBENCH / "stable"])
    files = [*LAYERBENCH.glob("*.json"), *(LAYERBENCH / "stable").glob("*.json")]
    assert len(found.entries) == len(published_curves()) + len(files)
    sources = [entry.source for entry in found.entries]
    assert set(map(str, files)) | {f"published:{name}" for name in published_curves()} == set(sources)
    assert all(any("source: " in note for note in entry.notes) for entry in found.entries[: len(published_curves())])


def test_the_command_writes_table_and_figure(tmp_path: Path) -> None:
    saved(tmp_path / "one", contribution(model="a|b"))
    saved(tmp_path / "two", contribution(np.roll(TRUTH, 1)))
    rows = {}
    for name, figure in (("t.csv", "f.svg"), ("t.md", "f.png")):
        out = tmp_path / "new" / name
        done = call(tmp_path, "published:qwen3-8b", "--out", out, "--figure", tmp_path / figure)
        assert done.exit_code == 0 and f"wrote {out}" in done.stderr
        rows[name] = out.read_text()
    table = list(csv.reader(rows["t.csv"].splitlines()))
    assert tuple(table[0]) == COLUMNS and len(table) == 4
    assert table[3][:-1] == ["Qwen/Qwen3-8B-Base, math, grpo", "ends", "16", "0.46", "1.07", "-", "-"]
    lines = rows["t.md"].splitlines()
    assert len(lines) == 5 and r"a\|b" in lines[2] and all(len(re.findall(r"(?<!\\)\|", line)) == 9 for line in lines)
    svg = (tmp_path / "f.svg").read_text()
    assert "depth prior" in svg and "a|b, math:arith, grpo  1" in svg and "Qwen/Qwen3-8B-Base, math, grpo  3" in svg
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_alone_on_stdout() -> None:
    found = json.loads(call("published:all", "--json").stdout)
    assert [entry["source"] for entry in found["entries"]] == [f"published:{name}" for name in published_curves()]


def test_the_page_shows_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setattr("rich._console", None)  # it keeps the width that it was made with
    page = (ROOT / "docs" / "sharing.md").read_text()
    command = re.findall(r"^    autolayer (atlas .+)$", page, re.MULTILINE)[-1].split()
    wanted = re.findall(r"```text\n(.*?)```", page, re.DOTALL)[0].split()
    assert call(*command[1:]).stdout.split()[: len(wanted)] == wanted


@pytest.mark.parametrize("kind", ["cut", "other JSON", "text", "prediction", "wrong record", "empty folder", "missing"])
def test_what_is_no_contribution_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    values = contribution().to_dict()
    whole = json.dumps(values)
    contents = {"cut": whole[:300], "other JSON": '{"layers": [1]}', "text": "layer,contribution\n0,1\n",
                "prediction": json.dumps(picked().to_dict()),
                "wrong record": json.dumps(values | {"num_layers": 2})}  # fmt: skip
    path = tmp_path / "x.json"
    if kind in contents:
        path.write_text(contents[kind])
    given = tmp_path if kind == "empty folder" else path
    with pytest.raises(AutolayerError, match=re.escape(str(given))) as refused:
        make_atlas(["published:all", given])
    assert "\n" not in str(refused.value)


def test_damage_is_found_below_a_folder(tmp_path: Path) -> None:
    saved(tmp_path / "good", contribution())
    bad = saved(tmp_path / "bad", contribution()) / "contribution.json"
    bad.write_text(bad.read_text()[:-9])
    with pytest.raises(AutolayerError, match=re.escape(str(bad))):
        make_atlas([tmp_path])


@pytest.mark.parametrize("option", ["--out", "--figure"])
def test_another_ending_is_refused_before_anything_is_read(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option} x\.pdf names no file that ends in \.(csv|png) or"):
        call("nowhere", option, "x.pdf")
