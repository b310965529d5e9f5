"""The command line: exit codes, precedence, help, and what goes to stdout."""

import importlib
import json
import os
import shlex
import subprocess
import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from result_helpers import finished

from autolayer.cli.commands import cli
from autolayer.cli.main import main
from autolayer.core import config
from autolayer.core.errors import NoSignalError
from autolayer.core.run_folder import PATCH, RESULT, RunFolder
from autolayer.reporting.results import PickResult

COMMANDS = (
    "pick", "train", "measure", "compare", "atlas", "report", "export", "merge", "push", "doctor", "tasks",
)  # fmt: skip
TINY = ("--model", "tiny", "--task", "math:arith")


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main(list(arguments))
        code = leaving.value.code
        assert isinstance(code, int)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pipeline that only remembers how it was called, and prints where it should not."""

    class Fake(types.ModuleType):
        calls: list[tuple[str, config.Config, dict[str, Any]]] = []
        failure: BaseException | None = None

        def _answer(self, verb: str, settings: config.Config, options: dict[str, Any]) -> PickResult:
            self.calls.append((verb, settings, options))
            print("noise of a library")
            os.write(1, b"noise of a child process\n")
            if self.failure is not None:
                raise self.failure
            return finished()

        def pick(self, settings: config.Config, **options: Any) -> PickResult:
            return self._answer("pick", settings, options)

        def train_layer(self, settings: config.Config, **options: Any) -> PickResult:
            return self._answer("train", settings, options)

    fake = Fake("autolayer.pipeline.pick")
    fake.calls = []
    monkeypatch.setitem(sys.modules, "autolayer.pipeline.pick", fake)
    monkeypatch.setattr(importlib.import_module("autolayer"), "pipeline", fake, raising=False)
    return fake


# Help


def test_bare_command_prints_help(call: Any) -> None:
    code, out, err = call()
    assert (code, err) == (0, "")
    assert all(name in out for name in COMMANDS) and "autolayer pick --model tiny --task math:arith" in out


def test_commands_are_exactly_these() -> None:
    assert set(cli.commands) == set(COMMANDS)


@pytest.mark.parametrize("command", ["pick", "train", "measure", "compare", "report", "export", "merge"])
def test_help_ends_with_examples_that_parse(call: Any, command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    examples = [line.split()[1:] for line in out.split("Examples:")[1].splitlines() if "autolayer" in line]
    assert examples
    for _, *arguments in examples:
        cli.commands[command].make_context(command, arguments, obj={})


def test_help_says_for_every_option_what_config_says() -> None:
    pick = cli.commands["pick"]
    context = click.Context(pick)
    records = {option.name: option.get_help_record(context) for option in pick.get_params(context)}
    for name, field in config.Config.model_fields.items():
        if name in config.TABLES:
            continue
        record = records[name]
        assert record is not None and field.description and record[1].startswith(" ".join(field.description.split()))
        if not field.is_required() and not isinstance(field.default, bool | None):
            shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
            assert f"[default: {shown}]" in record[1]


def test_version(call: Any) -> None:
    assert call("--version")[:2] == (0, "autolayer 0.1.0\n")


def test_tasks_lists_every_task(call: Any) -> None:
    from autolayer.tasks import TASKS

    code, out, _ = call("tasks")
    assert code == 0 and all(f"{name} " in out for name in TASKS) and "--data FILE " in out


# Errors


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["pikc"], ["No such command 'pikc'", "Did you mean 'pick'?"]),
        (["pick", "--modle", "tiny"], ["--modle", "Did you mean '--model'"]),
        (["pick"], ["--model is missing", "'tiny'"]),
        (["pick", "--model", "tini", "--task", "math:arith"], ["unknown model 'tini'", "Did you mean 'tiny'?"]),
        (
            ["pick", "--model", "tiny", "--task", "math:arit"],
            ["unknown task 'math:arit'", "Did you mean 'math:arith'?"],
        ),
        (["pick", "--model", "tiny", "--task", "math"], ["--task math:arith"]),
        (
            ["pick", *TINY, "--algorithm", "gropo"],
            ["--algorithm 'gropo' cannot work: it should be 'grpo', 'dr_grpo' or 'gigpo'", "Did you mean 'grpo'?"],
        ),
        (["pick", *TINY, "--steps", "ten"], ["--steps", "'ten' is not a valid integer"]),
        (["pick", *TINY, "--steps", "0"], ["--steps 0 cannot work"]),
        (["pick", *TINY, "--budget", "nan"], ["--budget nan cannot work"]),
        (["pick", *TINY, "--learning-rate", "fast"], ["--learning-rate 'fast' cannot work: give a number"]),
        (["pick", *TINY, "--until", "train"], ["--until", "calibrate", "probe", "search"]),
        (["pick", *TINY, "--config", "none.toml"], ["none.toml cannot be read (No such file or directory)"]),
        (["pick", "--data", "x.jsonl", "--model", "tiny"], ["--data and --reward belong together"]),
        (["train", *TINY], ["--layers is missing"]),
        (["pick", *TINY, "--budget", "0", "--dry-run"], ["nothing to plan: leave out --dry-run"]),
        (["doctor", "--steps", "-1"], ["--steps -1 cannot work"]),
        (["doctor", "--out", "\0"], ["cannot be a path"]),
        (["doctor", "--out", f"{__file__}/x"], ["is a file, or below one: give a folder"]),
        (["doctor", "--seed", "x"], ["--seed", "'x' is not a valid integer"]),
        (["pick", *TINY, "--out", ""], ["--out '' cannot work"]),
        (["report", "nowhere"], ["nowhere has no result.json"]),
        (["export", "nowhere", "--to", "trl"], ["nowhere has no result.json"]),
        (["export", "run", "--to", "trlx"], ["'trlx' is not one of 'trl', 'axolotl', 'llama-factory'"]),
        (["export", "run"], ["--to is missing", "ms-swift, verl, unsloth"]),
        (["export", "--to", "trl", "--layers", "1"], ["give the folder of a run, or both --model and --layers"]),
        (["merge", "nowhere", "--out", "merged"], ["nowhere does not exist"]),
        (["merge", "nowhere"], ["--out"]),
    ],
)
def test_what_the_user_can_mend_is_one_sentence_and_exit_2(call: Any, arguments: list[str], parts: list[str]) -> None:
    code, out, err = call(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("autolayer: error: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err


def test_a_second_data_file_does_not_replace_the_first(call: Any) -> None:
    code, _, err = call("pick", "--model", "tiny", "--data", "a.jsonl", "--data", "b.jsonl")
    assert code == 2 and "--data is given 2 times" in err


def test_names_are_refused_without_torch(tmp_path: Path) -> None:
    """Also for a mistyped task: suggestions must not take the seconds that importing torch takes."""
    code = (
        "import sys; from autolayer.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as leaving: print(leaving.code, *{'torch', 'transformers'} & set(sys.modules))"
    )
    for arguments, expected in [(["tasks"], "0"), (["pick", "--model", "tini"], "2"),
                                (["pick", "--model", "tiny", "--task", "maths"], "2")]:  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == expected


def test_no_signal_is_exit_2(call: Any, pipeline: Any) -> None:
    pipeline.failure = NoSignalError("task t gives no signal, it is too hard")
    code, out, err = call("pick", *TINY, "--json")
    assert (code, out) == (2, "") and "autolayer: error: task t gives no signal" in err


def test_bugs_are_exit_1(call: Any, pipeline: Any) -> None:
    pipeline.failure = KeyError("layer")
    code, out, err = call("pick", *TINY)
    assert (code, out) == (1, "")
    assert "bug of autolayer (KeyError: 'layer')" in err and "--debug" in err and "Traceback" not in err


@pytest.mark.parametrize("failure", [KeyError("layer"), NoSignalError("too hard")])
def test_debug_shows_the_traceback(call: Any, pipeline: Any, failure: Exception) -> None:
    pipeline.failure = failure
    assert "Traceback" in call("pick", *TINY, "--debug")[2]


def test_ctrl_c_is_exit_130(call: Any, pipeline: Any) -> None:
    pipeline.failure = KeyboardInterrupt()
    code, out, err = call("pick", *TINY)
    assert (code, out) == (130, "") and "interrupted: the same command resumes" in err


@pytest.mark.parametrize(
    "failure",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
)
def test_a_full_memory_is_no_bug(call: Any, pipeline: Any, failure: Exception) -> None:
    pipeline.failure = failure
    code, _, err = call("pick", *TINY)
    assert code == 2 and "error: the memory ran out: give a smaller --prompts-per-step" in err


def test_a_full_disk_is_no_bug(call: Any, pipeline: Any) -> None:
    pipeline.failure = OSError(28, "No space left on device", "runs/x")
    code, _, err = call("pick", *TINY)
    assert code == 2 and "runs/x: No space left on device" in err


# Settings


def test_command_line_beats_file_beats_default(call: Any, pipeline: Any, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'model = "tiny"\ntask = "math:arith"\nsteps = 7\nseed = 3\nlayers = 2\nlearning_rate = 1e-4\n'
        "[probe]\nnum_folds = 2\n"
    )
    call("pick", "--config", "run.toml", "--seed", "4", "--learning-rate", "auto", "--until", "probe")
    ((verb, settings, options),) = pipeline.calls
    assert (verb, options["until"]) == ("pick", "probe")
    assert (settings.seed, settings.steps, settings.layers, settings.learning_rate) == (4, 7, "2", None)
    assert settings.probe.num_folds == 2 and settings.group_size == config.Config(model="tiny").group_size


def test_layers_may_be_a_list_in_the_file(call: Any, pipeline: Any, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('model = "tiny"\ntask = "math:arith"\nlayers = [1, 3]\n')
    assert call("pick", "--config", "run.toml")[0] == 0
    assert pipeline.calls[0][1].layers == "1,3"


def test_the_file_is_checked_like_the_command_line(call: Any, pipeline: Any, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('model = "tiny"\nsteps = "ten"\n')
    code, _, err = call("pick", "--config", "run.toml")
    assert code == 2 and "--steps" in err and "'ten'" in err
    (tmp_path / "run.toml").write_text('modle = "tiny"\nmodel = "tiny"\n')
    code, _, err = call("pick", "--config", "run.toml")
    assert code == 2 and "unknown setting 'modle'" in err and "'model'" in err


def test_every_option_reaches_the_config(call: Any, pipeline: Any) -> None:
    given = {
        "algorithm": "dr_grpo", "layers": "0-1", "budget": 0.5, "regret": 0.1, "hours": 2.0, "steps": 3,
        "prompts_per_step": 4, "group_size": 5, "max_new_tokens": 6, "temperature": 0.7, "learning_rate": 1e-3,
        "beta": 0.01, "num_eval": 8, "seed": 9, "out": "o", "storage": "sqlite:///x.db", "device": "cpu",
    }  # fmt: skip
    arguments = [word for name, value in given.items() for word in ("--" + name.replace("_", "-"), str(value))]
    assert call("pick", *TINY, *arguments, "--no-thinking")[0] == 0
    settings = pipeline.calls[0][1]
    assert {name: getattr(settings, name) for name in given} == given and settings.thinking is False


def test_train_asks_for_layers_and_no_budget(call: Any, pipeline: Any) -> None:
    assert call("train", *TINY, "--layers", "-1")[0] == 0
    assert pipeline.calls[0][0] == "train" and pipeline.calls[0][1].layers == "-1"
    assert call("train", *TINY, "--layers", "1", "--budget", "1")[0] == 2


def test_the_same_command_has_the_same_folder(call: Any, pipeline: Any) -> None:
    for arguments in (TINY, TINY, (*TINY, "--seed", "1")):
        call("pick", *arguments)
    first, again, other = (settings.out for _, settings, _ in pipeline.calls)
    assert first == again != other and first.startswith(os.path.join("runs", "tiny-math"))


# Results


def test_json_on_stdout_is_exactly_the_result(call: Any, pipeline: Any) -> None:
    code, out, err = call("pick", *TINY, "--json")
    assert code == 0 and out == json.dumps(finished().to_dict(), indent=1) + "\n"
    assert "noise of a library" in err and "noise of a child process" in err


def test_the_report_is_alone_on_stdout(call: Any, pipeline: Any) -> None:
    code, out, err = call("pick", *TINY, "--out", "r")
    assert code == 0 and out.startswith("Layer 1 of 3: score 0.400 -> 0.600") and "Next: autolayer merge r --out" in out
    assert "noise" not in out and "noise" in err


def test_the_next_command_can_be_copied_whatever_the_name_of_the_folder(call: Any, pipeline: Any) -> None:
    assert "Next: autolayer merge 'a?b c' --out 'a?b c/merged'" in call("pick", *TINY, "--out", "a?b c")[1]


def test_dry_run_prints_the_plan_and_runs_nothing(call: Any, pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = types.SimpleNamespace(render=lambda: "the plan", to_dict=lambda: {"steps": 3})
    verbs = []
    fake: Any = types.ModuleType("autolayer.pipeline.dry_run")
    fake.plan_run = lambda settings, verb: verbs.append(verb) or (plan if settings.model == "tiny" else None)
    monkeypatch.setitem(sys.modules, "autolayer.pipeline.dry_run", fake)
    assert call("pick", *TINY, "--dry-run")[:2] == (0, "the plan\n")
    assert json.loads(call("pick", *TINY, "--dry-run", "--json")[1]) == {"steps": 3}
    assert call("train", *TINY, "--layers", "1", "--dry-run")[:2] == (0, "the plan\n")
    assert verbs == ["pick", "pick", "train"] and pipeline.calls == []


def test_report_shows_a_run_again(call: Any, tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").write(RESULT, finished().to_dict())
    code, out, _ = call("report", "run", "--html", "page.html")
    assert code == 0 and out.startswith("Layer 1 of 3: score 0.400 -> 0.600") and (tmp_path / "page.html").exists()
    assert json.loads(call("report", "run", "--json")[1]) == finished().to_dict()
    code, _, err = call("report", "run", "--figures", "figures")
    assert code == 0 and "wrote figures/contribution.svg" in err
    code, _, err = call("report", "run", "--figures", "page.html", "--html", "other.html")
    assert code == 2 and "--figures page.html cannot be written" in err and "the path of a folder" in err


def test_control_characters_and_markup_in_a_result_do_not_reach_the_terminal(call: Any, tmp_path: Path) -> None:
    cost = finished().cost["probe"]
    evil = replace(finished(), model="tiny\x1b]0;owned\x07", notes=("\x9b2J",), cost={"[/b]\x1b[31m": cost})
    RunFolder(tmp_path / "run").write(RESULT, evil.to_dict())
    code, out, err = call("report", "run", "--html", "page.html")
    assert code == 0 and not {"\x1b", "\x07", "\x9b"} & set(out + err)
    assert r"tiny\x1b]0;owned, math:arith" in out and r"Note: \x9b2J" in out and r"[/b]\x1b[31m" in out


def test_control_characters_and_passwords_in_an_error_do_not_reach_the_terminal(call: Any, pipeline: Any) -> None:
    pipeline.failure = NoSignalError("row '\x1b[2J' of https://me:secret@host/data")
    for extra in ((), ("--debug",)):
        _, _, err = call("pick", *TINY, *extra)
        assert r"error: row '\x1b[2J' of https://***@host/data" in err and not {"\x1b"} & set(err)
        assert "secret" not in err


def test_report_explains_runs_without_result(call: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.write("calibration.json", {"status": "ok"})
    assert "is not finished: repeat the command" in call("report", "run")[2]
    folder.write("calibration.json", {"status": "no_signal", "message": "it is saturated"})
    assert "found no training signal: it is saturated" in call("report", "run")[2]
    folder.write(RESULT, {"status": "ok"})
    code, _, err = call("report", "run")
    assert code == 2 and "is no result.json of autolayer" in err
    folder.write(RESULT, {**finished().to_dict(), "best_layers": [99]})
    code, _, err = call("report", "run")
    assert code == 2 and "names the layers [99] of a model with 3" in err and err.count("\n") == 1


@pytest.mark.parametrize(("extra", "base"), [((), "None"), (("--model", "other"), "other")])
def test_merge_hands_on_the_base_and_the_patch_of_a_run(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, extra: tuple[str, ...], base: str
) -> None:
    fake: Any = types.ModuleType("autolayer.models.merge")
    fake.merge = lambda base_name, path, out: Path(f"{base_name}|{path}|{out}")
    monkeypatch.setitem(sys.modules, "autolayer.models.merge", fake)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / PATCH).touch()
    for source in ("run", f"run/{PATCH}"):
        code, out, _ = call("merge", source, "--out", "merged", *extra)
        assert code == 0 and f"wrote {base}|run/{PATCH}|merged" in out


def test_module_is_the_same_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autolayer", "pikc"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Did you mean 'pick'?" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completion_of_the_page_is_printed(shell: str, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    assert f"_AUTOLAYER_COMPLETE={shell}_source autolayer" in page
    monkeypatch.setenv("_AUTOLAYER_COMPLETE", f"{shell}_source")
    code, out, _ = call()
    assert code == 0 and f"_AUTOLAYER_COMPLETE={shell}_complete" in out


def test_the_shell_completes_commands_options_and_values(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_AUTOLAYER_COMPLETE", "bash_complete")
    for words, wanted in (
        ("exp", "export"),
        ("pick --budg", "--budget"),
        ("export --to ver", "verl"),
        ("pick --task math:ar", "math:arith"),
        ("pick --model smo", "smollm2"),
        ("train --track te", "tensorboard"),
        ("pick --device cp", "cpu"),
    ):
        monkeypatch.setenv("COMP_WORDS", f"autolayer {words}")
        monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
        assert call()[1] == f"plain,{wanted}\n"


def test_closed_standard_streams_do_not_become_the_places_of_other_files() -> None:
    program = """
import os
from autolayer.cli.main import _open_standard_streams
from autolayer.cli.output import only_stderr
_open_standard_streams()
study = os.open(os.devnull, os.O_RDONLY)
with only_stderr():
    print("text of a library")
print("result", flush=True)
os._exit(0 if study > 2 else 9)
"""
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0


def test_a_warning_shows_no_control_characters(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    call("tasks")
    assert "\x1b" not in (shown := warnings.formatwarning("glyph \x1b", UserWarning, "a.py", 1)) and r"\x1b" in shown
