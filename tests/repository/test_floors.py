"""The rooms of the package stand on floors: an import points down or stays in its room."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import autolayer

ROOT = Path(__file__).parents[2]
FLOORS = (
    ("__main__",),
    ("cli",),
    ("__init__",),
    ("measurement", "comparison"),
    ("pipeline",),
    ("probes", "search"),
    ("training",),
    ("rollouts",),
    ("models",),
    ("distributed",),
    ("tasks", "reporting"),
    ("core",),
)
"""Folders of `autolayer/`, from the top down. Rooms on one floor do not know each other."""

HOMES = {
    "trl": {"training.trl_compat"},
    "vllm": {"rollouts.engines.vllm_local", "rollouts.engines.vllm_compat"},
    "optuna": {"search"},
    "torch.distributed.fsdp": {"distributed.fsdp"},
}
"""The only rooms or modules that may import a library whose private parts change with every release."""
LATE = {"reporting.results": {"reporting.html"}}
"""The only import that closes a circle: a notebook asks a result for its page, which is made of the result. It is
inside the method, so both modules are complete by then."""


def modules() -> dict[str, Path]:
    """Maps every module of the package ('training.workbench') to its file; 'probes' and 'search' are links."""
    found = {}
    for path in sorted((ROOT / "autolayer").rglob("*.py")):
        found[".".join(path.relative_to(ROOT / "autolayer").with_suffix("").parts)] = path
    for room in ("probes", "search"):
        found.update({f"{room}.{path.stem}": path for path in sorted((ROOT / room).glob("*.py"))})
    return found


def floor(module: str) -> int:
    """Returns the number of a module's floor, counted from the top."""
    room = module.split(".")[0]
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    pytest.fail(f"autolayer/{room} is not in FLOORS: give it a floor")


def imports(path: Path) -> Iterator[str]:
    """Yields every absolute name that a file imports, inside functions, under TYPE_CHECKING and by its text too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno}: only absolute imports"
            # `from autolayer import cli` may name a module as well as an object.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (name for each in node.args if isinstance(name := getattr(each, "value", None), str))


def ours(module: str, path: Path) -> set[str]:
    """Returns the modules of this package that a file imports, without itself."""
    known, found = modules(), set()
    for name in imports(path):
        parts = name.split(".")[1:] if name.split(".")[0] == "autolayer" else []
        while parts and ".".join(parts) not in known and ".".join([*parts, "__init__"]) not in known:
            parts.pop()
        if parts:
            found.add(".".join(parts) if ".".join(parts) in known else ".".join([*parts, "__init__"]))
    return found - {module}


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    here = module.split(".")[0]
    for other in ours(module, modules()[module]):
        there = other.split(".")[0]
        assert there == here or floor(other) > floor(module), f"{module} must not import {other}: it is not below"


def test_no_circles() -> None:
    graph = {module: ours(module, path) for module, path in modules().items()}
    for module, late in LATE.items():
        assert late <= graph[module], f"{module} imports no {late}: take it out of LATE"
        graph[module] -= late
    while leaves := [module for module, needs in graph.items() if not needs]:
        graph = {module: needs - set(leaves) for module, needs in graph.items() if module not in leaves}
    assert not graph, f"these modules import each other, or something that does: {sorted(graph)}"


def test_an_import_by_its_text_is_seen(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text('import importlib\nimportlib.import_module("autolayer.cli").main()')
    assert set(imports(tmp_path / "late.py")) == {"importlib", "autolayer.cli"}


def test_each_library_stays_in_its_home() -> None:
    for module, path in modules().items():
        for name in imports(path):
            homes = next((rooms for library, rooms in HOMES.items() if f"{name}.".startswith(f"{library}.")), None)
            known = homes is None or any(f"{module}.".startswith(f"{home}.") for home in homes)
            assert known, f"{module} imports {name}: only {homes} may"


def test_no_module_hides_a_verb_of_the_library() -> None:
    """A module autolayer/pick.py would replace `autolayer.pick`, the function, once imported."""
    assert not set(autolayer.__all__) & {module.split(".")[0] for module in modules()}


@pytest.mark.parametrize("room", ["core", "search"])
def test_a_room_is_free_of_torch(room: str) -> None:
    names = [f"autolayer.{name}" for name in modules() if name.startswith(f"{room}.") and "__init__" not in name]
    assert loaded(f"import {', '.join(names)}") & {"torch", "transformers"} == set()


def test_import_autolayer_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "numpy", "pydantic", "click", "rich", "probes", "search"}
    assert loaded("import autolayer") & heavy == set()


def test_every_public_name_is_there() -> None:
    assert set(autolayer.__all__) <= set(dir(autolayer))
    assert all(getattr(autolayer, name).__name__ == name for name in autolayer.__all__)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from autolayer.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert loaded(code) & {"torch", "transformers", "numpy", "optuna", "rich", "pydantic"} == set()


@pytest.mark.slow
def test_one_copy_of_probes_and_search() -> None:
    """`import probes` from the repository root would be a second copy of autolayer.probes."""
    assert loaded("import autolayer.probes, autolayer.search") & {"probes", "search"} == set()


def loaded(code: str) -> set[str]:
    """Returns the top-level modules in sys.modules after the code ran in a fresh interpreter."""
    code += "\nimport sys; print('\\n' + ' '.join(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())
