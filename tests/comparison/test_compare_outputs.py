"""`compare`: its report, its JSON, its figures, its errors."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compare_helpers import TRUTH, contribution, files, picked, saved, shown

import autolayer
from autolayer.cli.main import main
from autolayer.comparison.compare import compare
from autolayer.core.errors import AutolayerError


def test_the_report_has_every_row_and_fits() -> None:
    found = compare(picked(), *files(3))
    text = shown(found)
    for name in ("prediction", "random", "first", "middle", "last", "position", "gradient_norm", "sign_gain"):
        assert len(re.findall(rf"^{name} +-?\d", text, re.MULTILINE)) == 3, name
    assert "noise ceiling 0.90" in text and "nan" not in text and "None" not in text
    for width in (40, 60, 80, 200):
        lines = shown(found, width).splitlines()
        assert max(map(len, lines)) <= width and not any("…" in line for line in lines)


def call(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as leaving:
        main(list(arguments))
    out, err = capfd.readouterr()
    return leaving.value.code, out, err


def test_json_is_one_object_and_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, measured = saved(tmp_path / "run", picked()), saved(tmp_path / "measured", contribution())
    out = tmp_path / "a" / "b"
    code, text, _ = call(capfd, "compare", str(run), str(measured), "--json", "--out", str(out))
    values = json.loads(text)
    assert code == 0 and list(values) == ["schema_version", "comparisons"] and values["schema_version"] == 1
    assert text == (out / "comparison.json").read_text()
    assert "NaN" not in text and values["comparisons"][0]["rows"][0]["name"] == "prediction"
    code, text, _ = call(capfd, "compare", str(run), str(measured), "--out", str(out))
    assert code == 0 and "Spear" in text and "comparison.svg" in text.replace("\n", "")


def test_what_the_user_can_mend_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for arguments in ([], ["nowhere"], ["nowhere", "published:qwen3-1.7b"], ["published:qwen3-1.7b", "published:x"],
                      ["published:qwen3-1.7b", "published:qwen3-1.7b", "--out", str(tmp_path / "file")]):  # fmt: skip
        code, out, err = call(capfd, "compare", *arguments)
        assert code == 2 and out == "" and err.startswith("autolayer: error: ") and err.count("\n") == 1


def test_figures_are_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        compare(picked(), *files(2), out=tmp_path / folder)
    for name in ("comparison.png", "comparison.svg", "comparison.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    svg = (tmp_path / "one" / "comparison.svg").read_text()
    assert "predicted [80% interval]" in svg and "measured [95% interval]" in svg and "dc:date" not in svg
    assert all(name in svg for name in ("position", "middle", "first", "last", "noise ceiling 0.90"))
    assert (tmp_path / "one" / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["own scale", "itself", "no error bars"])
def test_figures_of_less_usual_inputs(tmp_path: Path, kind: str) -> None:
    (tmp_path / "p.csv").write_text("layer,predicted\n" + "".join(f"{i},{1e4 * v}\n" for i, v in enumerate(TRUTH)))
    measured: Any = "published:qwen3-1.7b" if kind == "no error bars" else contribution(model="$x_1$")
    predicted: Any = {"own scale": tmp_path / "p.csv", "itself": measured, "no error bars": tmp_path / "p.csv"}[kind]
    compare(predicted, measured, out=tmp_path)
    svg = (tmp_path / "comparison.svg").read_text()
    assert ("predicted (own scale)" in svg) == (kind != "itself")


def test_without_matplotlib_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(AutolayerError, match=r"pip install -e '\.\[figures\]'"):
        compare(picked(), contribution(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert compare(picked(), contribution()).comparisons, "no figure, no matplotlib"


def test_it_is_a_verb_of_the_library_and_needs_no_torch(tmp_path: Path) -> None:
    assert autolayer.compare is compare and "compare" in autolayer.__all__
    code = (
        "import sys, autolayer\n"
        "autolayer.compare('published:qwen3-1.7b', 'published:qwen3-1.7b')\n"
        "print(callable(autolayer.compare), *{'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
