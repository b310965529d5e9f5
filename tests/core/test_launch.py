"""The environment that a launcher leaves: whole, that of a single process, or refused in a sentence."""

import os

import pytest

from autolayer.core.errors import ConfigError
from autolayer.core.launch import check_variables, is_first_process, num_processes, without_incomplete_variables

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def set_environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # restored afterwards, whatever the test does
        monkeypatch.delenv(name)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"LOCAL_RANK": "-1"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"},
        {"MASTER_PORT": "tcp://10.0.0.7:8080"},  # of Kubernetes, for a service named master
        {"WORLD_SIZE": "1", "MASTER_PORT": ""},
    ],
)
def test_one_process_without_all_variables_is_like_no_launcher(
    values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, values)
    before = dict(os.environ)
    check_variables()
    with without_incomplete_variables():
        assert not set(NAMES[:4]) & set(os.environ) and num_processes() == 1 and is_first_process()
    assert dict(os.environ) == before


def test_a_whole_environment_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, WHOLE)
    check_variables()
    with without_incomplete_variables():
        assert {name: os.environ.get(name) for name in WHOLE} == WHOLE
        assert num_processes() == 2 and not is_first_process()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE=2, as of several processes, but no RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT",
        ),
        ({**WHOLE, "MASTER_ADDR": ""}, "WORLD_SIZE=2, as of several processes, but no MASTER_ADDR, by which"),
        ({"RANK": "1"}, "RANK=1, as of several"),
        ({"WORLD_SIZE": "x"}, "has WORLD_SIZE='x', which no launcher sets: start several processes with `torchrun"),
        ({**WHOLE, "WORLD_SIZE": "0"}, "has WORLD_SIZE='0'"),
        (
            {**WHOLE, "MASTER_PORT": "y"},
            "has MASTER_PORT='y'.* or unset WORLD_SIZE, RANK, LOCAL_RANK, MASTER_PORT for one",
        ),
    ],
)
def test_what_is_incomplete_or_no_number_is_refused_by_each_process(
    values: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, values)
    with pytest.raises(ConfigError, match=words):
        check_variables()
    assert is_first_process() or values.get("MASTER_PORT") == "y", "its message is printed"
