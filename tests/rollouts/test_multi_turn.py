"""Episodes: the transcript token by token, who earns what, and the losses over them, against sums written by hand."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from multi_turn_helpers import Echo, make_task, often_ending
from tiny_models import VOCABULARY, build_model, build_tokenizer
from workbench_helpers import make_bench, spied_gradients

from autolayer.core.arms import Arm
from autolayer.core.config import GiGPOConfig
from autolayer.core.errors import EpisodeError
from autolayer.models.layers import layer_parameters
from autolayer.rollouts.engines.hf import TransformersEngine
from autolayer.rollouts.multi_turn import PROMPT, play_episodes
from autolayer.rollouts.rollouts import Rollouts, request_seed
from autolayer.tasks.base import Task
from autolayer.tasks.environment import Step
from autolayer.training.advantages import step_advantages
from autolayer.training.grpo_trainer import LayerGRPOTrainer
from autolayer.training.logprobs import ScoreBatch
from autolayer.training.train_arm import train_arm, train_rows


def make_engine(model: Any, *, chat: bool = False, **options: Any) -> TransformersEngine:
    return TransformersEngine(
        model, build_tokenizer(chat_template=chat), **{"max_new_tokens": 6, "temperature": 1.0, **options}
    )


def play_some(task: Task, engine: TransformersEngine, num: int = 8) -> Rollouts:
    rows = [row for row in task.splits["train"][: num // 2] for _ in range(2)]
    return play_episodes(engine, task, rows, [request_seed("test", index) for index in range(num)], group_size=2)


def test_plain_text_reads_as_the_module_says() -> None:
    task, engine = make_task(), make_engine(often_ending())
    rollouts = play_some(task, engine)
    tokenizer: Any = engine.tokenizer
    assert any(len(turns) > 1 for turns in rollouts.turns) and any(len(turns) < 3 for turns in rollouts.turns)
    for index, turns in enumerate(rollouts.turns):
        row = task.splits["train"][index // 2]
        assert tokenizer.decode(rollouts.prompt_ids[index]) == f"{row['prompt']}{row['first']}{PROMPT}"
        ids = rollouts.completion_ids[index]
        actions = [tokenizer.decode(ids[t.start : t.stop], skip_special_tokens=True) for t in turns]
        assert rollouts.texts[index] == "\n".join(action.strip() for action in actions)
        for turn, following, action in zip(turns[:-1], turns[1:], actions, strict=False):
            line = "" if action.endswith("\n") else "\n"
            read = tokenizer.decode(ids[turn.stop : following.start])
            assert read == f"{line}{len(action.strip())}!{PROMPT}"
            assert following.state == f"{len(action.strip())}!"
        assert turns[0] == (0, turns[0].stop, actions[0].count("a"), row["first"])
        assert turns[-1].stop == len(ids)
        assert rollouts.rewards[index] == sum(action.count("a") for action in actions)
        lengths = [len(rollouts.prompt_ids[index]) + turn.start for turn in turns]
        assert rollouts.prefilled[index] == sum(lengths)


def test_only_the_models_own_tokens_count() -> None:
    task, engine = make_task(), make_engine(often_ending())
    rollouts = play_some(task, engine)
    own = [sum(mask) for mask in rollouts.own_masks()]
    assert own == [sum(turn.stop - turn.start for turn in turns) for turns in rollouts.turns]
    assert rollouts.num_generated == sum(own) < sum(map(len, rollouts.completion_ids))
    batch = ScoreBatch.of(rollouts, 0, torch.device("cpu"))
    assert batch.completion_mask.sum(1).tolist() == own
    for index, mask in enumerate(rollouts.own_masks()):
        first = len(rollouts.prompt_ids[index])
        assert batch.completion_mask[index, first : first + len(mask)].tolist() == mask


def test_actions_are_sampled_from_the_transcript_so_far() -> None:
    """Each action alone, from the tokens before it, with the turn's seed."""
    task, engine = make_task(), make_engine(often_ending())
    rollouts = play_some(task, engine)
    breaks: Any = [engine.tokenizer.convert_tokens_to_ids("\n")]
    for index, turns in enumerate(rollouts.turns):
        seed = request_seed("test", index)
        for number, turn in enumerate(turns):
            before = rollouts.prompt_ids[index] + rollouts.completion_ids[index][: turn.start]
            again = engine.generate([before], [request_seed(seed, number) if number else seed], stop_ids=breaks)
            assert again[0] == rollouts.completion_ids[index][turn.start : turn.stop]


