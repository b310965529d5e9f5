"""`autolayer export`: hands the layers of a finished run, or layers given by name, over to another trainer."""

from pathlib import Path

from autolayer.core.errors import ConfigError, RunFolderError
from autolayer.core.layer_set import name_layers
from autolayer.core.run_folder import CONFIG, RunFolder
from autolayer.models.layer_names import layer_names
from autolayer.models.lora import ALPHA, RANK
from autolayer.models.names import model_path
from autolayer.reporting.export import Handover, export_text
from autolayer.reporting.results import PickResult


def hand_over(trainer: str, run: Path | None, *, layers: str | None = None, model: str | None = None) -> str:
    """Returns the text to paste into another trainer.

    Args:
        trainer: One of `export.TRAINERS`.
        run: The folder of a run with a result.json, or None.
        layers: Layers instead of the run's.
        model: Base model instead of the run's; needed without a run, as `layers` is.

    Raises:
        ConfigError: There is no run, and layers or model are missing.
        RunFolderError: The run has chosen no layer.
        ModelError: The configuration of the model cannot be read.
    """
    result = None if run is None else PickResult.read(run)
    if result is None and (layers is None or model is None):
        raise ConfigError("nothing to export: give the folder of a run, or both --model and --layers.")
    chosen = None if result is None else result.trained_layers or result.best_layers
    if layers is None and not chosen:
        raise RunFolderError(
            f"{run} has chosen no layer: it ended before anything was probed. Repeat its command without --until, or "
            "give --layers."
        )
    settings = {} if run is None else RunFolder(run).read(CONFIG) or {}
    # The result names a GGUF file with how its weights were quantized, which is no name to load.
    name: str = model or settings.get("model") or (result.model if result else "")
    names = layer_names(name, layers if layers is not None else list(chosen or ()))
    notes, learning_rate = [], None
    if result is not None and names.layers == chosen:
        learning_rate = result.learning_rate
        if result.status != "ok":
            notes.append(f"The run was stopped before its training: {name_layers(names.layers)} is the choice so far.")
        if result.tied_layers:
            notes.append(f"The run could not tell these apart: {name_layers(result.tied_layers)}.")
        if settings.get("layers") == "full":
            notes.append("The run trained all parameters. Embeddings, final norm and head are not handed over.")
    return export_text(
        trainer,
        Handover(
            names=names,
            model=name,
            path=model_path(name),
            lora=(RANK, ALPHA),
            learning_rate=learning_rate,
            is_adapter=settings.get("adapter") == "lora",
            settings=settings,
            task=result.task if result else None,
            notes=tuple(notes),
        ),
    )
