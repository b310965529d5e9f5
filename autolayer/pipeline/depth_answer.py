"""Answers `pick --budget 0` from the depth prior alone: no weights, no task and no device are used.

Nothing is measured and nothing is trained. The result says so, and what such a choice lost on models of other families.
"""

from collections.abc import Iterator

from autolayer.core import depth_prior
from autolayer.core.config import Config
from autolayer.core.errors import ConfigError
from autolayer.core.formatting import format_count
from autolayer.core.launch import is_first_process
from autolayer.core.layer_set import parse_layers
from autolayer.core.run_folder import REPORT, RESULT, open_run
from autolayer.models.layers import find_layers
from autolayer.models.loading import meta_model
from autolayer.models.names import titled
from autolayer.pipeline.defaults import check_names
from autolayer.reporting.html import html_page
from autolayer.reporting.results import Baseline, PickResult, RankingRow, versions


def answer_from_depth(config: Config, until: str | None = None) -> PickResult:
    """Returns the ranking by depth alone, and writes it to the run folder.

    Raises:
        AutolayerError: A name does not exist, or an option needs a budget.
    """
    given = {f"--until {until}": until is not None, f"--top-k {config.top_k}": config.top_k != 1}
    if refused := [option for option, is_given in given.items() if is_given]:
        raise ConfigError(
            f"{' and '.join(refused)} needs a budget, because --budget 0 ranks single layers by depth and runs "
            "nothing: leave it out, or give --budget 0.1."
        )
    check_names(config)
    model = meta_model(config.model, only_header=True)
    num_layers = len(find_layers(model))
    candidates = parse_layers(config.layers, num_layers, config.model)
    assert candidates != "full"
    predicted_L = depth_prior.predicted(candidates, num_layers)
    low_L, high_L = depth_prior.position_interval(candidates, num_layers)
    rows = [
        RankingRow(layer=layer, predicted=float(value), predicted_low=float(low), predicted_high=float(high))
        for layer, value, low, high in zip(candidates, predicted_L, low_L, high_L, strict=True)
    ]
    by_layer = {row.layer: row for row in rows}
    best = max(rows, key=lambda row: row.predicted or 0.0)
    band = predicted_L >= predicted_L.max() - config.regret
    baselines = {
        name: candidates[int(depth_prior.scores(name, candidates, num_layers).argmax())]
        for name in depth_prior.DEPTH_BASELINES
    }
    folder = open_run(config)
    settings = {"verb": "pick", **config.signed()}
    del settings["measure"]

    def result(signature: str) -> PickResult:
        return PickResult(
            status="prior",
            model=titled(config.model),
            task=config.task_name,
            algorithm=config.algorithm,
            num_layers=num_layers,
            candidates=candidates,
            best_layers=(best.layer,),
            tied_layers=tuple(layer for layer, is_good in zip(candidates, band, strict=True) if is_good),
            expected_regret=depth_prior.REGRET[0],
            ranking=tuple(sorted(rows, key=lambda row: -(row.predicted or 0.0))),
            baselines={name: Baseline(layer=at, predicted=by_layer[at].predicted) for name, at in baselines.items()},
            cost_share_of_full_run=0.0,
            seed=config.seed,
            signature=signature,
            versions=versions(),
            notes=tuple(_notes(sum(parameter.numel() for parameter in model.parameters()))),
        )

    if not is_first_process():
        return result(config.signature)
    with folder.locked():
        found = result(folder.start_or_resume(settings)["signature"])
        folder.write(RESULT, found.to_dict())
        folder.write_text(REPORT, html_page(found, folder.path))
    return found


def _notes(num_parameters: int) -> Iterator[str]:
    mean, least, most = depth_prior.REGRET
    yield (
        "nothing was measured: the ranking is by depth alone, as fitted to pretrained models that RL trained one layer "
        "at a time"
    )
    yield (
        f"on {depth_prior.NUM_CURVES} curves of models that the fit had not seen, its first choice lost {least:.2f} to "
        f"{most:.2f} of the full gain, {mean:.2f} in the mean: little evidence, and under supervised LoRA the same "
        f"rule lost up to {depth_prior.SUPERVISED_REGRET:.2f}"
    )
    if not depth_prior.applies(num_parameters):
        yield (
            f"this model has {format_count(num_parameters)} parameters: below {format_count(depth_prior.SMALL)} depth "
            "tells nothing (LayerBench: its choice loses 0.20 of the full gain, a random layer 0.23)"
        )
