"""Reports for people: the headline, the terminal report at any width, report.html, and progress."""

import html
import io
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from result_helpers import result
from rich.console import Console

from autolayer import TerminalProgress
from autolayer.core.layer_set import name_layers
from autolayer.core.progress import Progress
from autolayer.reporting.html import html_page
from autolayer.reporting.results import PickResult, RankingRow, SetRow
from autolayer.reporting.sentences import headline, headline_parts
from autolayer.reporting.terminal import Report

AFTER_CALIBRATE = PickResult(
    status="incomplete", model="tiny", task="math:arith", algorithm="grpo", num_layers=6, seed=0,
    candidates=(0, 1, 2, 3, 4, 5), signature="0123456789", base_score=0.41,
)  # fmt: skip


def after_probe() -> PickResult:
    ranking = [
        replace(
            row,
            measured=None,
            measured_low=None,
            measured_high=None,
            measured_steps=None,
            probability_best=None,
            expected=None,
            expected_low=None,
            expected_high=None,
        )
        for row in result().ranking or ()
    ]
    later = ("tied_layers", "trained_layers", "verdict", "stop_reason", "trained_score", "gain", "base_score",
             "contribution_reference", "expected_regret")  # fmt: skip
    return result(status="incomplete", ranking=ranking, **dict.fromkeys(later))


TRAINED = "Layer 3 of 6: score 0.410 -> 0.630 (+0.220, 95% interval +0.170 to +0.270)."


def shown(value: PickResult, width: int = 80, **options: Any) -> str:
    """Returns the report as text."""
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(Report(value, **options))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (result(), f"{TRAINED} The clear winner: the best with probability 0.90."),
        (result(stop_reason="layer 3 is the only candidate"), f"{TRAINED} There was no other candidate."),
        (result(verdict="tied", best_layers=(4,), trained_layers=(4,), tied_layers=(2, 3, 4)),
         "Layer 4 of 6: score 0.410 -> 0.630 (+0.220, 95% interval +0.170 to +0.270). "
         "No clear winner: layers 2 and 3 are expected to do as well; a training step of layer 4 takes 80% of the work "
         "of one of layer 2."),
        (result(verdict="tied", tied_layers=(3, 4)),
         f"{TRAINED} No clear winner: layer 4 is expected to do as well."),
        (result(verdict="tied"), f"{TRAINED} No other choice could gain enough more to matter."),
        (result(verdict="budget_spent", tied_layers=(0, 1, 2, 3, 5)),
         f"{TRAINED} No clear winner: layers 0-2 and 5 are expected to do as well."),
        (result(verdict="budget_spent", tied_layers=(0, 2, 3), candidates=(0, 2, 3), ranking=[
            RankingRow(layer=layer, expected=expected) for layer, expected in ((3, 0.9), (2, 0.86), (0, 0.7))
         ]),
         f"{TRAINED} No clear winner: layer 2 is expected to do as well, and layer 0 is not ruled out."),
        (result(verdict="budget_spent"),
         f"{TRAINED} No clear winner when the search ended: the best with probability 0.90."),
        (result(trained_layers=None, gain=None, trained_score=None),
         "Layer 3 of 6 is chosen and not trained yet. The clear winner: the best with probability 0.90."),
        (result(best_layers=(1, 2), sets=[SetRow(layers=(1, 2), probability_best=0.4)], trained_layers=(1, 2)),
         "Layers 1 and 2 of 6: score 0.410 -> 0.630 (+0.220, 95% interval +0.170 to +0.270). "
         "The clear winner: the best with probability 0.40."),
        (result(verdict=None, trained_layers=range(6)),
         "All 6 layers: score 0.410 -> 0.630 (+0.220, 95% interval +0.170 to +0.270)."),
        (after_probe(), "Not finished: layer 3 of 6 is best so far, by prediction only."),
        (AFTER_CALIBRATE, "Not finished: the base model has a training signal, and no layer has been tried yet."),
    ],
)  # fmt: skip
def test_headline(value: PickResult, sentence: str) -> None:
    assert headline(value) == sentence
    assert shown(value, width=300).splitlines()[0] == sentence


def test_the_whole_report(tmp_path: Path) -> None:
    (tmp_path / "layer.safetensors").touch()
    text = shown(result(), width=200, folder=tmp_path)
    best = next(line for line in text.splitlines() if ">3" in line)
    assert "best, middle" in best and "0.90 [0.50, 1.30]" in best and "90%" in best and "██████████" in best
    assert all(name in text for name in ("random", "first", "middle", "last"))
    assert "The gain is paired over 256 items of the eval split" in text
    assert "Finding the layer cost 24% of one full training run." in text
    assert re.search(r"search +12\.3k +23\.0M +1 min 15 s", text)
    assert "layer.safetensors  the trained weights" in text and "report.html" not in text
    assert text.rstrip().endswith(f"Next: autolayer merge {tmp_path} --out {tmp_path / 'merged'}")


def test_a_model_that_became_worse_is_not_recommended(tmp_path: Path) -> None:
    before = result()
    assert before.gain is not None
    worse = replace(before, trained_score=0.1, gain=replace(before.gain, value=-0.3, low=-0.4, high=-0.2))
    text = shown(worse, width=120, folder=tmp_path)
    assert "The trained model is WORSE than the base: do not use it." in text and "--learning-rate" in text
    assert "autolayer merge" not in text