def test_a_line_break_ends_an_action() -> None:

    model = build_model("qwen3")
    engine = make_engine(model)
    (newline,) = engine.tokenizer("\n")["input_ids"]  # pyright: ignore
    completions = engine.generate([[5, 6]] * 64, range(64), stop_ids=[newline])
    assert any(ids[-1] == newline for ids in completions)
    assert all(newline not in ids[:-1] for ids in completions)


def test_chat_is_what_the_template_makes_of_the_whole_conversation() -> None:
    class Fixed(Echo):
        def step(self, action: str) -> Step:
            return Step("well", 1.0, False)

    task = make_task(Fixed, chat=True)
    engine = make_engine(build_model("qwen3"), chat=True, max_new_tokens=6)
    rollouts = play_some(task, engine)
    for index, turns in enumerate(rollouts.turns):
        row = task.splits["train"][index // 2]
        tokenizer: Any = engine.tokenizer
        messages = [{"role": "user", "content": f"{row['prompt'][0]['content']}\n\n{row['first']}"}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for turn in turns[:-1]:
            action = tokenizer.decode(rollouts.completion_ids[index][turn.start : turn.stop])
            # The template of these tests ends a message with a line.
            text += f"{action}\nuser: well\nassistant: "
        last = turns[-1]
        text += tokenizer.decode(rollouts.completion_ids[index][last.start :])
        assert tokenizer.decode(rollouts.prompt_ids[index] + rollouts.completion_ids[index]) == text


def test_a_template_that_rewrites_earlier_messages_and_ends_them_with_a_token() -> None:
    """Qwen3's template does this: thoughts are left out of all answers but the last."""
    template = (
        "{% for m in messages %}[{{ m.role }}]"
        "{% if m.role == 'assistant' and loop.last %}(thought){% endif %}{{ m.content }}<eos>"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = build_model("qwen3")
    engine = make_engine(model, chat=True)
    engine.tokenizer.chat_template = template
    rollouts = play_some(make_task(chat=True), engine)
    for index, turns in enumerate(rollouts.turns):
        ids = rollouts.completion_ids[index]
        for turn, following in zip(turns[:-1], turns[1:], strict=True):
            read = engine.tokenizer.decode(ids[turn.stop : following.start])
            observation = f"{following.state}"
            ended = ids[turn.stop - 1] == engine.tokenizer.eos_token_id
            assert read == ("" if ended else "<eos>") + f"[user]{observation}<eos>[assistant]"


def test_episodes_end_with_the_context_and_say_so() -> None:
    class Long(Echo):
        def step(self, action: str) -> Step:
            return Step("x" * 20, 1.0, False)

    engine = make_engine(build_model("qwen3"), max_context=48)
    rollouts = play_some(make_task(Long, max_turns=10), engine)
    for prompt_ids, ids, turns in zip(rollouts.prompt_ids, rollouts.completion_ids, rollouts.turns, strict=True):
        assert len(prompt_ids) + len(ids) <= 48 and len(turns) < 10
    assert not any(rollouts.finished)
    with pytest.raises(EpisodeError, match="no space for an action of 6 tokens in a context of 10"):
        play_some(make_task(), make_engine(build_model("qwen3"), max_context=10))


def test_environments_are_closed_whatever_happens() -> None:
    closed: list[int] = []

    class Held(Echo):
        broken = False

        def step(self, action: str) -> Step:
            if self.broken:
                raise ValueError("no")
            return super().step(action)

        def close(self) -> None:
            closed.append(id(self))

    play_some(make_task(Held), make_engine(often_ending()))
    assert len(set(closed)) == len(closed) == 8
    Held.broken = True
    with pytest.raises(EpisodeError, match="ValueError in step"):
        play_some(make_task(Held), make_engine(often_ending()))
    assert len(closed) == 16


def test_a_template_that_cannot_write_a_role_or_a_tool_is_named() -> None:
    class Tools(Echo):
        role = "tool"
        tools = ({"type": "function", "function": {"name": "look_around", "parameters": {}}},)

    engine = make_engine(often_ending(), chat=True)
    with pytest.raises(EpisodeError, match="does not show the tool look_around"):
        play_some(make_task(Tools, chat=True), engine)
    plain = str(engine.tokenizer.chat_template)
    engine.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}"
        "{{ tools }}" + plain
    )
    with pytest.raises(EpisodeError, match="template cannot render a message of the role 'tool' .no tools"):
        play_some(make_task(Tools, chat=True), engine)


def test_an_action_is_not_thought_of_while_the_template_has_it_thinking() -> None:
    """DeepSeek-R1's template writes <think> itself, so the model's words do not begin with it."""
    seen: list[str] = []

    class Listens(Echo):
        def step(self, action: str) -> Step:
            seen.append(action)
            return super().step(action)

    engine = make_engine(often_ending(), chat=True)
    play_some(make_task(Listens, chat=True), engine)
    assert not any("<think>" in action for action in seen)
    engine.tokenizer.chat_template = str(engine.tokenizer.chat_template) + "<think>"
    seen.clear()
    play_some(make_task(Listens, chat=True), engine)
    assert seen and all(action.startswith("<think>") for action in seen)


def test_what_is_due_at_the_end_goes_to_the_last_action_of_an_unfinished_episode() -> None:
    class Due(Echo):
        def finish(self) -> float:
            return 0.25

    rollouts = play_some(make_task(Due), make_engine(often_ending()))
    for turns, text, reward in zip(rollouts.turns, rollouts.texts, rollouts.rewards, strict=True):
        unfinished = not any(map(str.isdigit, text.splitlines()[-1] if text.splitlines() else ""))
        assert reward == text.count("a") + 0.25 * unfinished == sum(turn.reward for turn in turns)


def test_an_environment_names_its_states_where_it_can() -> None:
    class Named(Echo):
        @property
        def state(self) -> str:
            return f"turn {self.turn}"

    rollouts = play_some(make_task(Named), make_engine(often_ending()))
    assert all([t.state for t in turns] == [f"turn {i}" for i in range(len(turns))] for turns in rollouts.turns)


def _raises(self: Any, action: str) -> Step:
    raise ValueError("out of order")


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (_raises, "raised ValueError in step: out of order"),
        (lambda self, action: Step("x", float("nan"), False), "returned nan.*as the reward"),
        (lambda self, action: Step("x", cast(Any, "good"), False), "returned 'good'.*as the reward"),
        (lambda self, action: Step(cast(Any, 3), 0.0, False), "returned 3.*as the observation"),
        (lambda self, action: ("x", 0.0), "an autolayer.tasks.Step"),
        (lambda self, action: None, "None"),
        (
            lambda self, action: Step("<image>", 0.0, False),
            f"an observation of .* has the token '<image>' .{VOCABULARY}., but",
        ),
    ],
)
def test_a_failing_environment_is_named_and_never_a_reward(step: Any, words: str) -> None:
    broken = type("Broken", (Echo,), {"step": step})
    engine = make_engine(build_model("qwen3"))
    engine.tokenizer.add_tokens(["<image>"])  # which the embedding has no row for
    with pytest.raises(EpisodeError, match=words):
        play_some(make_task(broken), engine)


