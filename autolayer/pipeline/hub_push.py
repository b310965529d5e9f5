"""`autolayer push`: uploads what a run trained to the Hugging Face Hub, with a model card."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, ModelCard, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from autolayer.core.errors import ConfigError, RunFolderError
from autolayer.core.run_folder import ADAPTER, PATCH
from autolayer.models.lora import read_adapter_info
from autolayer.models.merge import merge
from autolayer.models.names import NAMED, full_name
from autolayer.models.patch import load_patch
from autolayer.reporting.model_card import Kind, model_card
from autolayer.reporting.results import PickResult


def push(run: Path, repo_id: str, *, private: bool = False, merged: bool = False, model: str | None = None) -> str:
    """Uploads a run's patch or adapter, or the whole merged model. The repository is made before any other work.

    Args:
        run: The folder of a run whose training has finished.
        repo_id: Repository, 'owner/name'. One that exists gets a new commit.
        private: True to make it private if it is new.
        merged: True to merge into the base and upload the whole model.
        model: The base to merge into; None for the one that the patch names.

    Returns:
        The address of the commit.

    Raises:
        RunFolderError: The run has trained nothing.
        PatchError: Its patch is damaged, or cannot be merged.
        ModelError: The base cannot be loaded.
        ConfigError: The Hub cannot be reached, or refuses; the run stays as it is.
    """
    result = PickResult.read(run)
    path = run / ADAPTER if (run / ADAPTER).is_dir() else run / PATCH
    if result.trained_layers is None or result.gain is None or not path.exists():
        raise RunFolderError(f"{run} has trained no layer yet: repeat its command to finish it, and push then.")
    named = read_adapter_info(path)["base"] if path.is_dir() else load_patch(path).base
    base = full_name(model) if model else named
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))  # huggingface_hub itself read it when it was imported
    with _one_sentence(repo_id):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
    kind: Kind = "merged" if merged else "adapter" if path.is_dir() else "patch"
    with tempfile.TemporaryDirectory(prefix=".push-", dir=run) as scratch:
        folder = Path(scratch) / "model"
        if merged:
            merge(model, path, folder)
        elif path.is_dir():
            shutil.copytree(path, folder)
        else:
            folder.mkdir()
            shutil.copyfile(path, folder / PATCH)
        card = model_card(result, run, kind, repo_id, *_on_hub(base))
        (folder / "README.md").write_text(card, encoding="utf-8")
        with _one_sentence(repo_id):
            done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Add the {kind} of autolayer")
    return done.commit_url


def _on_hub(base: str) -> tuple[str | None, str | None]:
    """Returns the base's name on the Hub, and the licence of its card where a copy lies on this machine.

    A patch names a local base by its absolute path.
    """
    name = None if base in NAMED or Path(base).is_absolute() else base
    card = Path(base) / "README.md" if name is None else try_to_load_from_cache(name, "README.md")
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return name, None
    return name, ModelCard.load(card, ignore_metadata_errors=True).data.get("license")


@contextmanager
def _one_sentence(repo_id: str) -> Iterator[None]:
    """Turns whatever keeps the Hub from answering into one sentence."""
    try:
        yield
    except (httpx2.HTTPError, OfflineModeIsEnabled, HFValidationError) as error:
        why = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"the Hub did not take {repo_id} ({why}): log in with `hf auth login` or set HF_TOKEN to a token that may "
            "write there, and check the network. The run stays as it is."
        ) from None
