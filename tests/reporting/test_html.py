"""report.html and its figures: all numbers are there, all texts are escaped, a browser shows it without overlaps."""

import html
import json
import re
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import click
import pyarrow as pa
import pytest
from pyarrow import parquet
from result_helpers import result

from autolayer.cli.options import ConfigCommand, read_values
from autolayer.core.config import Config
from autolayer.core.run_folder import COMPLETIONS, CONFIG, RunFolder
from autolayer.reporting.figures import Scale, draw_figures
from autolayer.reporting.html import html_page, write_figures
from autolayer.reporting.race_table import arm_rows
from autolayer.reporting.ranking import value_columns
from autolayer.reporting.results import Baseline, PickResult, Rung, SetRow, StageCost
from autolayer.reporting.run_files import first_and_last_completions, repeat_command, training_rewards

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def raced(num_layers: int = 6, **changes: object) -> PickResult:
    """Returns a result whose four most probable layers ran to step 8, and the best two to step 16."""
    value = result(num_layers, **changes)

    def rung(steps: int, gain: float, rate: float = 1e-3, seed: int = 0) -> Rung:
        return Rung(steps=steps, learning_rate=rate, seed=seed, gain=gain, low=gain - 0.05, high=gain + 0.05)

    rungs = [(rung(8, 0.1), rung(16, 0.2), rung(8, 0.03, 2e-3)), (rung(8, 0.05), rung(16, 0.19)),
             (rung(8, 0.02),), (rung(8, -0.01),)]  # fmt: skip
    rows = [
        replace(row, rungs=ran) for row, ran in zip(value.ranking or (), [*rungs, *[()] * num_layers], strict=False)
    ]
    return replace(value, ranking=tuple(rows))


