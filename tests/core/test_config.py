"""The settings: bad values are refused in sentences, and the verbs' keywords are the fields of `Config`."""

import inspect
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest

import autolayer
from autolayer.core.arms import Arm
from autolayer.core.config import TABLES, Config, Options, read_toml
from autolayer.core.config_tables import ProbeConfig
from autolayer.core.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": "40"}, "--steps '40' cannot work: it should be a valid integer."),
        ({"steps": True}, "--steps True cannot work: it should be a valid integer."),
        ({"temperature": "warm"}, "--temperature 'warm' cannot work: it should be a valid number."),
        ({"budget": float("nan")}, "--budget nan cannot work: it should be a finite number."),
        ({"shard": 1}, "--shard 1 cannot work: it should be a valid boolean."),
        ({"task": 3}, "--task 3 cannot work: it should be a valid string."),
        ({"group_size": 1}, "--group-size 1 cannot work: it should be greater than or equal to 2."),
        ({"algorithm": "gropo"}, "it should be 'grpo', 'dr_grpo' or 'gigpo'. Did you mean 'grpo'?"),
        ({"rollouts": "vlm"}, "--rollouts 'vlm' cannot work: give auto, transformers, vllm, or http://HOST:PORT"),
        ({"layers": "5-3"}, "the range 5-3 is empty; give 3-5."),
        ({"layers": 1.5}, "layers 1.5 cannot be read: give 16, 10-14 or 8,16"),
        ({"modle": "m"}, "unknown setting 'modle'. Did you mean 'model'? Known settings: model, task,"),
        ({"probe": 3}, "--probe 3 cannot work: it should be a valid dictionary"),
        ({"probe": {"share": 2}}, "[probe] share = 2 cannot work: it should be less than or equal to 1."),
        ({"gigpo": {"omegaa": 1.0}}, "unknown [gigpo] setting 'omegaa'. Did you mean 'omega'?"),
        ({"measure": {"rates": "fast"}}, "--rates 'fast' cannot be read: give numbers above 0"),
        ({"learning_rate": "fast"}, "--learning-rate 'fast' cannot work: give a number such as 1e-5, or auto."),
        ({"measure": {"rates": [10**400]}}, "cannot be read: give numbers above 0"),
        ({"seed": True}, "--seed True cannot work: it should be a valid integer."),
        ({"steps": 10**400}, "--steps 100000000000000000...0000000000000000000 cannot work: it should be less than"),
        ({"budget": 10**400}, "--budget 100000000000000000...0000000000000000000 cannot work: it should be"),
        ({"probe": {"num_prompts": 2**31}}, "[probe] num_prompts = 2147483648 cannot work: it should be less than"),
        ({"budget": 1e308}, "--budget 1e+308 cannot work: it should be less than or equal to 1000000"),
        ({"learning_rate": 1e300}, "--learning-rate 1e+300 cannot work: it should be less than or equal to 1."),
        ({"measure": {"rates": [1e-3, 2]}}, "--rates 2.0 cannot work: it should be less than or equal to 1."),
        ({"temperature": 1e-320}, "--temperature 1e-320 cannot work: it should be greater than or equal to 0.001."),
        ({"temperature": 1e300}, "--temperature 1e+300 cannot work: it should be less than or equal to 1000."),
        ({"hours": 1e300}, "--hours 1e+300 cannot work"),
        ({"measure": {"num_seeds": 2**31 - 1}}, "--num-seeds 2147483647 cannot work"),
        ({"out": ""}, "--out '' cannot work: it should have at least 1 character."),
        ({"track": "wandb,mflow"}, "unknown tracker 'mflow'. Did you mean 'mlflow'?"),
        ({"track": []}, "unknown tracker ''. Known trackers: tensorboard, wandb, trackio, mlflow."),
        ({"data": "a\0b"}, r"'a\x00b' cannot be a path: it has a null character."),
        ({"self": 1}, "unknown setting 'self'."),
        ({"rollouts": "http://me:secret@host:1"}, "--rollouts 'http://***@host:1' cannot work"),
        ({"rollouts": "me:secret@host:1"}, "--rollouts '***' cannot work"),
        ({"learning_rate": 1e-3, "measure": {"rates": [1e-3]}}, "exclude each other: give one."),
    ],
)
def test_a_bad_value_is_refused_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config(model="m", **settings)
    assert sentence in str(error.value)