@pytest.mark.parametrize("finish", [lambda self: "much", lambda self: 1 / 0])
def test_a_failing_end_is_named_too(finish: Any) -> None:
    with pytest.raises(EpisodeError, match="in finish: division by zero|'much', a str: return a finite number"):
        play_some(make_task(type("Broken", (Echo,), {"finish": finish})), make_engine(build_model("qwen3")))


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "gigpo"])
def test_the_gradient_of_a_step_is_that_of_the_published_loss(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over episodes of unequal length; tokens that were read count nowhere."""
    seen = spied_gradients(monkeypatch)
    task = make_task()
    bench = make_bench(often_ending(), tmp_path, task=task, algorithm=algorithm, prompts_per_step=3)
    train_arm(bench, Arm(layers=(1, 2), learning_rate=1e-3, seed=5), 1)

    twin = often_ending()
    engine = make_engine(twin)
    rows = [row for row in train_rows(bench, 5, 0, 1) for _ in range(4)]
    rollouts = play_episodes(engine, task, rows, [request_seed(5, "train", 0, index) for index in range(12)], 4)
    rewards = torch.tensor(rollouts.rewards).view(3, 4)
    centred = rewards - rewards.mean(1, keepdim=True)
    scaled = centred / (rewards.std(1, keepdim=True) + 1e-4)
    of_episodes = (centred if algorithm == "dr_grpo" else scaled).flatten().tolist()
    advantages = [[a] * len(turns) for a, turns in zip(of_episodes, rollouts.turns, strict=True)]
    if algorithm == "gigpo":
        advantages = step_advantages(rollouts.turns, 4, GiGPOConfig())
    assert len({len(turns) for turns in rollouts.turns}) > 1
    trained = layer_parameters(twin.requires_grad_(False), (1, 2))
    for parameter in trained.values():
        parameter.requires_grad_(True)
    loss = torch.zeros(())
    for prompt, ids, turns, of_turns in zip(
        rollouts.prompt_ids, rollouts.completion_ids, rollouts.turns, advantages, strict=True
    ):
        logits = twin(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        own = sum(turn.stop - turn.start for turn in turns)
        length = 6 * 3 if algorithm == "dr_grpo" else own
        for turn, advantage in zip(turns, of_turns, strict=True):
            loss = loss - advantage * log_probs[turn.start : turn.stop].sum() / length / 12
    loss.backward()
    scale = max(float(p.grad.abs().max()) for p in trained.values() if p.grad is not None)
    assert scale > 0 and seen.keys() == trained.keys()
    for name, parameter in trained.items():
        assert parameter.grad is not None
        torch.testing.assert_close(seen[name], parameter.grad, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "gigpo"])
def test_off_policy_tokens_are_clipped(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """min(r A, clip(r, 1 - eps, 1 + eps) A), token by token, with an advantage for each of them (PPO's surrogate)."""
    original, compared = LayerGRPOTrainer._compute_loss, []

    def compute(self: Any, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        width = inputs["completion_ids"].shape[1]
        with torch.no_grad():
            now, *_ = self._get_per_token_logps_and_entropies(model, ids, seen, width)
        log_ratio = torch.randn(now.shape, generator=torch.Generator().manual_seed(1)) * 0.4
        loss = original(self, model, {**inputs, "old_per_token_logps": now - log_ratio})
        ratio, mask = log_ratio.exp(), inputs["completion_mask"] * inputs["tool_mask"]
        advantages = inputs["advantages"]
        advantages = advantages if advantages.dim() == 2 else advantages[:, None]
        gained = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) * mask
        lengths = torch.full((len(mask),), 18.0) if algorithm == "dr_grpo" else mask.sum(1)
        compared.append((float(loss), -float((gained.sum(1) / lengths).mean())))
        assert ((ratio - 1).abs()[mask.bool()] > 0.2).any()
        return loss

    monkeypatch.setattr(LayerGRPOTrainer, "_compute_loss", compute)
    bench = make_bench(often_ending(), tmp_path, task=make_task(), algorithm=algorithm, prompts_per_step=3)
    train_arm(bench, Arm(layers=(1, 2), learning_rate=1e-3, seed=5), 1)
    assert compared and all(found == pytest.approx(wanted, rel=1e-4) for found, wanted in compared)


def test_training_over_episodes_resumes_bit_for_bit(tmp_path: Path) -> None:
    arm = Arm(layers=(1,), learning_rate=1e-3, seed=3)
    whole = make_bench(often_ending(), tmp_path / "whole", task=make_task(), algorithm="gigpo")
    cut = make_bench(often_ending(), tmp_path / "cut", task=make_task(), algorithm="gigpo")
    one = train_arm(whole, arm, 4).arm
    two = train_arm(cut, train_arm(cut, arm, 1).arm, 4).arm
    left, right = whole.arm_weights(one), cut.arm_weights(two)
    assert left is not None and right is not None
    assert all(torch.equal(left[name], right[name]) for name in left)
