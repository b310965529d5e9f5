"""docs/architectures.md: the table of examples/architectures.py is complete, and a few of its rows are tried again."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from autolayer.models.freeze_report import freeze_report
from autolayer.models.layer_names import names_in
from autolayer.models.layers import layer_parameters, linear_module_names
from autolayer.models.names import model_path
from autolayer.reporting.export import linear_pattern, parameter_pattern

ROOT = Path(__file__).parents[2]


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("architectures", ROOT / "examples" / "architectures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXAMPLE = load_example()
ROWS = dict(re.findall(r"^\| (\w+) \| (.+) \|$", EXAMPLE.PAGE.read_text(), re.M))


def test_the_page_has_every_architecture_and_two_kinds_of_results() -> None:
    rows = {name: result for name, result in ROWS.items() if name != "Architecture"}
    assert list(rows) == list(EXAMPLE.ARCHITECTURES)
    assert all(result == "works" or result.startswith("refused: ") for result in rows.values())
    assert EXAMPLE.page(rows) == EXAMPLE.PAGE.read_text()
    assert not re.search("traceback|this is a bug", EXAMPLE.PAGE.read_text(), re.I)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bloom", "gptj", "rwkv", "falcon_h1", "phimoe", "gemma3n_text", "gemma4_text", "llama4_text", "xlstm"]
)
def test_a_row_is_what_happens(name: str, tmp_path: Path) -> None:
    """Blocks that return tuples, keep states, share keys or differ in width, and classes that are refused."""
    assert EXAMPLE.attempt(name, tmp_path) == ROWS[name]


@pytest.mark.slow
def test_patterns_of_every_architecture_find_what_is_trained() -> None:
    """`export` chooses parameters and linear modules by their names, which each architecture has its own of."""
    tokenizer = AutoTokenizer.from_pretrained(model_path("tiny"))
    for architecture in set(EXAMPLE.ARCHITECTURES) - {"longcat_flash", "hrm_text"}:  # without one list of blocks
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(EXAMPLE.small_config(architecture, tokenizer))
        for layers in ((1,), (0, 3)):
            names = names_in(model, layers)
            found = {name for name, _ in model.named_parameters() if re.search(parameter_pattern(names), name)}
            assert found == set(layer_parameters(model, layers)), architecture
            linear = {name for name, _ in model.named_modules() if re.fullmatch(linear_pattern(names), name)}
            assert linear == set(linear_module_names(model, layers)), architecture
        report = freeze_report(model)
        parts = (*report.blocks, report.routers, report.embeddings, report.head, report.norms, report.other)
        assert sum(part.total for part in parts) == report.total.total, architecture