@pytest.mark.parametrize("text", ["steps = " + "1" * 5000, "a = " + "[" * 100_000, "steps = [1", "\0"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigError, match="run.toml is not valid TOML"):
        read_toml(tmp_path / "run.toml")


def test_a_password_in_the_storage_is_in_no_file_that_is_made_from_the_settings() -> None:
    config = Config(model="m", storage="postgresql://me:secret@host/db")
    assert config.model_dump(mode="json")["storage"] == "postgresql://***@host/db"
    assert "secret" not in repr(config) and Config(**config.model_dump()).storage == config.storage


def test_all_problems_are_named_at_once() -> None:
    settings: Any = {"steps": 0, "seed": -1, "searh": {}, "probe": {"num_folds": 1}}
    with pytest.raises(ConfigError) as error:
        Config(model="m", **settings)
    for part in ("--steps 0", "--seed -1", "'searh'. Did you mean 'search'?", "[probe] num_folds = 1"):
        assert part in str(error.value)


def test_a_model_is_needed() -> None:
    nothing: dict[str, Any] = {}
    with pytest.raises(ConfigError, match="--model is missing. Base model: 'tiny'"):
        Config(**nothing)


@pytest.mark.parametrize("track", ["wandb, mlflow", ["wandb", "mlflow"], ("wandb,mlflow", "wandb")])
def test_trackers_have_one_form(track: Any) -> None:
    assert Config(model="m", track=track).track == "wandb,mlflow"
    assert Config(model="m", track=track).trackers == ("wandb", "mlflow") and Config(model="m").trackers == ()


def test_what_serves_as_a_value(tmp_path: Path) -> None:
    config = Config(model=tmp_path, temperature=1, learning_rate="auto", probe={"share": 1}, out=tmp_path)
    assert config.model == config.out == str(tmp_path) and isinstance(config.temperature, float)
    assert config.learning_rate is None and config.probe == ProbeConfig(share=1.0)


@pytest.mark.parametrize(
    ("layers", "text"),
    [(16, "16"), ([8, 16], "8,16"), (range(10, 15), "10-14"), ("10-14", "10-14"), ("16, 8,8", "8,16"), ("-1", "-1"),
     ([-2, -1], "-2,-1"), ("0,1,2,5", "0-2,5"), ("0-9999999999", "0-9999999999"), ("full", "full"), (None, None)],
)  # fmt: skip
def test_layers_have_one_form(layers: Any, text: str | None) -> None:
    assert Config(model="m", layers=layers).layers == text


def test_the_folder_of_an_arm_of_many_layers_has_a_name_that_a_file_system_takes() -> None:
    arms = [Arm(layers=layers, learning_rate=1e-4, seed=0) for layers in (tuple(range(128)), (3,), (3, 4, 9), "full")]
    assert [arm.key for arm in arms] == [f"layer-{name}_rate-0.0001_seed-0" for name in ("0-127", "3", "3-4,9", "full")]


def test_a_config_is_frozen_and_a_changed_copy_is_checked() -> None:
    config = Config(model="m", steps=3)
    assert config.replace(steps=4) == Config(model="m", steps=4) and pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ConfigError, match="--steps 0 cannot work"):
        config.replace(steps=0)
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 5


@pytest.mark.parametrize("verb", [autolayer.pick, autolayer.train_layer, autolayer.measure])
def test_keywords_of_a_verb_are_the_fields_of_config(verb: Callable[..., Any]) -> None:
    parameters = inspect.signature(verb).parameters
    own = {"config", "until", "num_seeds", "rates", "progress"}
    assert [name for name in parameters if name not in own] == list(Config.model_fields)
    for name, field in Config.model_fields.items():
        assert parameters[name].default == (inspect.Parameter.empty if field.is_required() else field.default)


def test_keywords_have_the_types_of_the_fields() -> None:
    """A keyword may take more forms than the field holds, never fewer."""
    accepted = get_type_hints(Options)
    assert list(accepted) == list(Config.model_fields)
    for name, field in Config.model_fields.items():
        assert kinds(field.annotation) <= kinds(accepted[name]), name
    wider = {name for name, field in Config.model_fields.items() if kinds(field.annotation) != kinds(accepted[name])}
    assert wider == {
        "model",
        "data",
        "reward",
        "reward_weights",
        "columns",
        "history",
        "out",
        "layers",
        "learning_rate",
        "track",
    } | {*TABLES}


def kinds(annotation: Any) -> set[Any]:
    """Returns the members of a union, without bounds on their values."""
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return {kind for part in get_args(annotation) for kind in kinds(part)}
    return {annotation}
