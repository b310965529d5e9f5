"""Measured environments: what comes with the package, and the user's own."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from result_helpers import record

import autolayer
from autolayer.cli.main import main
from autolayer.core.errors import ConfigError, DataError
from autolayer.models.loading import load_model
from autolayer.probes import known
from autolayer.probes.known import KnownEnvironment, history, of_contribution, packaged
from autolayer.probes.predictor import MIN_BASES
from autolayer.reporting.contribution import Contribution

PROBED = {
    "probes": {"trusted_gain": (0.1, 0.3), "first": (2.0, 1.0)},
    "reliability": {"trusted_gain": 0.8},
}
SHORT: dict[str, Any] = {"model": "tiny", "task": "math:arith", "steps": 40, "prompts_per_step": 8, "num_eval": 32,
                         "device": "cpu", "layers": "2-3", "budget": 0.2}  # fmt: skip


def environment(base: str = "ab", **changes: Any) -> KnownEnvironment:
    return replace(of_contribution(record(**PROBED, base=base), name="one"), **changes)


def package(environments: list[KnownEnvironment], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts environments in the place of the packaged ones."""
    monkeypatch.setattr(known, "FILE", folder / "known.json")
    known.FILE.write_text(json.dumps({"environments": [asdict(each) for each in environments]}))


def write(folder: Path, name: str, found: Contribution) -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / name / Contribution.FILE
    path.write_text(json.dumps(found.to_dict()))
    return path


def test_a_contribution_becomes_an_environment_of_its_measured_layers_and_probes() -> None:
    found = environment()
    assert found == KnownEnvironment(
        name="one",
        base="ab",
        architecture="qwen3",
        num_parameters=10,
        num_layers=8,
        layers=(1, 4),
        contribution_L=(0.5, 0.5),
        probings=({"trusted_gain": (0.1, 0.3)},),  # a baseline has no reliability
    )


def test_what_is_saved_is_read_back_but_for_the_base_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"trusted_gain": (-2.5, 1e-7)}
    found = [environment("one"), environment("two", name="two", probings=({}, more)), environment("one", name="three")]
    package(found, tmp_path, monkeypatch)
    assert packaged() == found
    assert packaged(without_base="one") == found[1:2] and packaged(without_base="two") == [found[0], found[2]]
    assert packaged(without_base="three") == found


def test_the_packaged_environments_are_sound() -> None:
    for found in packaged():
        assert len(found.layers) == len(found.contribution_L) > 1 and found.probings and found.base
        assert all(0 <= layer < found.num_layers for layer in found.layers)
        for probing in found.probings:
            assert all(len(scores) == len(found.layers) for scores in probing.values())
    assert len({found.name for found in packaged()}) == len(packaged())


def test_history_is_every_contribution_below_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "a/deep", record(**PROBED, base="one"))
    write(tmp_path, "b", record(**PROBED, base="two"))
    write(tmp_path, "c", record())  # of a time before it knew how far its probes could be believed
    arm = record().layers[1]
    single = {"probes": {"trusted_gain": (0.1,)}, "reliability": {"trusted_gain": 0.8}, "layers": {1: arm}}
    write(tmp_path, "d", record(**single))  # one layer stands above nothing
    (tmp_path / "c" / "other.json").write_text("{")
    found = history(tmp_path)
    assert [each.base for each in found] == ["one", "two"] and history(str(tmp_path)) == found
    assert [Path(each.name).parent for each in found] == [tmp_path / "a/deep", tmp_path / "b"]


def test_history_without_a_folder_or_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for folder, words in (
        ("nowhere", "is no folder"),
        ("file", "is no folder"),
        ("empty", "holds no contribution.json"),
    ):
        with pytest.raises(ConfigError, match=f"^--history .*{words}[^.]") as refusal:
            history(tmp_path / folder)
        assert "\n" not in str(refusal.value)


def damaged(field: str, value: Any) -> str:
    return json.dumps({**record(**PROBED).to_dict(), field: value})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        damaged("probes", {"trusted_gain": [0.1]}),
        damaged("probes", {"trusted_gain": [0.1, float("nan")]}),
        damaged("reliability", {"trusted_gain": float("nan")}),
        damaged("reliability", {"trusted_gain": -0.5}),
        damaged("reliability", {"trusted_gain": "high"}),
        damaged("reliability", []),
    ],
)
def test_a_damaged_history_is_named_in_one_sentence(text: str, tmp_path: Path) -> None:
    write(tmp_path, "good", record(**PROBED))
    path = write(tmp_path, "bad", record(**PROBED))
    path.write_text(text)
    with pytest.raises(DataError) as refusal:
        history(tmp_path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["nowhere", "empty", "damaged"])
def test_a_wrong_history_is_refused_before_anything_is_done(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind != "nowhere":
        (tmp_path / kind).mkdir()
    if kind == "damaged":
        (tmp_path / kind / Contribution.FILE).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as leaving:
        main(["pick", "--model", "tiny", "--task", "math:arith", "--device", "cpu", "--history", kind])
    out, err = capfd.readouterr()
    assert leaving.value.code == 2 and out == "" and "Traceback" not in err
    sentence = err.splitlines()[-1]
    assert sentence.startswith("autolayer: error: ") and kind in sentence
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_users_own_measurements_teach_the_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sources are used from end to end: the user's environments, and the packaged ones of other bases."""
    this = load_model("tiny", "cpu").weight_hash
    package([environment(this), environment("packaged")], tmp_path, monkeypatch)

    def learned(name: str, **options: Any) -> tuple[int, dict[str, Any]]:
        autolayer.pick(**SHORT, out=str(tmp_path / name), until="probe", **options)
        probed = json.loads((tmp_path / name / "probe.json").read_text())
        return probed["learned_from"], probed

    number, without = learned("plain")
    assert number == 0, "two bases, one of them this one: too few"
    for index in range(MIN_BASES):
        arm = record().layers[1]
        layers = {1: arm, 4: replace(arm, value=0.1, low=0.0, high=0.2)}
        write(tmp_path / "mine", str(index), record(**PROBED, base=f"mine {index}", layers=layers))
    number, found = learned("history", history=str(tmp_path / "mine"))
    assert number == MIN_BASES + 1
    assert found["predicted"] != without["predicted"] and found["scores"] == without["scores"]
