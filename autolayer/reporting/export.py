"""The text to paste into another trainer so that it trains the layers that a run has chosen, and nothing else.

`export_templates/` has one template for each trainer, which cites how that trainer chooses parameters by their names.
Comments in the text say what is not handed over. `autolayer.models.layer_names` finds the names.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autolayer.core.errors import LayerError
from autolayer.core.layer_set import name_layers

TRAINERS = ("trl", "axolotl", "llama-factory", "ms-swift", "verl", "unsloth", "peft", "regex")
"""The trainers that `autolayer export --to` writes for."""


@dataclass(frozen=True, kw_only=True)
class LayerNames:
    """The names of some layers of a model, as transformers gives them."""

    layers: tuple[int, ...]
    num_layers: int
    prefixes: tuple[str, ...]
    """Full name of the list of blocks: in the causal model and, where it differs, in the model with images."""
    frozen: tuple[str, ...] = ()
    """Modules inside the layers that stay frozen (routers), such as "mlp.gate"."""
    linear: tuple[str, ...] = ()
    """The `nn.Linear` modules inside the layers that LoRA adapts."""
    unadapted: tuple[str, ...] = ()
    """Trained matrices inside the layers that LoRA does not adapt, such as fused experts."""


@dataclass(frozen=True, kw_only=True)
class Handover:
    """The parts of a run that another trainer needs."""

    names: LayerNames
    model: str
    """Name of the base model, as given."""
    path: str
    """The argument of `from_pretrained` for it."""
    lora: tuple[int, int]
    """Rank and alpha of LoRA adapters."""
    learning_rate: float | None = None
    is_adapter: bool = False
    """True if the run has trained LoRA adapters, whose learning rate is not that of whole layers."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the run, as config.json has them; empty without a run."""
    task: str | None = None
    """Name of the run's task."""
    notes: tuple[str, ...] = ()
    """Sentences that the reader has to know besides."""


def export_text(trainer: str, run: Handover) -> str:
    """Returns the text to paste, which ends with comments on what is not handed over.

    Args:
        trainer: One of `TRAINERS`.
        run: The layers, and what is known about training them.

    Raises:
        LayerError: The trainer is PEFT, and the layers have no linear modules.
    """
    import jinja2

    names = run.names
    if trainer == "peft" and not names.linear:
        raise LayerError(
            f"{name_layers(names.layers)} of {run.model} without an nn.Linear, the only modules that LoRA adapts here: "
            "hand whole layers over, such as with --to trl."
        )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "export_templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"shell": shlex.quote, "python": repr}
    has_rate = run.learning_rate is not None and run.is_adapter == (trainer == "peft")
    text = environment.get_template(f"{trainer}.jinja").render(
        model=_absolute(run.path),
        layers=list(names.layers),
        num_layers=names.num_layers,
        rate=f"{run.learning_rate:g}" if has_rate else None,
        settings=run.settings or {"algorithm": "grpo"},
        own_data=_own_data(run.settings),
        pattern=lambda dot=r"\.": parameter_pattern(names, dot),
        linear_pattern=linear_pattern(names),
        freeze=lambda: _freeze(names),
        rank=run.lora[0],
        alpha=run.lora[1],
        count=_first_or_last(names),
        notes=_comments("Not handed over, and what to know:", *_notes(trainer, run)),
    )
    return _comments(f"{name_layers(names.layers)} of {names.num_layers} of {run.model}, for {trainer}") + text


def _own_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that say where the user's prompts and rewards are; empty for another task."""
    if not settings.get("reward"):
        return {}
    names = ("data", "split", "columns", "reward", "reward_weights")
    given = {name: settings[name] for name in names if settings.get(name) is not None}
    if "columns" in given:
        given["columns"] = dict(given["columns"])
    rewards = [given["reward"]] if isinstance(given["reward"], str) else given["reward"]
    return given | {"data": _absolute(given["data"]), "reward": [_absolute(name) for name in rewards]}


def _absolute(name: str) -> str:
    """Returns a file's name, or file:function, with the absolute path of a file that is here; others as they are."""
    if Path(name).exists():
        return str(Path(name).resolve())
    file, colon, function = name.rpartition(":")
    return f"{Path(file).resolve()}:{function}" if colon and Path(file).is_file() else name


def parameter_pattern(names: LayerNames, dot: str = r"\.") -> str:
    """Returns a regular expression that finds the trained parameters of a model by their names, and no others.

    It is anchored at the start of a name, so `re.search` and `re.match` agree.

    Args:
        names: The names of the layers.
        dot: How to write a literal dot.
    """
    blocks = dot.join((_either(names.prefixes, dot), _either(names.layers, dot), ""))
    return f"^{blocks}" + (f"(?!{_either(names.frozen, dot)}{dot})" if names.frozen else "")


def linear_pattern(names: LayerNames) -> str:
    """Returns a regular expression that fully matches the names of the layers' `nn.Linear` modules, and no others."""
    return r"\.".join(_either(parts, r"\.") for parts in (names.prefixes, names.layers, names.linear))


def _either(parts: Sequence[object], dot: str) -> str:
    texts = [str(part).replace(".", dot) for part in parts]
    return texts[0] if len(texts) == 1 else f"(?:{'|'.join(texts)})"


def _comments(*lines: str) -> str:
    return "".join(f"# {' '.join(line.split())}\n" for line in lines)  # a path may hold the end of a line


def _freeze(names: LayerNames) -> str:
    return (
        "for name, parameter in model.named_parameters():\n"
        f"    parameter.requires_grad_(re.search(r'{parameter_pattern(names)}', name) is not None)"
    )


def _first_or_last(names: LayerNames) -> int:
    """Returns how many last layers (negative: first ones) hold all chosen layers, the fewer of the two."""
    first, last = max(names.layers) + 1, names.num_layers - min(names.layers)
    return -first if first < last else last


def _notes(trainer: str, run: Handover) -> list[str]:
    names, known, notes = run.names, run.settings, []
    if names.frozen and trainer != "peft":
        notes.append(f"The routers ({', '.join(names.frozen)}) stay frozen, as embeddings, final norm and head do.")
    if names.unadapted and trainer == "peft":
        notes.append(f"Matrices that get no adapter: {', '.join(names.unadapted)}.")
    if run.learning_rate is None:
        notes.append("Learning rate: none was looked for. `autolayer train` takes one from the probes.")
    elif run.is_adapter != (trainer == "peft"):
        trained, other = ("LoRA adapters", "a tenth of it") if run.is_adapter else ("whole layers", "ten times as much")
        notes.append(f"Learning rate: {run.learning_rate:g} was found for {trained}; try {other} here.")
    if known:
        notes.append(
            f"Rewards, prompts and sampling: the run was {known['algorithm']} on {run.task or known['task']} with "
            f"{known['prompts_per_step']} prompts of {known['group_size']} completions a step,"
        )
        notes.append(f"KL weight {known['beta']:g}, temperature {known['temperature']:g}, gradients clipped to norm 1.")
    if known.get("algorithm") == "gigpo":
        notes.append("GiGPO's advantages for every step of an episode are autolayer's own; this is GRPO.")
    if len(names.prefixes) > 1:
        notes.append(f"Names without and with images: {' and '.join(names.prefixes)}, as transformers 5 has them.")
        notes.append("Before 4.52, transformers called the second language_model.model.layers: change it there.")
    return [*notes, *run.notes, "To check it in the trainer's process: print(autolayer.freeze_report(model))."]
