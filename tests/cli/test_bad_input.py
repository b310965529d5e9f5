"""Whatever the user gets wrong ends in one sentence that names it and says what to do; nothing is written or lost.

Everything goes through the real command line.
"""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_models import build, build_tokenizer
from transformers import BertConfig, BertForMaskedLM

import autolayer
from autolayer.cli.main import main
from autolayer.core.errors import ConfigError, UnknownNameError
from autolayer.core.run_folder import CALIBRATION, CONFIG, PATCH, PROBE, RESULT, ROLLOUTS, SEARCH

SMALL = ("--steps", "4", "--prompts-per-step", "4", "--group-size", "4", "--max-new-tokens", "5", "--num-eval", "8")
OWN = ("--data", "sums.jsonl", "--reward", "reward.py:score", *SMALL, "--out", "run")
REWARD = "def score(prompts, completion_ids, **_):\n    return [sum(ids) / len(ids) / 100 for ids in completion_ids]\n"
SUMS = "".join(json.dumps({"prompt": f"{a}+{b}="}) + "\n" for a in range(12) for b in range(20))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of 8 layers."""
    return str(build("qwen3", tmp_path_factory.mktemp("models") / "qwen", num_layers=8, hidden=16))


@pytest.fixture(scope="module")
def finished_run(qwen: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that a whole run leaves, and what it was made from: to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "sums.jsonl").write_text(SUMS)
    (folder / "reward.py").write_text(REWARD)
    with contextlib.chdir(folder):
        works("pick", "--model", qwen, *OWN, "--layers", "3-4", "--budget", "4")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def works(*arguments: str) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(list(arguments))
    assert leaving.value.code == 0


Refused = Callable[..., str]
Words = tuple[str, ...]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a command that must be refused, and checks everything that holds for all of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.jsonl").write_text(SUMS)
    (tmp_path / "reward.py").write_text(REWARD)

    def run(*arguments: str, parts: Words, left: Words = ()) -> str:
        before = contents(tmp_path)
        capfd.readouterr()  # of what went before
        with pytest.raises(SystemExit) as leaving:
            main(list(arguments))
        out, err = capfd.readouterr()
        sentence = err.rstrip("\n").splitlines()[-1]
        assert leaving.value.code == 2, err
        assert out == "" and "Traceback" not in err
        assert sentence.startswith("autolayer: error: ") and len(sentence) < 1000
        for part in parts:
            assert part in sentence, sentence
        after = contents(tmp_path)
        assert {name: after.get(name) for name in before} == before, "nothing is lost"
        assert set(after) - set(before) == set(left), "nothing is written"
        return sentence

    return run


# Names


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--model", "tinny"), ("unknown model 'tinny'", "Did you mean 'tiny'?", "Qwen/Qwen3-8B")),
        (("--model", "tiny", "--task", "maths"), ("unknown task 'maths'", "Did you mean 'math'?", "--data FILE")),
        (
            ("--model", "tiny", "--algorithm", "ppo"),
            ("--algorithm 'ppo' cannot work", "it should be 'grpo', 'dr_grpo' or 'gigpo'"),
        ),
        (("--model", "./nowhere"), ("--model ./nowhere does not exist", "config.json")),
        (("--model", "."), ("--model . is not a model folder", "config.json")),
        (("--model", "reward.py"), ("--model reward.py is a file", "give the folder")),
    ],
)
def test_unknown_names_are_refused_with_valid_ones(refused: Refused, arguments: Words, parts: Words) -> None:
    refused("pick", *arguments, parts=parts)


@pytest.mark.parametrize(("layers", "shown"), [("40", "layer 40"), ("-9", "layer -9"), ("2,40-41", "layer 40")])
def test_a_layer_that_is_not_there_is_refused_with_the_range(refused: Any, qwen: str, layers: str, shown: str) -> None:
    parts = (f"{shown} does not exist", "has 8 blocks (0..7, or -8..-1)")
    refused("pick", "--model", qwen, *OWN, "--layers", layers, parts=parts)
    refused("train", "--model", qwen, *OWN, "--layers", layers, parts=parts)
    refused("pick", "--model", qwen, *OWN, "--layers", layers, "--dry-run", parts=parts)


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        (("--layers", "abc"), ("layers 'abc' cannot be read",)),
        (("--top-k", "99"), ("--top-k 99 is more than the 8 candidate layers",)),
        (("--algorithm", "gigpo"), ("--algorithm gigpo compares the steps of an episode",)),
        (("--seed", "-1"), ("--seed -1 cannot work", "greater than or equal to 0")),
        (("--seed", "4294967296"), ("--seed 4294967296 cannot work", "less than 4294967296")),
        (("--task", "math:arith"), ("--task math:arith would be ignored, because --data and --reward",)),
        (("--budget", "inf"), ("--budget inf cannot work",)),
        (("--rollouts", "vllm"), ("--rollouts vllm needs vLLM", "--rollouts transformers")),
        (("--device", "mps:7"), ("--device mps:7 cannot be used", "give auto or cpu")),
    ],
)
def test_what_cannot_work_is_refused_before_the_weights_are_read(
    refused: Refused, qwen: str, tmp_path: Path, option: Words, parts: Words
) -> None:
    folder = shutil.copytree(qwen, tmp_path / "weightless")
    if option[0] != "--device":
        (folder / "model.safetensors").unlink()
    refused("pick", "--model", "weightless", *OWN, *option, parts=parts)


def test_a_table_of_settings_is_checked(refused: Refused, qwen: str, tmp_path: Path) -> None:
    for text, part in [
        ("[probe]\nnum_folds = 0", "[probe] num_folds = 0 cannot work: it should be greater than or equal to 2"),
        ("[probe]\nshare = 0.0", "[probe] share = 0.0 cannot work"),
        ("[search]\nconfidence = 1.0", "[search] confidence = 1.0 cannot work: it should be less than 1"),
        ("[gigpo]\nomegaa = 1.0", "unknown [gigpo] setting 'omegaa'. Did you mean 'omega'?"),
    ]:
        (tmp_path / "run.toml").write_text(text + "\n")
        refused("pick", "--model", qwen, *OWN, "--config", "run.toml", parts=(part,))


def test_a_config_that_is_no_text_file_is_refused(refused: Refused, tmp_path: Path) -> None:
    refused("pick", "--config", str(tmp_path), parts=("cannot be read (Is a directory)", "the path of a TOML file"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    refused("pick", "--config", "bytes.toml", parts=("is not valid TOML",))


def test_somebody_elses_file_is_not_to_be_deleted(refused: Refused, qwen: str) -> None:
    command = ("pick", "--model", qwen, *OWN, "--storage", "sqlite:///sums.jsonl")
    sentence = refused(*command, parts=("the study in sums.jsonl cannot be used", "give a --storage"))
    assert "delete" not in sentence


@pytest.mark.slow
def test_a_finished_run_that_has_lost_its_layer_makes_it_again(
    finished_run: Path, refused: Refused, qwen: str, tmp_path: Path
) -> None:
    shutil.copytree(finished_run / "run", tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in load_file(tmp_path / "run" / PATCH).items()}
    (tmp_path / "run" / PATCH).write_bytes(b"damaged")
    refused("merge", "run", "--out", "merged", parts=("damaged", "delete it and repeat the command of its run"))
    (tmp_path / "run" / PATCH).unlink()
    works("pick", "--model", qwen, *OWN, *PICK)
    after = load_file(tmp_path / "run" / PATCH)
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)


def test_training_everything_needs_a_rate(refused: Refused, qwen: str) -> None:
    refused("train", "--model", qwen, *OWN, "--layers", "full", parts=("--layers full has no learning rate",))


def test_a_stage_that_is_none_is_refused_in_the_library(qwen: str) -> None:
    stage: Any = "probes"
    with pytest.raises(UnknownNameError, match="'probes'. Did you mean 'probe'"):
        autolayer.pick(model=qwen, task="math:arith", until=stage)


def test_a_page_goes_where_there_is_no_folder_yet(refused: Refused, finished_run: Path, tmp_path: Path) -> None:
    run = str(finished_run / "run")
    works("report", run, "--html", "new/folder/page.html")
    assert (tmp_path / "new" / "folder" / "page.html").is_file()
    for taken in ("new", "sums.jsonl/page.html"):
        refused("report", run, "--html", taken, parts=(f"--html {taken} cannot be written", "path of a file"))
    refused("report", run, "--html", "/proc/new/page.html", parts=("--html /proc/new/page.html cannot be written",))


def test_a_process_of_its_own_leaves_with_code_2(refused: Refused, tmp_path: Path) -> None:
    for arguments, part in [(["pick", "--model", "tinny"], "Did you mean 'tiny'?"),
                            (["pick", "--model", "tiny", "--task", "maths"], "unknown task 'maths'"),
                            (["merge", "nowhere", "--out", "merged"], "nowhere does not exist")]:  # fmt: skip
        command = [sys.executable, "-m", "autolayer", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1 and part in done.stderr


# Models


def test_a_tokenizer_that_cannot_end_a_completion_is_refused(refused: Refused, qwen: str, tmp_path: Path) -> None:
    for pad, missing in [(True, "no eos_token"), (False, "neither an eos_token nor a pad_token")]:
        folder = shutil.copytree(qwen, tmp_path / f"pad-{pad}")
        (folder / "tokenizer_config.json").unlink()
        build_tokenizer(eos=False, pad=pad).save_pretrained(folder)
        refused("pick", "--model", str(folder), *OWN, parts=(str(folder), missing, "set eos_token in its"))


def test_an_encoder_is_refused(refused: Refused, tmp_path: Path) -> None:
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    BertForMaskedLM(BertConfig(vocab_size=97, **small)).save_pretrained("bert")
    build_tokenizer().save_pretrained("bert")
    refused("pick", "--model", "bert", *OWN, parts=("'bert' (BertForMaskedLM) is an encoder", "Qwen3, Llama or Gemma"))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_model_is_refused(refused: Refused, qwen: str, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(qwen, tmp_path / "damaged")
    (folder / file).write_bytes((folder / file).read_bytes()[:100])
    refused("pick", "--model", "damaged", *OWN, parts=("model 'damaged'",))


# Data and rewards


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ("--data sums.jsonl does not exist", "give the path of a file")),
        ("\n\n", ("--data sums.jsonl is empty", "give rows with a 'prompt'")),
        (SUMS + '{"question": "1+1="}\n', ("line 241: it has no 'prompt' (its columns: question)",)),
        (SUMS[:40] + "{\n" + SUMS, ("line 3: not valid JSON", "at character 2")),
        (SUMS + '"1+1="\n', ("line 241: '1+1=' is not a JSON object",)),
        ("".join(SUMS.splitlines(True)[:2]), ("task 'sums' has no row in", "give more rows")),
    ],
)
def test_unusable_data_name_the_line(refused: Refused, qwen: str, tmp_path: Path, text: Any, parts: Words) -> None:
    (tmp_path / "sums.jsonl").unlink() if text is None else (tmp_path / "sums.jsonl").write_text(text)
    refused("pick", "--model", qwen, *OWN, parts=parts)


@pytest.mark.parametrize(
    ("result", "parts"),
    [
        ("1 / 0", ("raised ZeroDivisionError", "(", "reward.py:2)", "sample 0: prompt '", "return 0.0")),
        ("[0.5]", ("returned 1 numbers for", "sample 0: prompt '", "one number per completion")),
        ("[0.0] * 3 + [float('nan')] * (len(prompts) - 3)", ("returned nan for sample 3: prompt", "finite")),
        ("['1.0' for _ in prompts]", ("returned '1.0' for sample 0: prompt", "at most 1e+15 for every completion")),
        ("'1.0'", ("returned '1.0', a str", "return a list with one number per completion")),
        ("None", ("returned None, a NoneType", "return a list")),
    ],
)
def test_a_broken_reward_shows_the_sample(refused: Any, qwen: str, tmp_path: Path, result: str, parts: Words) -> None:
    (tmp_path / "reward.py").write_text(f"def score(prompts, **_):\n    return {result}\n")
    refused("pick", "--model", qwen, *OWN, parts=("reward function 'score'", *parts))
    (tmp_path / "reward.py").write_text(REWARD)
    works("pick", "--model", qwen, *OWN, "--until", "calibrate")  # the folder was given back


def test_a_reward_that_fails_in_the_last_stage_costs_nothing_that_went_before(
    refused: Refused, run_folder: Path, qwen: str, tmp_path: Path
) -> None:
    """Once it is mended the run goes on if the user says so; the result says so too."""
    command = ("pick", "--model", qwen, *OWN, *PICK)
    (tmp_path / "reward.py").write_text(REWARD + "\n# mended\n")
    parts = ("the reward file has changed since the run in run was made", "a new --out", "--accept-changes")
    refused(*command, parts=parts)
    before = contents(run_folder)
    works(*command, "--accept-changes")
    after = contents(run_folder)
    assert all(before[name] == after[name] for name in (CALIBRATION, ROLLOUTS, PROBE, SEARCH))
    result = json.loads((run_folder / RESULT).read_text())
    assert result["notes"][0] == "the reward file was changed during the run: parts of it were made with the old one"
    assert result["signature"] == json.loads(before[CONFIG])["signature"]
    works(*command)  # and is the run of this file from now on
    (tmp_path / "reward.py").write_text(REWARD + "\n# again\n")
    refused(*command, parts=parts)


# No signal


@pytest.mark.parametrize(("value", "reason"), [("1.0", "saturated"), ("0.0", "too hard")])
def test_no_signal_leaves_the_calibration(refused: Any, qwen: str, tmp_path: Path, value: str, reason: str) -> None:
    (tmp_path / "reward.py").write_text(f"def score(prompts, **_):\n    return [{value} for _ in prompts]\n")
    parts = ("task sums gives no signal", reason, f"mean reward {value}", "choose a")
    sentence = refused("pick", "--model", qwen, *OWN, "--json", parts=parts, left=("run/calibration.json",))
    left = json.loads((tmp_path / "run" / CALIBRATION).read_text())
    assert (left["status"], left["reason"]) == ("no_signal", reason) and left["message"] in sentence
    refused("report", "run", parts=("found no training signal", reason))


def test_a_random_model_is_too_weak_for_arithmetic(refused: Refused, qwen: str) -> None:
    parts = ("task math:arith gives no signal", "too hard for this base model", "an easier task or a stronger base")
    refused("pick", "--model", qwen, "--task", "math:arith", *SMALL, "--out", "run", parts=parts,
            left=("run/calibration.json",))  # fmt: skip


# Run folders

PICK = ("--layers", "3-4", "--budget", "4")
SAME = ("signature", "best_layers", "learning_rate", "base_score", "trained_score", "verdict")


@pytest.fixture
def run_folder(finished_run: Path, refused: Refused, tmp_path: Path) -> Path:
    """A whole run, one step before the end: everything is there but the result."""
    shutil.copytree(finished_run / "run", tmp_path / "run")
    (tmp_path / "run" / RESULT).unlink()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        (("--steps", "5"), ("steps: 4 there, 5 here",)),
        (("--seed", "1", "--algorithm", "dr_grpo"), ("seed: 0 there, 1 here", "algorithm: grpo there, dr_grpo here")),
    ],
)
def test_another_configuration_is_refused_with_both_values(
    refused: Refused, run_folder: Path, qwen: str, option: Words, parts: Words
) -> None:
    refused("pick", "--model", qwen, *OWN, *PICK, *option, parts=("--out run", *parts, "choose another --out"))


def test_a_folder_of_something_else_is_refused(refused: Refused, qwen: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    refused(
        "pick", "--model", qwen, *OWN, parts=("--out run is not empty and is not a run folder", "give a new folder")
    )
    refused("pick", "--model", qwen, *OWN[:-1], "sums.jsonl", parts=("--out sums.jsonl is a file", "give a folder"))
    refused("pick", "--model", qwen, *OWN[:-1], "sums.jsonl/x", parts=("--out sums.jsonl/x is a file, or below one",))


def test_training_needs_layers_in_the_library_too(qwen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="layers is missing: name the layers to train"):
        autolayer.train_layer(model=qwen, task="math:arith", out="run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "garbage", "hollow"])
@pytest.mark.parametrize("file", [CONFIG, CALIBRATION, ROLLOUTS, PROBE, SEARCH, RESULT, "study.db", "arms"])
def test_a_damaged_file_of_a_run_is_named(
    refused: Refused, run_folder: Path, finished_run: Path, qwen: str, file: str, damage: str
) -> None:
    path = run_folder / file
    if file == "arms":
        path = next(run_folder.glob("arms/**/step-000004.safetensors"))
    if file == ROLLOUTS:  # read by the probes alone
        (run_folder / PROBE).unlink()
    if file == RESULT:
        shutil.copy(finished_run / "run" / RESULT, path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "garbage": b"\x00\xff" * 5000, "hollow": b"{}"}[damage])
    refused("pick", "--model", qwen, *OWN, *PICK, parts=(path.name, "delete"))
    if file in (CONFIG, "arms"):  # the one says whose folder it is, the other was made by the search
        return
    path.unlink()
    if file == "study.db":
        refused("pick", "--model", qwen, *OWN, *PICK, parts=("study.db", "its race is lost", "run/arms", "together"),
                left=("run/study.db",))  # fmt: skip
        (run_folder / file).unlink()
        shutil.rmtree(run_folder / "arms")
    works("pick", "--model", qwen, *OWN, *PICK)  # the cure that was named
    again, before = (json.loads((f / RESULT).read_text()) for f in (run_folder, finished_run / "run"))
    assert [again[name] for name in SAME] == [before[name] for name in SAME]


STORAGES = [
    ("nowhere", "nowhere", "give a --storage that Optuna can open"),
    ("postgresql://me:secret@localhost:1/x", "//***@localhost:1/x", "--storage postgresql+pg8000://..."),
    ("postgresql://me:a/secret@localhost:1/x", "//***@localhost:1/x", "--storage postgresql+pg8000://..."),
    ("postgresql://localhost:1/x?password=secret", "1/x?password=***", "--storage postgresql+pg8000://..."),
    ("postgresql://localhost:secret/x", "//localhost:***/x", "give a --storage that Optuna can open"),
    ("sqlite:///{lr}/x.db", "{lr}/x.db", "give a --storage that Optuna can open"),
    ("sqlite:///sums.jsonl", "sums.jsonl", "file is not a database"),
]


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
@pytest.mark.parametrize(("storage", "shown", "cure"), STORAGES)
def test_a_storage_that_cannot_be_opened_is_refused(
    refused: Refused, qwen: str, storage: str, shown: str, cure: str, dry: Words
) -> None:
    command = ("pick", "--model", qwen, *OWN, *PICK, "--storage", storage, *dry)
    assert "secret" not in refused(*command, parts=(f"{shown} cannot be used", cure))


def test_the_dry_run_makes_no_storage(refused: Refused, qwen: str, tmp_path: Path) -> None:
    before = contents(tmp_path)
    works("pick", "--model", qwen, *OWN, "--storage", "sqlite:///study.db", "--dry-run")
    assert contents(tmp_path) == before


# Patches and disks


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_patch_is_refused(refused: Refused, run_folder: Path, damage: str) -> None:
    path = run_folder / PATCH
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "garbage": b"\xff" * 999, "empty": b""}[damage])
    refused("merge", "run", "--out", "merged", parts=(f"patch run/{PATCH} is damaged", "copy it again"))


def test_nobody_is_told_to_delete_a_file_of_another_kind(refused: Refused) -> None:
    for command, advice in (
        (("merge", "sums.jsonl", "--out", "merged"), f"give the {PATCH} of a run folder"),
        (("compare", "sums.jsonl", "published:qwen3-1.7b"), "give a contribution.json, or the run folder"),
        (("compare", "published:qwen3-1.7b", "rows.json"), "rows.json is no contribution.json of autolayer"),
    ):
        Path("rows.json").write_text('{"layers": "mine"}')
        assert "delete" not in refused(*command, parts=(advice,))


def test_a_patch_for_another_base_is_refused(refused: Refused, run_folder: Path, qwen: str, tmp_path: Path) -> None:
    build("qwen3", tmp_path / "other", num_layers=8, hidden=16, seed=1)
    refused("merge", "run", "--model", "other", "--out", "merged", parts=(f"was trained on {qwen}", "this is other"))
    refused("merge", "sums.jsonl", "--model", "other", "--out", "merged", parts=("patch sums.jsonl is damaged",))


def test_too_little_disk_is_told_early(refused: Refused, run_folder: Path, qwen: str, monkeypatch: Any) -> None:
    nearly_full: Any = SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly_full)
    parts = ("bytes but the disk has 1,000 free", "make some space or write elsewhere")
    refused("pick", "--model", qwen, *OWN[:-1], "new", parts=(f"new/{PATCH}", *parts))
    refused("merge", "run", "--out", "merged", parts=("merged needs", *parts))
