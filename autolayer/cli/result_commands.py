"""The commands that take a finished run: `report`, `export`, `merge` and `push`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from autolayer.cli.group import JSON, print_result
from autolayer.cli.output import only_stderr
from autolayer.core.errors import ConfigError, RunFolderError
from autolayer.core.run_folder import ADAPTER, CALIBRATION, PATCH, RESULT, RunFolder
from autolayer.core.shown_text import visible
from autolayer.reporting.export import TRAINERS


@click.command(epilog="\b\nExamples:\n  autolayer report runs/demo-seed-0\n  autolayer report runs/demo-seed-0 --all\n"
             "  autolayer report runs/demo-seed-0 --regret 0.1 --top-k 3")  # fmt: skip
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option("--all", "show_all", is_flag=True, help="Show every layer of a long ranking.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Also write the one-file report here.")
@click.option("--figures", metavar="FOLDER", type=click.Path(path_type=Path),
              help="Also write the report's figures here: SVG, and with autolayer[figures] PNG.")  # fmt: skip
@click.option("--regret", metavar="NUMBER", type=click.FLOAT,
              help="Decide again from what was measured: contribution that you are ready to lose.")  # fmt: skip
@click.option("--top-k", metavar="N", type=click.INT, help="Decide again: layers to train together.")
@JSON
def report(
    run_folder: Path,
    show_all: bool,
    html: Path | None,
    figures: Path | None,
    regret: float | None,
    top_k: int | None,
    as_json: bool,
) -> None:
    """Show the result of a run again, or decide again from what it measured. The run stays as it is."""
    from autolayer.reporting.html import html_page, write_figures
    from autolayer.reporting.results import PickResult

    _check_result(run_folder)
    result = PickResult.read(run_folder)
    decides = (regret, top_k) != (None, None)
    if decides:
        with only_stderr():
            from autolayer.pipeline.decide_again import decide_run_again

            result = decide_run_again(run_folder, regret=regret, top_k=top_k)
    folder = None if decides else run_folder  # its final run belongs to the first decision
    written: list[Path] = []
    wanted = f"--html {html}", "file"
    try:
        if html is not None:
            html.parent.mkdir(parents=True, exist_ok=True)
            html.write_text(html_page(result, folder), encoding="utf-8")
            written.append(html)
        wanted = f"--figures {figures}", "folder"
        if figures is not None:
            written += write_figures(result, folder, figures)
    except OSError as error:
        raise ConfigError(
            f"{wanted[0]} cannot be written ({error.strerror}): give the path of a {wanted[1]}."
        ) from None
    for path in written:
        click.echo(visible(f"wrote {path}"), err=True)
    print_result(result, folder, as_json, show_all)


@click.command(epilog="\b\nExamples:\n  autolayer export runs/demo-seed-0 --to trl\n"
             "  autolayer export --model Qwen/Qwen3-8B --layers 12 --to axolotl")  # fmt: skip
@click.argument("run_folder", required=False, type=click.Path(path_type=Path))
@click.option("--to", "trainer", type=click.Choice(TRAINERS), help="Trainer to write for.")
@click.option("--layers", metavar="LAYERS", help="Layers to hand over, such as 16, 10-14 or 8,16. Default: the run's.")
@click.option("--model", metavar="NAME", help="Base model. Default: the run's.")
def export(run_folder: Path | None, trainer: str | None, layers: str | None, model: str | None) -> None:
    """Print what makes another trainer train the chosen layers.

    The text is meant to be pasted. Its comments say what it does not hand over.
    """
    if trainer is None:
        raise ConfigError(f"--to is missing: name the trainer to write for ({', '.join(TRAINERS)}).")
    if run_folder is not None:
        _check_result(run_folder)
    with only_stderr():
        from autolayer.pipeline.handover import hand_over

        text = hand_over(trainer, run_folder, layers=layers, model=model)
    click.echo(visible(text), nl=False)


@click.command(epilog="\b\nExamples:\n  autolayer merge runs/demo-seed-0 --out merged\n"
             "  autolayer merge layer.safetensors --model ./copy-of-the-base --out merged")  # fmt: skip
@click.argument("source", metavar="RUN_FOLDER_OR_PATCH", type=click.Path(path_type=Path))
@click.option("--model", metavar="NAME", help="Base model, if it is not at the place that the patch names.")
@click.option("--out", metavar="FOLDER", type=click.Path(path_type=Path), required=True, help="Folder to write.")
def merge(source: Path, model: str | None, out: Path) -> None:
    """Write a complete Hugging Face checkpoint with the trained layer."""
    path = source / PATCH if source.is_dir() else source
    if (source / ADAPTER).is_dir():
        path = source / ADAPTER
    if not path.exists():
        raise ConfigError(f"{path} does not exist: give a run folder whose training has finished, or a patch file.")
    with only_stderr():
        from autolayer.models.merge import merge as merge_into_base

        written = merge_into_base(model, path, out)
    how = f"AutoModelForCausalLM.from_pretrained({str(written)!r})"
    click.echo(
        visible(f"wrote {written}: load it with transformers' {how}, or serve it: vllm serve {quote(str(written))}")
    )


@click.command(epilog="\b\nExamples:\n  autolayer push runs/demo-seed-0 me/demo-layer --private\n"
             "  autolayer push runs/demo-seed-0 me/demo --merged")  # fmt: skip
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.argument("repo_id")
@click.option("--merged", is_flag=True, help="Upload the whole model, merged, instead of the trained layer.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--model", metavar="NAME", help="Base model to merge into, if it is not where the patch says.")
def push(run_folder: Path, repo_id: str, merged: bool, private: bool, model: str | None) -> None:
    """Upload the trained layer to the Hugging Face Hub, with a model card."""
    _check_result(run_folder)
    if model is not None and not merged:
        raise ConfigError("--model is the base that push --merged merges into: give --merged as well, or leave it out.")
    with only_stderr():
        from autolayer.pipeline.hub_push import push as upload

        address = upload(run_folder, repo_id, private=private, merged=merged, model=model)
    click.echo(visible(f"wrote {address}"))


def _check_result(run_folder: Path) -> None:
    if not (folder := RunFolder(run_folder)).has(RESULT):
        raise RunFolderError(_why_no_result(folder))


def _why_no_result(folder: RunFolder) -> str:
    from autolayer.reporting.contribution import Contribution

    if (folder / Contribution.FILE).is_file():
        return f"{folder.path} is a run of `measure`: repeat its command to see it, or `compare` a prediction with it."
    if (calibration := folder.read(CALIBRATION)) is None:
        return f"{folder.path} has no {RESULT}: give the folder of a run, or repeat its command to finish it."
    if calibration.get("status") == "no_signal":
        return f"{folder.path} found no training signal: {calibration.get('message') or 'see ' + CALIBRATION}"
    return f"{folder.path} is not finished: repeat the command that made it to resume it."
