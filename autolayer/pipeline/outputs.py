"""What a run keeps: the trained layers, the report, and result.json, which comes last and says that all is there."""

from __future__ import annotations

from collections.abc import Callable

from autolayer.core.arms import Arm
from autolayer.core.errors import RunFolderError
from autolayer.core.run_folder import ADAPTER, PATCH, REPORT, RESULT
from autolayer.models import lora
from autolayer.models.loading import model_path
from autolayer.models.patch import LayerPatch
from autolayer.pipeline.run_context import RunContext
from autolayer.reporting import results
from autolayer.reporting.html import write_html
from autolayer.reporting.results import PickResult


def finished_result(run: RunContext) -> PickResult | None:
    """Returns the result of an earlier run of the same command that came to its end, or None."""
    found = run.folder.read(RESULT)
    result = None if found is None else results.from_dict(found)
    if run.bench.ranks.leads:
        # Trained layers that were deleted are made again from the arm's checkpoint.
        whole = any((run.folder / name).exists() for name in (PATCH, ADAPTER))
        return result if result is not None and result.status == "ok" and whole else None
    if result is None:
        raise RunFolderError(f"the leading process left no result in {run.folder.path}: its message says why.")
    return result


def save_result(run: RunContext, result: PickResult, trained: Arm | None = None) -> PickResult:
    """Writes the files of a result.

    Args:
        run: The run.
        result: What to write.
        trained: The arm whose weights are kept.

    Returns:
        The result.
    """
    if trained is not None:
        patch = _patch(run, trained)
        if run.config.adapter is None:
            patch.save(run.folder / PATCH)
        else:
            about = {name: value for name, value in vars(patch).items() if name != "tensors"}
            lora.save_adapter(run.folder / ADAPTER, patch.tensors, model_path(patch.base), about)
    write_html(result, run.folder / REPORT)
    values = result.to_dict()
    results.validate(values)
    run.folder.write(RESULT, values)
    return result


def train_once(run: RunContext, work: Callable[[], PickResult]) -> PickResult:
    """Does the final training once across workers, and returns its result, whichever worker did it.

    Args:
        run: The run.
        work: Trains, and saves the result.
    """
    mine: list[PickResult] = []
    # A training that --hours has ended is over for this call; the next call goes on with it.
    run.run_once("train", lambda: mine.append(work()), lambda: bool(mine) or finished_result(run) is not None)
    result = mine[0] if mine else finished_result(run)
    assert result is not None
    return result


def _patch(run: RunContext, trained: Arm) -> LayerPatch:
    bench = run.bench
    return LayerPatch(
        tensors=bench.arm_weights(trained) or bench.base(trained.layers),
        base=bench.loaded.name,
        base_hash=bench.loaded.weight_hash,
        layers=trained.layers,
        task=bench.task.name,
        algorithm=run.config.algorithm,
        steps=trained.step,
    )