class Cells(HTMLParser):
    """Collects the texts of table cells, row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.rows.append([])  # what follows is in no row

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_the_page_holds_every_number_of_the_ranking() -> None:
    value = raced(36)
    rows, ranking = Cells(html_page(value)).rows, value.ranking or ()
    columns = value_columns(ranking)
    assert ["layer", "", *columns] in rows
    for row, *cells in zip(ranking, *columns.values(), strict=True):
        assert [str(row.layer), *cells] in [[each[0], *each[2:]] for each in rows if len(each) > 2]
        for rung in row.rungs:
            gain = f"{rung.gain:+.3f} [{rung.low:+.3f}, {rung.high:+.3f}]"
            assert any(each[:1] == [str(row.layer)] and gain in each for each in rows)


def test_the_race_says_how_each_arm_ended() -> None:
    assert [(arm.name, arm.last.steps, arm.is_chosen, arm.ended) for arm in arm_rows(raced())] == [
        ("3", 16, True, "chosen"),
        ("3", 8, True, "another rate or seed of it went on"),
        ("2", 16, False, "ran to the last rung"),
        ("4", 8, False, "not trained further after 8 steps: +0.020 against +0.100 of layer 3; P(best) 22%"),
        ("0", 8, False, "not trained further after 8 steps: -0.010 against +0.100 of layer 3; P(best) 11%"),
    ]
    # The chosen layer's longest run is shorter than another's, and a layer went no further although it gained most.
    odd = replace(raced(), best_layers=(4,))
    odd = replace(odd, ranking=tuple(replace(row, rungs=(replace(row.rungs[0], gain=0.3),)) if row.layer == 0 else row
                                     for row in odd.ranking or ()))  # fmt: skip
    assert {arm.name: arm.ended for arm in arm_rows(odd)} == {
        "3": "another rate or seed of it went on",
        "2": "ran to the last rung",
        "4": "chosen",
        "0": "not trained further after 8 steps: +0.300, and no other gained more; P(best) 11%",
    }
    page = html_page(raced())
    assert "Never run, because the prediction or the budget put them behind: 1, 5." in page
    assert "The race" not in html_page(result())
    ranking = raced().ranking or ()
    sets = tuple(SetRow(layers=(row.layer, row.layer + 1), rungs=row.rungs) for row in ranking[1:3])
    assert [arm.ended for arm in arm_rows(result(sets=sets))][1] == (
        "not trained further after 8 steps: +0.020 against +0.050 of layers 2, 3"
    )


def test_everything_from_files_is_escaped(tmp_path: Path) -> None:
    bad = "<b onload=x>&"
    RunFolder(tmp_path).write(CONFIG, {"signature": "1", "verb": "pick", "model": bad})
    value = result(model=bad, task=bad, stop_reason=bad, notes=[bad], probes={bad: [0.1] * 6}, versions={bad: bad},
                   cost={bad: StageCost(generated_tokens=1, layer_tokens=1, seconds=1)})  # fmt: skip
    page = html_page(value, tmp_path)
    assert "<b" not in page.replace("<body", "") and page.count(html.escape(bad)) >= 8
    assert "onload" not in "".join(re.findall(r"<\w+[^>]*>", page.replace(html.escape(bad), "")))


def test_notebooks_show_the_verdict_and_the_ranking() -> None:
    shown = raced()._repr_html_()
    assert shown.startswith("<div class=autolayer>") and shown.endswith("</div>")
    assert "Layer 3 of 6" in shown and shown.count("<svg") == 1 and "To repeat it" not in shown
    assert not re.search(r"<script|https?://|src=|url\(|@import", shown)


def test_figures_are_files_of_their_own(tmp_path: Path) -> None:
    written = write_figures(raced(), None, tmp_path / "new")
    names = {path.name for path in written if path.suffix == ".svg"}
    assert names == {"contribution.svg", "race.svg", "probes.svg", "cost.svg"}
    for name in names:
        svg = ET.parse(tmp_path / "new" / name).getroot()
        assert svg.tag == "{http://www.w3.org/2000/svg}svg" and "light-dark" not in ET.tostring(svg, encoding="unicode")
    pytest.importorskip("resvg_py")
    assert (tmp_path / "new" / "race.png").read_bytes().startswith(b"\x89PNG")


def test_intervals_that_are_far_too_wide_do_not_squash_the_figure() -> None:
    rows = [replace(row, measured_low=-90.0, measured_high=90.0) for row in result().ranking or ()]
    svg = draw_figures(result(ranking=rows))["contribution"]
    places = [float(place) for place in re.findall(r'<circle[^>]* cy="([\d.]+)"', svg)]
    assert max(places) - min(places) > 80
    assert all(0 <= float(place) <= 320 for place in re.findall(r' y\d?="([-\d.]+)"', svg))


def test_ticks_are_round() -> None:
    assert Scale(-0.3, 1.4).ticks(6) == [0.0, 0.5, 1.0]
    assert Scale(0, 0.0007).ticks(6) == [0.0, 0.0002, 0.0004, 0.0006]
    assert Scale(1, 400).ticks(8) == [50 * place for place in range(1, 9)]


def test_the_final_run_s_rewards_come_from_its_history(tmp_path: Path) -> None:
    arm = "arms/layer-3_rate-0.001_seed-0/final/history.json"
    (tmp_path / arm).parent.mkdir(parents=True)
    RunFolder(tmp_path).write(arm, {"rewards": [[0.0, 1.0], [1.0, 1.0]]})
    assert training_rewards(tmp_path, result()) == [0.5, 1.0]
    assert training_rewards(tmp_path, result(learning_rate=2e-3)) == []
    assert "The final run" in html_page(result(), tmp_path) and "The final run" not in html_page(result())
    for name in (arm, CONFIG):  # a damaged file beside a whole result
        (tmp_path / name).write_text("{")
        assert html_page(result(), tmp_path) == html_page(result())


def test_completions_of_the_first_and_the_last_step_are_shown(tmp_path: Path) -> None:
    arm = tmp_path / "arms" / "layer-3_rate-0.001_seed-0"
    (arm / "final").mkdir(parents=True)
    RunFolder(tmp_path).write(f"arms/{arm.name}/final/history.json", {"rewards": []})
    rows = [
        {"arm": name, "step": step, "prompt": f"p{prompt}", "completion": f"<{step}{prompt}{take}", "reward": 1.0}
        for name in ("other", arm.name) for step in (1, 2, 9) for prompt in range(4) for take in "ab"
    ]  # fmt: skip
    assert first_and_last_completions(tmp_path, result()) == []
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / COMPLETIONS)
    shown = first_and_last_completions(tmp_path, result())
    assert [row["completion"] for row in shown] == ["<10a", "<11a", "<12a", "<90a", "<91a", "<92a"]
    page = html_page(result(), tmp_path)
    assert ["9", "p2", "<92a", "1.00"] in Cells(page).rows and "<92a" not in page
    assert "Completions before" not in html_page(result())
    assert "final run's step 1, which the base model wrote, and of step 9." in page
    parquet.write_table(pa.Table.from_pylist([row for row in rows if row["step"] == 2]), tmp_path / COMPLETIONS)
    assert "final run's step 2." in html_page(result(), tmp_path)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / COMPLETIONS, compression="none")
    for damaged in ((tmp_path / COMPLETIONS).read_bytes().replace(b"<92a", b"<92\xff"), b"PAR1"):
        (tmp_path / COMPLETIONS).write_bytes(damaged)
        assert first_and_last_completions(tmp_path, result()) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "tiny", "task": "math:arith", "budget": 3.0, "seed": 4, "learning_rate": 1e-3, "thinking": False},
        {"model": "a b", "data": "x.csv", "reward": ("a.py:f", "b.py:g"), "reward_weights": (1, 0.2), "shard": True,
         "columns": "prompt=q,answer=a", "layers": "2-5", "hours": None},
    ],
)  # fmt: skip
def test_the_command_repeats_the_run(settings: dict[str, object], tmp_path: Path) -> None:
    config = Config(**settings)  # pyright: ignore
    RunFolder(tmp_path).write(CONFIG, {"signature": "1", "verb": "pick", "base_hash": "x", **config.signed()})
    command = repeat_command(tmp_path)
    assert command is not None and command.startswith("autolayer pick --model ")
    with click.Context(ConfigCommand("pick")) as ctx:
        ctx.command.parse_args(ctx, shlex.split(command)[2:])
        assert Config(**read_values(ctx, {})).signature == config.signature


def test_the_command_names_what_it_cannot_hold(tmp_path: Path) -> None:
    assert repeat_command(tmp_path) is None
    search, server = "[search] of config.json in a --config file", "--rollouts vllm, or the URLs of vLLM servers"
    for settings, note in (
        ({"search": {"num_select": 9}}, search),
        ({"rollouts": "http://host:8000"}, server),
        ({"rollouts": "vllm", "search": {"num_select": 9}}, f"{search}, and {server}"),
    ):
        signed = Config(model="tiny", **settings).signed()  # pyright: ignore
        RunFolder(tmp_path).write(CONFIG, {"signature": "1", "verb": "pick", **signed})
        assert repeat_command(tmp_path) == f"autolayer pick --model tiny  # with {note}"


LOOK = """<body><script>
const found = [];
for (const width of [390, 900]) {
  const frame = document.createElement("iframe");
  frame.srcdoc = PAGE; frame.style.width = width + "px"; document.body.append(frame);
  frame.onload = () => {
    const page = frame.contentDocument;
    if (page.documentElement.scrollWidth > width) found.push(width + " scrolls sideways");
    for (const svg of page.querySelectorAll("svg")) {
      const texts = [...svg.querySelectorAll("text")].map(one => [one.textContent, one.getBoundingClientRect()]);
      const all = svg.getBoundingClientRect();
      texts.forEach(([name, a], at) => {
        if (a.left < all.left - 1 || a.right > all.right + 1) found.push(width + " cuts " + name);
        for (const [other, b] of texts.slice(at + 1))
          if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
              Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
            found.push(width + ": " + name + " on " + other);
      });
    }
    document.body.dataset["at" + width] = found.join("; ") || "fine";
  };
}
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("num_layers", [6, 36])
def test_a_browser_shows_it_on_a_phone_and_on_a_desk(num_layers: int, tmp_path: Path) -> None:
    middle = num_layers // 2
    baselines = {"middle": Baseline(layer=middle), "position": Baseline(layer=middle + 1)}
    page = html_page(raced(num_layers, baselines=baselines))
    looking = tmp_path / "look.html"
    looking.write_text(LOOK.replace("PAGE", json.dumps(page).replace("</", "<\\/")), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=4000",
    ]
    command = [str(CHROMIUM), *options, "--dump-dom", looking.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = dict(re.findall(r'data-at(\d+)="([^"]*)"', seen.stdout))
    assert found == {"390": "fine", "900": "fine"}, (seen.returncode, seen.stderr[-500:])
