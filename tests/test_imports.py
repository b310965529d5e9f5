"""Imports point down only, and cheap things stay cheap. Run: pytest tests/test_imports.py"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import autolayer

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "autolayer": "autolayer", "autolayer.tasks": "autolayer/tasks", "autolayer.tasks.math": "autolayer/tasks/math",
    "autolayer.tasks.code": "autolayer/tasks/code", "autolayer.tasks.agent": "autolayer/tasks/agent",
    "autolayer.measuring": "autolayer/measuring",
    "autolayer.comparing": "autolayer/comparing", "autolayer.probes": "probes", "autolayer.search": "search",
}  # fmt: skip

TIERS = (
    ("errors", "config", "results", "runs", "costs", "arms", "progress", "stats", "plan", "contribution", "positions",
     "files",
     "measuring.estimate", "comparing.metrics", "comparing.resampling", "comparing.curves", "comparing.comparison"),
    ("layers", "freeze", "models", "patch", "tasks", "precision", "model_checks", "checkpoints", "masks", "lora",
     "recompute", "memory", "ranks", "shards", "quantize"),
    ("rollouts", "engine", "transformers_engine", "copy_engine", "vllm_engine", "vllm_client",
     "vllm_server", "scoring", "trainer",
     "optimizer", "sample", "episodes", "gigpo", "evaluation", "fit", "boundary", "reference", "passes"),
    ("workbench", "segment", "first_step", "shared_pass", "calibrate"),
    ("probes", "search", "report", "page", "export"),
    ("stages", "sets", "prepare", "summary", "dryrun", "room", "pace", "doctor", "pipeline", "measuring", "comparing"),
    ("cli", "cli_options", "__main__"),
)  # fmt: skip
"""From the ground up. A module imports from lower tiers and from its own, where no cycle comes of it."""

HOME_OF = {"trl": {"trainer", "scoring"}, "vllm": {"vllm_engine"}, "optuna": {"search"}, "bitsandbytes": {"quantize"}}
"""Libraries whose seams move with every release, and the only ones that may know them."""

STRANGERS = [("probes", "search"), ("search", "probes")]
"""The prediction reaches the search as numbers, through the pipeline."""


def modules() -> dict[str, Path]:
    """Every module of the package: 'tasks.math.arith' -> its file. The package's own __init__ is left out."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).glob("*.py")):
            parts = [*package.split(".")[1:], *([] if path.stem == "__init__" else [path.stem])]
            if parts:
                found[".".join(parts)] = path
    return found


def imports(path: Path, *, with_type_checking: bool = True) -> Iterator[str]:
    """Absolute names that a file imports, inside functions too."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not with_type_checking:
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno}: only absolute imports"
            # `from autolayer import cli` may name a module as well as an object.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))


def ours(path: Path, **options: bool) -> set[str]:
    """Our modules that a file imports."""
    known = modules()
    found = set()
    for name in imports(path, **options):
        parts = name.split(".")[1:] if name.startswith("autolayer.") else []
        while parts and ".".join(parts) not in known:
            parts.pop()
        found.add(".".join(parts))
    return found - {""}


def tier(module: str) -> int:
    part = module.split(".")[0]
    for name in (module, part):
        for number, names in enumerate(TIERS):
            if name in names:
                return number
    pytest.fail(f"autolayer/{part} is not in TIERS of {Path(__file__).name}: put it where it belongs")


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    upward = {other for other in ours(modules()[module]) if tier(other) > tier(module)}
    assert not upward, f"{module} stands below {sorted(upward)} and must not import them"


@pytest.mark.parametrize(("part", "other"), STRANGERS)
def test_probes_and_search_do_not_know_each_other(part: str, other: str) -> None:
    for module, path in modules().items():
        if module.split(".")[0] == part:
            known = {name for name in ours(path) if name.split(".")[0] == other}
            assert not known, f"{module} imports {sorted(known)}"


def test_no_cycles() -> None:
    graph = {module: ours(path, with_type_checking=False) - {module} for module, path in modules().items()}
    while leaves := [module for module, needs in graph.items() if not needs]:
        graph = {module: needs - set(leaves) for module, needs in graph.items() if module not in leaves}
    assert not graph, f"these import each other (or something that does): {graph}"


def test_each_library_stays_in_its_home() -> None:
    for module, path in modules().items():
        for name in imports(path):
            homes = HOME_OF.get(name.split(".")[0])
            assert homes is None or module.split(".")[0] in homes, f"{module} imports {name}: only {homes} may"


def test_no_module_hides_a_verb_of_the_library() -> None:
    """Importing autolayer/pick.py would put the module where `autolayer.pick`, the function, is expected."""
    assert not set(autolayer.__all__) & set(modules())


def test_search_is_free_of_torch() -> None:
    names = [name for name in modules() if name.split(".")[0] == "search"]
    assert loaded(f"import {', '.join(f'autolayer.{name}' for name in names)}") & {"torch", "transformers"} == set()


def test_the_ground_floor_is_free_of_torch() -> None:
    names = [f"autolayer.{name}" for name in TIERS[0] if name in modules()]
    assert loaded(f"import {', '.join(names)}") & {"torch", "transformers"} == set()


def test_import_autolayer_loads_nothing_heavy() -> None:
    assert loaded("import autolayer") & {"torch", "transformers", "numpy", "click", "rich", "probes", "search"} == set()


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from autolayer.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert loaded(code) & {"torch", "transformers", "numpy", "optuna", "rich", "jsonschema"} == set()


def test_one_copy_of_probes_and_search() -> None:
    """`import probes` from the repository root would be a second copy of autolayer.probes."""
    assert loaded("import autolayer.probes, autolayer.search") & {"probes", "search"} == set()


def loaded(code: str) -> set[str]:
    """Top-level modules in sys.modules after the code, in a fresh interpreter at the repository root."""
    code += "\nimport sys; print('\\n' + ' '.join(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())
