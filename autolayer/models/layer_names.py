"""The names of some layers of a model, which other trainers choose parameters by. No weight is read."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from autolayer.core.layer_set import LayersLike, parse_layers
from autolayer.models.layers import find_layers, layer_parameters, linear_module_names
from autolayer.models.loading import meta_model, quiet_transformers, read_config
from autolayer.models.validation import reading
from autolayer.reporting.export import LayerNames


def layer_names(name: str, layers: LayersLike) -> LayerNames:
    """Returns the names of some layers of a model, from its configuration alone.

    Args:
        name: A model name, as `load_model` accepts it.
        layers: Layers as `parse_layers` accepts them.

    Raises:
        ModelError: The configuration cannot be read, or describes no causal language model.
        LayerError: A layer does not exist, or cannot be trained alone.
    """
    prefixes, model = [], meta_model(name)
    for each in (model, _model_with_images(name)):
        if each is not None and (prefix := _prefix(each)) not in prefixes:
            prefixes.append(prefix)
    return names_in(model, layers, tuple(prefixes))


def names_in(model: nn.Module, layers: LayersLike, prefixes: tuple[str, ...] = ()) -> LayerNames:
    """Returns the names of some layers of a model that is there, with its own prefix where none are given."""
    blocks = find_layers(model)
    chosen = [int(index) for index in parse_layers(layers, len(blocks), type(model).__name__)]
    places = {f"{_prefix(model)}.{index}." for index in chosen}
    trained = {_inside(name, places): p for name, p in layer_parameters(model, tuple(chosen)).items()}
    parameters = {name for index in chosen for name, _ in blocks[index].named_parameters()}
    linear = {_inside(module, places) for module in linear_module_names(model, chosen)}
    matrices = {inside for inside, p in trained.items() if p.dim() > 1 and inside.rpartition(".")[0] not in linear}
    return LayerNames(
        layers=tuple(chosen),
        num_layers=len(blocks),
        prefixes=prefixes or (_prefix(model),),
        frozen=tuple(sorted({name.rpartition(".")[0] for name in parameters - trained.keys()})),
        linear=tuple(sorted(linear)),
        unadapted=tuple(sorted(matrices)),
    )


def _inside(name: str, places: set[str]) -> str:
    return next(name.removeprefix(place) for place in places if name.startswith(place))


def _prefix(model: nn.Module) -> str:
    blocks = find_layers(model)
    return next(name for name, module in model.named_modules() if module is blocks)


def _model_with_images(name: str) -> Any:
    """Returns the model that trainers load if they keep the images of a checkpoint, or None if it has none."""
    config = read_config(name)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return None
    with quiet_transformers(), torch.device("meta"), reading(name):
        return AutoModelForImageTextToText.from_config(config)
