"""The cells of the notebook run in their order, on the packaged model in place of those that are downloaded."""

import ast
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from autolayer.cli.main import main

BOOK = json.loads((Path(__file__).parents[2] / "examples" / "find_a_layer.ipynb").read_text())
CELLS = [
    ("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in BOOK["cells"] if cell["cell_type"] == "code"
]
SHORT = {"model": "tiny", "task": "math:arith", "device": "cpu", "layers": "1-3", "prompts_per_step": 4, "num_eval": 16,
         "budget": 1.0}  # fmt: skip
PARAMETERS: dict[str, Any] = {"SMALL": {**SHORT, "steps": 2}, "LARGER": {**SHORT, "steps": 3}, "PROMPT": "37~25="}
"""Put in place of the cell with the tag `parameters`, as papermill does."""


def test_the_notebook_holds_no_output_and_installs_once() -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in BOOK["cells"] if "outputs" in cell)
    assert [tags for _, tags in CELLS if tags] == [["install"], ["parameters"]]
    assert "torch=={torch.__version__}" in next(source for source, tags in CELLS if tags == ["install"])


def test_the_options_of_the_notebook_are_those_of_a_run() -> None:
    from autolayer import Config

    given: dict[str, Any] = {}
    exec(next(source for source, tags in CELLS if tags == ["parameters"]), given)
    assert set(PARAMETERS) == {name for name in given if name.isupper()}
    assert Config(**given["SMALL"]) and Config(**given["LARGER"])


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = dict(PARAMETERS)
    shown = [show(source, names) for source, tags in CELLS if not tags]
    assert "layer" in shown[0] and shown[0].startswith("<"), shown[0]
    assert names["trained"].trained_layers == names["found"].best_layers
    assert (tmp_path / "merged" / "config.json").exists()
    assert capsys.readouterr().out.strip()


def show(source: str, names: dict[str, Any]) -> str:
    """Runs a cell, and returns what a notebook shows of its last expression; `!autolayer` runs in this process."""
    if source.startswith("!autolayer "):
        with pytest.raises(SystemExit, match="0"):
            main(shlex.split(source)[1:])
        return ""
    *body, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        exec(source, names)
        return ""
    exec(compile(ast.Module(body, []), "notebook", "exec"), names)
    value = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)
    return "" if value is None else value._repr_html_()
