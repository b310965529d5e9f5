"""A server follows the policy, or the run ends with a sentence. The real one: tests/rollouts/test_vllm.py."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from launch_helpers import launch
from stub_server import Stub, choice, serving
from tiny_models import build_model, build_tokenizer
from workbench_helpers import make_bench

import autolayer
from autolayer.core.arms import Arm
from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, EngineError
from autolayer.distributed.process_group import ProcessGroup
from autolayer.models.layers import find_layers
from autolayer.models.loading import load_model
from autolayer.rollouts.engines.vllm_server import VLLMServerEngine
from autolayer.training.train_arm import train_arm
from autolayer.training.workbench import Workbench

PROMPTS = [[5, 6, 7, 8]] * 3 + [[9, 10, 11]] * 2


@pytest.fixture
def base(tmp_path: Path) -> Path:
    build_model("qwen3").save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def stub(base: Path) -> Iterator[Stub]:
    loaded = load_model(str(base), "cpu")
    with serving(loaded.model, loaded.tokenizer) as stub:
        yield stub


def bench_of(base: Path, urls: str) -> Workbench:
    run = base.parent / "run"
    return make_bench(
        load_model(str(base), "cpu").model,
        run,
        make_engine=partial(VLLMServerEngine, urls=urls, path=str(base), folder=run),
    )


def test_it_serves_what_is_trained_and_gets_changed_layers_only(base: Path, stub: Stub) -> None:
    bench = bench_of(base, stub.url)
    plain = make_bench(load_model(str(base), "cpu").model, base.parent / "plain")
    assert stub.loads == [], "a server is not touched before it is used"
    expected = plain.engine.generate(PROMPTS, range(5))
    assert bench.engine.generate(PROMPTS, range(5)) == expected
    arm = train_arm(bench, Arm(layers=(2,), learning_rate=0.05, seed=0), 2).arm
    with bench.weights(arm.layers, bench.arm_weights(arm)), plain.weights(arm.layers, bench.arm_weights(arm)):
        served = bench.engine.generate(PROMPTS, range(5))
        assert served == plain.engine.generate(PROMPTS, range(5)) != expected
    assert bench.engine.generate(PROMPTS, range(5)) == expected
    layer = len(list(find_layers(bench.model)[2].parameters()))
    assert set(stub.loads[1:]) == {layer} and stub.loads[0] > layer, "the base once, then one layer"
    assert not list((base.parent / "run").glob("sync-*"))


def test_two_servers_share_the_requests(base: Path, stub: Stub) -> None:
    with serving(stub.model, stub.tokenizer) as other:
        bench = bench_of(base, f"{stub.url}/v1, {other.url}/")
        plain = make_bench(load_model(str(base), "cpu").model, base.parent / "plain")
        assert bench.engine.generate(PROMPTS, range(5)) == plain.engine.generate(PROMPTS, range(5))
        assert (stub.completions, other.completions) == (3 + 1, 2 + 1), "one is held against the policy"
        assert stub.version == other.version != "default"


def restarted(stub: Stub) -> None:
    stub.version = "default"


def used_by_another(stub: Stub) -> None:
    stub.version = "other"


def dying(stub: Stub) -> None:
    stub.broken = 2


def wrong(path: str, answer: Any) -> Callable[[Stub], None]:
    def set_answer(stub: Stub) -> None:
        stub.answers[path] = answer

    return set_answer


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (restarted, "has other weights than this run has given it"),
        (used_by_another, "has other weights than this run has given it"),
        (dying, "has failed"),
        (wrong("/v1/completions", {"choices": []}), "answers something else than vLLM's"),
        (
            wrong("/v1/completions", {"choices": [choice([3], None)]}),
            "something else than vLLM's",
        ),
        (wrong("/v1/completions", b"<html>a proxy's page</html>"), "something else than vLLM's"),
        (
            wrong(
                "/v1/completions",
                {"choices": [choice([3], {"token_logprobs": []})]},
            ),
            "1 tokens",
        ),
        (wrong("/v1/completions", {"choices": [{"finish_reason": "abort"}]}), "a completion ended by abort"),
        (wrong("/v1/completions", b""), "404"),
    ],
)
def test_what_happens_to_a_server_ends_a_run_and_drops_no_arm(
    base: Path, stub: Stub, happens: Callable[[Stub], None], said: str
) -> None:
    bench = bench_of(base, stub.url)
    bench.engine.generate(PROMPTS, range(5))
    happens(stub)
    with pytest.raises(EngineError, match=said):  # an arm is dropped by a TrainingError only
        train_arm(bench, Arm(layers=(2,), learning_rate=0.05, seed=0), 2)


@pytest.mark.parametrize("happens", [restarted, used_by_another])
def test_other_weights_are_seen_before_new_ones_cover_them(
    base: Path, stub: Stub, happens: Callable[[Stub], None]
) -> None:
    bench = bench_of(base, stub.url)
    bench.engine.generate(PROMPTS, range(5))
    happens(stub)
    loads = list(stub.loads)
    bench.copy_in(
        {"model.layers.1.mlp.up_proj.weight": bench.model.get_parameter("model.layers.1.mlp.up_proj.weight") + 1}
    )
    with pytest.raises(EngineError, match="has other weights than this run has given it"):
        bench.engine.generate(PROMPTS, range(5))
    assert stub.loads == loads


def test_processes_that_follow_know_which_weights_have_to_be_there(base: Path, stub: Stub) -> None:
    loaded = load_model(str(base), "cpu")
    make = partial(VLLMServerEngine, loaded.model, loaded.tokenizer, urls=stub.url, path=str(base), folder=base.parent,
                   max_new_tokens=4, temperature=1.0)  # fmt: skip
    leader, follower = make(), make(is_rank_0=False)
    sent: list[Any] = []

    def gather(mine: Any) -> list[Any]:
        sent.append(mine)
        return sent[:1]

    group = cast(ProcessGroup, SimpleNamespace(gather=gather))
    leader.share_weights(group)
    follower.share_weights(group)
    assert sent[0] and sent[1] is None
    assert follower.generate(PROMPTS, range(5)) == leader.generate(PROMPTS, range(5)) and len(stub.loads) == 1
    stub.version = "other"
    with pytest.raises(EngineError, match="has other weights"):
        follower.generate(PROMPTS, range(5))


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (wrong("/reset_prefix_cache", {"success": False}), "could not clear its prefix cache"),
        (wrong("/collective_rpc", b""), "did not load"),
    ],
)
def test_weights_that_do_not_arrive_are_noticed(
    base: Path, stub: Stub, happens: Callable[[Stub], None], said: str
) -> None:
    bench = bench_of(base, stub.url)
    happens(stub)
    with pytest.raises(EngineError, match=said):
        bench.engine.generate(PROMPTS, range(5))


def test_another_models_weights_are_noticed(base: Path, stub: Stub) -> None:
    bench = bench_of(base, stub.url)
    with torch.no_grad():
        bench.model.get_parameter("model.norm.weight").mul_(1.5)  # nobody was told
    with pytest.raises(EngineError, match="vLLM and the policy differ by"):
        bench.engine.generate(PROMPTS, range(5))


def test_a_server_that_cannot_follow_is_refused(base: Path, stub: Stub) -> None:
    for path, answer, said in (
        (
            "/server_info",
            b"",
            r"404 Not Found; VLLM_SERVER_DEV_MODE=1 is not set, or .* has moved /server_info",
        ),
        (
            "/server_info",
            {"vllm_config": {"model_config": {"dtype": "torch.float32"}}},
            "returns None in torch.float32",
        ),
        ("/weight_info", b"", "404 Not Found; .* has moved /weight_info"),
        ("/v1/models", {"data": []}, "is not a vLLM server that can load new weights"),
    ):
        stub.answers = {path: answer}
        with pytest.raises(ConfigError, match=said):
            bench_of(base, stub.url)
    with pytest.raises(ConfigError, match="is not a vLLM server that can load new weights .*refused"):
        autolayer.pick(model=str(base), task="math:arith", rollouts="http://127.0.0.1:9", out=str(base.parent / "no"))
    assert not (base.parent / "no").exists()
    for text in ("http://", "http://one:1,ftp://two", "https://a b", "http://one:8000,"):
        with pytest.raises(ValueError, match="give auto, transformers, vllm, or http"):
            Config(model="tiny", rollouts=text)


@pytest.fixture
def options(base: Path) -> dict[str, Any]:
    program = "def score(completions, **_): return [sum(ord(x) % 3 == 0 for x in text) / 8 for text in completions]\n"
    (base.parent / "reward.py").write_text(program)
    rows = [json.dumps({"prompt": f"q{index}="}) for index in range(800)]
    (base.parent / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    return {
        "model": str(base), "data": str(base.parent / "prompts.jsonl"), "max_new_tokens": 8, "device": "cpu",
        "reward": f"{base.parent / 'reward.py'}:score", "steps": 6, "prompts_per_step": 4, "group_size": 4,
        "layers": "1,2", "num_eval": 16, "budget": 3.0, "learning_rate": 0.01,
    }  # fmt: skip


@pytest.mark.slow
def test_a_served_run_finds_what_another_finds_and_goes_on_after_the_server_died(
    base: Path, stub: Stub, options: dict[str, Any]
) -> None:
    expected = autolayer.pick(**options, out=str(base.parent / "plain"))
    stub.broken = 300  # in the race
    out = str(base.parent / "served")
    with pytest.raises(EngineError, match="has failed|did not load"):
        autolayer.pick(**options, rollouts=stub.url, out=out)
    assert not (Path(out) / "result.json").exists()
    with serving(load_model(str(base), "cpu").model, stub.tokenizer) as again:
        found = autolayer.pick(**options, rollouts=again.url, out=out)
    assert found.status == "ok" and any(row.rungs for row in found.ranking or ())
    assert (found.best_layers, found.base_score) == (expected.best_layers, expected.base_score)
    assert found.trained_score == pytest.approx(expected.trained_score, abs=0.05)


@pytest.mark.slow
def test_a_server_follows_a_policy_in_shards(base: Path, stub: Stub, options: dict[str, Any]) -> None:
    """One of two processes sends each changed layer, whole, and the base again when the layer is in shards again."""
    expected = autolayer.pick(**options, rollouts=stub.url, out=str(base.parent / "whole"))
    given = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = ("pick", *given, "--rollouts", stub.url, "--shard", "--out", "shards", "--json")
    done = launch(2, *command, cwd=base.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert any(row["rungs"] for row in found["ranking"]), "there was a race"
    assert found["best_layers"] == list(expected.best_layers or ())
    assert found["base_score"] == expected.base_score
    assert found["trained_score"] == pytest.approx(expected.trained_score, abs=0.05)


def test_a_server_that_holds_too_little_is_refused(base: Path, options: dict[str, Any]) -> None:
    loaded = load_model(str(base), "cpu")
    refusal = r"have up to 1\d tokens, but the context of the server has 10: .*--max-model-len"
    with (
        serving(loaded.model, loaded.tokenizer, max_model_len=10) as small,
        pytest.raises(ConfigError, match=refusal),
    ):
        autolayer.pick(**options, rollouts=small.url, out=str(base.parent / "small"))
    assert not (base.parent / "small").exists()
