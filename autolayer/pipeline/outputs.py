"""Writes the outputs of a run: the trained layers, result.json, which marks them as complete, and last the report."""

from collections.abc import Callable

from autolayer.core.arms import Arm
from autolayer.core.run_folder import ADAPTER, PATCH, REPORT, RESULT
from autolayer.models.lora import load_adapter, read_adapter_info, save_adapter
from autolayer.models.names import full_name, model_path
from autolayer.models.patch import LayerPatch, check_run, load_patch
from autolayer.pipeline.run_context import RunContext
from autolayer.reporting.html import html_page
from autolayer.reporting.results import PickResult


def finished_result(run: RunContext) -> PickResult | None:
    """Returns the result of an earlier, completed run of the same command, or None.

    Raises:
        AutolayerError: The result or the trained layers are damaged, or of another run.
    """
    found = run.folder.read(RESULT)
    result = None if found is None else PickResult.from_dict(found, run.folder / RESULT)
    # If the trained layers were deleted, they are written again from the arm's checkpoint.
    if result is None or result.status != "ok" or not run.folder.has(_product(run)):
        return None
    run.bench.process_group.on_rank_0(lambda: _check_product(run))
    return result


def save_result(run: RunContext, result: PickResult, trained: Arm | None = None) -> PickResult:
    """Writes the files of a result, with the weights of the `trained` arm if there is one.

    Returns the result of rank 0, on every rank, because timings differ between ranks.
    """
    patch = None if trained is None else _patch(run, trained)

    def write() -> PickResult:
        if patch is not None and run.config.adapter is None:
            patch.save(run.folder / PATCH)
        elif patch is not None:
            about = {name: value for name, value in vars(patch).items() if name != "tensors"}
            save_adapter(run.folder / ADAPTER, patch.tensors, model_path(patch.base), about)
        run.folder.write(RESULT, result.to_dict())
        run.folder.write_text(REPORT, html_page(result, run.folder.path))
        return result

    return run.bench.process_group.on_rank_0(write)


def train_once(run: RunContext, work: Callable[[], PickResult]) -> PickResult:
    """Trains and saves the result once across workers, and returns it on all of them."""
    mine: list[PickResult] = []
    # If --hours ends the training, it is over for this call, and the next call resumes it.
    run.run_once("train", lambda: mine.append(work()), lambda: bool(mine) or finished_result(run) is not None)
    result = mine[0] if mine else finished_result(run)
    assert result is not None
    return result


def _product(run: RunContext) -> str:
    return PATCH if run.config.adapter is None else ADAPTER


def _check_product(run: RunContext) -> None:
    path = run.folder / _product(run)
    if run.config.adapter is None:
        signature = load_patch(path).signature
    else:
        load_adapter(path)
        signature = read_adapter_info(path).get("signature")
    check_run(path, signature, run.signature)


def _patch(run: RunContext, trained: Arm) -> LayerPatch:
    bench = run.bench
    return LayerPatch(
        tensors=bench.arm_weights(trained) or bench.base(trained.layers),
        base=full_name(bench.loaded.name),
        base_hash=bench.loaded.weight_hash,
        layers=trained.layers,
        task=bench.task.name,
        algorithm=run.config.algorithm,
        steps=trained.step,
        signature=run.signature,
    )