def test_unfinished_runs_say_how_to_go_on(tmp_path: Path) -> None:
    for value in (after_probe(), AFTER_CALIBRATE):
        text = shown(value, width=120, folder=tmp_path)
        assert "Next: run the same command again (without --until, with more --hours) to continue from here." in text
        assert "nan" not in text.lower() and "None" not in text


@pytest.mark.parametrize(
    ("layers", "text"),
    [((), "no layer"), ((3,), "layer 3"), ((4, 3), "layers 3 and 4"), ((0, 1, 3, 4, 5, 7), "layers 0, 1, 3-5 and 7")],
)
def test_layers_are_named_in_order_and_runs_as_ranges(layers: tuple[int, ...], text: str) -> None:
    assert name_layers(layers) == text


def test_long_rankings_are_cut_but_not_their_baselines() -> None:
    text = shown(result(36))
    assert "22 more layers are hidden" in text
    assert "middle" in text and "last" in text
    assert sum(bool(re.match(r"\s+>?\d+ ", line)) for line in text.splitlines()) == 14
    assert "hidden" not in shown(result(36), show_all=True)


def test_a_run_of_named_layers_has_no_ranking() -> None:
    told = shown(result(verdict=None, stop_reason=None, expected_regret=None))
    assert "P(best)" not in told and "0.410 -> 0.630" in told
    assert "P(best)" in shown(result()) and "expected" in shown(result())
    assert "P(best)" not in shown(after_probe()) and "predicted" in shown(after_probe())


def test_baselines_outside_the_candidates_have_a_row() -> None:
    value = result(ranking=list(result().ranking or ())[:3], candidates=[2, 3, 4])
    assert re.search(r"^\s+5  last", shown(value), re.MULTILINE)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_the_terminal(width: int) -> None:
    lines = shown(result(36), width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines[:15]), "the ranking must not be cut off"
    assert ("[0.60, 1.00]" in "".join(lines)) == (width >= 80)
    assert ("[-0.20, 1.20]" in "".join(lines)) == (width >= 120)
    assert ("█" in "".join(lines)) == (width >= 120)


def test_no_color_means_no_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, width=80).print(Report(result()))
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", stream.getvalue())


def test_ascii_terminals_get_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=stream, width=120).print(Report(result()))
    stream.flush()
    assert b"##########" in stream.buffer.getvalue()  # type: ignore[attr-defined]


class _Balanced(HTMLParser):
    """Checks that every opened tag is closed, except where HTML does not ask for it."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("value", [result(), result(36), after_probe(), AFTER_CALIBRATE])
def test_html_is_one_quiet_file(value: PickResult, tmp_path: Path) -> None:
    page = html_page(value)
    parser = _Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"<script|https?://|src=|url\(|@import", page), "it must work offline"
    answer, confidence = headline_parts(value)
    assert f"<h1>{html.escape(answer)}</h1>" in page and html.escape(confidence) in page
    assert ("<svg" in page) == (value.ranking is not None)
    assert "nan" not in page and "None" not in page


def test_progress_without_a_terminal_is_plain_and_rare() -> None:
    stream = io.StringIO()
    with TerminalProgress(stream=stream).stage("calibrate", total=100) as stage:
        for _ in range(100):
            stage.advance(note="pass rate 41%")
    assert re.fullmatch(r"calibrate  done in \d\.\d s: pass rate 41%\n", stream.getvalue())


def test_progress_lines_tell_share_and_time_left() -> None:
    stream = io.StringIO()
    with TerminalProgress(stream=stream, every=0).stage("search", total=4) as stage:
        stage.advance(note="layer 3 leads")
    assert re.match(r"search  25% after \S+ s, about \S+ s left: layer 3 leads\n", stream.getvalue())


def test_a_stage_that_tells_nothing_gets_a_line_all_the_same() -> None:
    stream = io.StringIO()
    with TerminalProgress(stream=stream, quiet=0.1).stage("calibrate"):
        deadline = time.monotonic() + 20
        while stream.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert re.fullmatch(r"(calibrate  after \d\.\d s\n){2,}calibrate  done in \S+ s\n", stream.getvalue())


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_leaves_one_line_per_stage() -> None:
    stream = _Terminal()
    progress = TerminalProgress(stream=stream)
    with progress.stage("search", total=2) as outer, progress.stage("rung", total=None) as inner:
        inner.advance(note="step 8")
        outer.advance(1)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert re.search(r"  rung  done in \S+ s: step 8", plain) and re.search(r"search  done in", plain)


def test_the_live_line_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream, note = _Terminal(), "leader layer 12 (24%), budget 45% spent"
    progress = TerminalProgress(stream=stream)
    with progress.stage("search", total=1.0) as stage:
        stage.advance(0.4, note)
        assert progress._bars is not None
        progress._bars.refresh()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert re.search(rf"\rsearch .{{12}} \d:\d\d:\d\d left \S+ {re.escape(note)}", plain)


def test_a_failing_stage_is_not_called_done() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), TerminalProgress(stream=stream).stage("probe"):
        raise KeyError
    assert "probe  stopped after" in stream.getvalue()


def test_silent_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress().stage("probe", total=3) as stage:
        stage.advance(1, note="x")
    assert stage.completed == 1
    assert capfd.readouterr() == ("", "")
