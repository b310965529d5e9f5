"""The model card of a trained layer, for the Hugging Face Hub (`model_card.md.jinja`)."""

from pathlib import Path
from typing import Literal

from huggingface_hub import ModelCard, ModelCardData

from autolayer.core.layer_set import name_layers
from autolayer.reporting.results import PickResult
from autolayer.reporting.run_files import repeat_command
from autolayer.reporting.sentences import cost_line, headline

Kind = Literal["patch", "adapter", "merged"]
ABOUT = {
    "patch": "`layer.safetensors` holds these layers alone. "
    "`autolayer merge layer.safetensors --model BASE --out merged` writes the whole model.",
    "adapter": "This is a LoRA adapter of these layers, for PEFT and vLLM.",
    "merged": "All other weights are bit-identical to the base's, so that it loads as the base does.",
}
LIBRARIES = {"patch": "autolayer", "adapter": "peft", "merged": "transformers"}


def model_card(
    result: PickResult, folder: Path, kind: Kind, repo_id: str, base: str | None, licence: str | None
) -> str:
    """Returns the card's text.

    Args:
        result: A result with a trained layer and its scores.
        folder: Its run folder.
        kind: What the repository holds.
        repo_id: Name of the repository.
        base: Name of the base model on the Hub, which then links both; None for a model that is not there.
        licence: Licence that the base's card states, if any.
    """
    data = ModelCardData(
        base_model=base,
        base_model_relation=base and ("finetune" if kind == "merged" else "adapter"),
        library_name=LIBRARIES[kind],
        license=licence,
        tags=["autolayer", "reinforcement-learning", result.algorithm],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).parent / "model_card.md.jinja"),
        title=repo_id.rpartition("/")[2],
        headline=headline(result),
        layers=name_layers(result.trained_layers or ()),
        base=base or Path(result.model).name,
        about=ABOUT[kind],
        result=result,
        cost=cost_line(result),
        command=repeat_command(folder),
        versions=", ".join(f"{name} {version}" for name, version in result.versions.items()),
    )
    return str(card)
