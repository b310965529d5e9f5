"""`report --regret --top-k` decides again from a run's own measurements, and leaves the run as it is."""

import json
from pathlib import Path

import pytest
from pick_helpers import short_pick

from autolayer.cli.main import main
from autolayer.core.errors import ConfigError, RunFolderError
from autolayer.pipeline.decide_again import decide_run_again


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_search_is_decided_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    first = short_pick(out, layers="2-5", steps=16, budget=2.0, until="search")
    before = files(out)
    again = decide_run_again(out)
    for name in ("best_layers", "tied_layers", "verdict", "expected_regret", "learning_rate", "ranking"):
        assert getattr(again, name) == getattr(first, name), name
    assert first.ranking is not None and any(row.rungs for row in first.ranking), "something was measured"
    lax = decide_run_again(out, regret=10.0)
    assert lax.verdict in ("clear", "tied") and "--regret 10" in lax.notes[0]
    three = decide_run_again(out, top_k=3)
    by_expected = sorted((row for row in first.ranking), key=lambda row: -(row.expected or 0.0))
    assert three.best_layers == tuple(sorted(row.layer for row in by_expected[:3])) and three.expected_regret is None
    with pytest.raises(ConfigError, match="--top-k 9 cannot be decided here: this run can choose among 4 layers"):
        decide_run_again(out, top_k=9)
    for regret, top_k in ((float("nan"), None), (0.0, None), (None, 0)):
        with pytest.raises(ConfigError, match="cannot work"):
            decide_run_again(out, regret=regret, top_k=top_k)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(out), "--regret", "0.1", "--top-k", "3", "--json"])
    assert not ended.value.code and json.loads(capsys.readouterr().out)["best_layers"] == list(three.best_layers or ())
    assert files(out) == before
    (out / "study.db").unlink()
    with pytest.raises(RunFolderError, match="has no study.db"):
        decide_run_again(out)
