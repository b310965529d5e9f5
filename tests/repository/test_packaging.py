"""A user's installation: wheel and sdist are whole and run outside the repository.

Built without the network (setuptools is in the `dev` extra) from a copy, so that nothing is left in the repository.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from autolayer.reporting.results import PickResult

ROOT = Path(__file__).parents[2]
SOURCES = ("autolayer", "probes", "search", "pyproject.toml", "README.md", "LICENSE")
NEEDED = {
    "autolayer/cli/main.py",
    "autolayer/py.typed",
    "autolayer/reporting/contribution.schema.json",
    "autolayer/reporting/export_templates/trl.jinja",
    "autolayer/reporting/fragment.html.jinja",
    "autolayer/reporting/figures.css.jinja",
    "autolayer/reporting/report.html.jinja",
    "autolayer/reporting/result.schema.json",
    "autolayer/tasks/__init__.py",
    "autolayer/probes/__init__.py",
    "autolayer/search/__init__.py",
    "autolayer/data/code/small.jsonl",
    "autolayer/data/published/README.md",
    "autolayer/data/published/curves.toml",
    "autolayer/data/published/qwen3-1.7b.csv",
    "autolayer/data/tiny-2/config.json",
    "autolayer/data/tiny-2/model.safetensors",
    "autolayer/data/tiny-qwen2-2/model.safetensors",
    "autolayer/data/tiny-2/tokenizer.json",
}
QUICK = ("--steps", "2", "--prompts-per-step", "4", "--group-size", "4", "--max-new-tokens", "8", "--num-eval", "8",
         "--layers", "0,1", "--budget", "4")  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, the wheel, and the wheel that pip makes of the sdist."""
    folder = tmp_path_factory.mktemp("packaging")
    source, dist = folder / "source", folder / "dist"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source / name)
    _python("-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", dist, source, cwd=folder)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    again = folder / "from_sdist"
    _python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", again, sdist, cwd=folder)
    (from_sdist,) = again.glob("*.whl")
    return {"wheel": wheel, "sdist": sdist, "wheel from sdist": from_sdist}


@pytest.mark.parametrize("name", ["wheel", "wheel from sdist"])
def test_wheel_holds_what_runs_and_nothing_else(artifacts: dict[str, Path], name: str) -> None:
    names = set(zipfile.ZipFile(artifacts[name]).namelist())
    folders = {"autolayer": "autolayer", "probes": "autolayer/probes", "search": "autolayer/search"}
    expected = NEEDED | {
        f"{inside}/{path.relative_to(ROOT / folder)}"
        for folder, inside in folders.items()
        for path in (ROOT / folder).rglob("*.py")
        if path.relative_to(ROOT).parts[:2] not in (("autolayer", "probes"), ("autolayer", "search"))
    }
    assert not expected - names, f"missing: {sorted(expected - names)}"
    strangers = {name for name in names if not name.startswith(("autolayer/", "autolayer-"))}
    assert not strangers, f"would land beside other people's packages: {sorted(strangers)}"


def test_sdist_holds_sources_and_license(artifacts: dict[str, Path]) -> None:
    with tarfile.open(artifacts["sdist"]) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "probes/__init__.py", "search/__init__.py"} <= names


@pytest.fixture(scope="module")
def installed(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """The bin folder of a bare environment that holds the artifact, and sees this one's other packages."""
    venv = tmp_path_factory.mktemp("venv")
    _python("-m", "venv", "--without-pip", venv, cwd=venv)
    scripts = venv / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    install = ("--no-index", "--no-deps", "--quiet", artifacts["wheel from sdist"])
    _python("-m", "pip", "--python", python, "install", *install, cwd=venv)
    # Packages of this environment come second on the path, and .pth files among them (an editable autolayer) are not
    # followed: only the artifact can be what is imported.
    inside = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    Path(inside.stdout.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def test_the_artifact_is_what_is_imported(installed: Path, tmp_path: Path) -> None:
    code = "import autolayer, autolayer.probes, autolayer.search as s; print(autolayer.__file__, s.__file__, sep='\\n')"
    done = _run(installed / "python", "-c", code, cwd=tmp_path)
    assert all(Path(line).is_relative_to(installed.parent) for line in done.splitlines()), done


def test_the_console_script_answers(installed: Path, tmp_path: Path) -> None:
    assert "pick" in _run(installed / "autolayer", "--help", cwd=tmp_path)
    assert "math:arith" in _run(installed / "autolayer", "tasks", cwd=tmp_path)


@pytest.mark.slow
def test_pick_runs_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    task = ("--model", "tiny", "--task", "math:arith")
    out = _run(installed / "autolayer", "pick", *task, *QUICK, "--out", "run", "--json", cwd=tmp_path)
    result = PickResult.from_dict(json.loads(out))
    assert result.status == "ok" and set(result.trained_layers or ()) <= {0, 1}
    _run(installed / "autolayer", "merge", "run", "--out", "merged", cwd=tmp_path)
    assert (tmp_path / "merged" / "config.json").exists()


def _python(*arguments: str | Path, cwd: Path) -> str:
    return _run(sys.executable, *arguments, cwd=cwd)


def _run(*command: str | Path, cwd: Path) -> str:
    """Returns stdout. PYTHONPATH is left out: it could lead back to the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr[-3000:]}"
    return done.stdout
