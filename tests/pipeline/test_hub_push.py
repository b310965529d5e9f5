"""`push` against a stand-in of the Hub's API: which files it sends, the card, and refusals."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard, constants
from patch_helpers import trained
from result_helpers import finished

from autolayer.cli.commands import cli
from autolayer.core.errors import ConfigError, ModelError, RunFolderError
from autolayer.models import lora
from autolayer.models.layers import linear_module_names
from autolayer.models.loading import load_model
from autolayer.models.patch import load_patch


class Hub(ThreadingHTTPServer):
    """Answers the calls of `create_repo` and `upload_folder` (huggingface_hub 2.4), with every file inline."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.status = f"http://127.0.0.1:{self.server_port}", 200
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}

    def answer(self, path: str, body: bytes) -> Any:
        if path.endswith("/repos/create"):
            self.created = json.loads(body)
            return {"url": f"{self.url}/me/layer"}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"commitUrl": f"{self.url}/me/layer/commit/abc", "commitOid": "abc"}
        assert path.endswith("/validate-yaml"), path
        return {"warnings": [], "errors": []}


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps(self.server.answer(self.path, body)).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self) -> None:
        self.send_error(self.server.status)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path) -> Path:
    folder, base = tmp_path / "run", tmp_path / "base"
    folder.mkdir()
    shutil.copytree(tiny_folder, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    trained(base, (1,))[1].save(folder / "layer.safetensors")
    (folder / "result.json").write_text(json.dumps(finished().to_dict()))
    return folder


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, ["push", *map(str, arguments)], catch_exceptions=False)


def test_the_patch_and_its_card(hub: Hub, run: Path) -> None:
    before = sorted(run.iterdir())
    done = call(run, "me/layer", "--private")
    assert done.exit_code == 0 and done.stdout == f"wrote {hub.url}/me/layer/commit/abc\n"
    assert hub.created["name"] == "layer" and "private" in json.dumps(hub.created) and sorted(run.iterdir()) == before
    assert sorted(hub.files) == ["README.md", "layer.safetensors"]
    assert hub.files["layer.safetensors"] == (run / "layer.safetensors").read_bytes()
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.get("library_name") == "autolayer" and {"autolayer", "grpo"} <= set(card.data.get("tags"))
    assert card.data.get("base_model") is None and card.data.get("license") == "apache-2.0", "the base is a folder"
    for text in ("layer 1 of the 3 layers of tiny", "0.400", "0.600", "+0.200 [+0.100, +0.300]", "What was not checked",
                 "20% of one full training", "a note", "autolayer 0.1.0"):  # fmt: skip
        assert text in card.text, text


def test_the_merged_model(hub: Hub, run: Path) -> None:
    assert call(run, "me/layer", "--merged").exit_code == 0
    assert {"README.md", "config.json", "model.safetensors"} <= set(hub.files)
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.get("library_name") == "transformers" and "A base" not in card.text


def test_the_merged_model_of_a_base_that_has_moved(hub: Hub, run: Path, tmp_path: Path) -> None:
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"named in .*layer\.safetensors, .* if it is elsewhere, give --model\."):
        call(run, "me/layer", "--merged")
    with pytest.raises(ModelError, match="nowhere") as refused:
        call(run, "me/layer", "--merged", "--model", tmp_path / "nowhere")
    assert "elsewhere" not in str(refused.value)
    with pytest.raises(ConfigError, match="give --merged as well"):
        call(run, "me/layer", "--model", tmp_path / "moved")
    assert not hub.files
    assert call(run, "me/layer", "--merged", "--model", tmp_path / "moved").exit_code == 0
    assert {"README.md", "config.json", "model.safetensors"} <= set(hub.files)
    assert ModelCard(hub.files["README.md"].decode()).data.get("license") == "apache-2.0"


def test_an_adapter_goes_before_a_patch(hub: Hub, run: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tmp_path / "base"), device="cpu")
    lora.add_adapters(loaded.model, linear_module_names(loaded.model, (1,)), seed=0)
    tensors = {name: p.detach() for name, p in loaded.model.named_parameters() if "lora_" in name}
    info = {"base": str(tmp_path / "base"), "base_hash": loaded.weight_hash, "layers": [1]}
    lora.save_adapter(run / "adapter", tensors, str(tmp_path / "base"), info)
    assert call(run, "me/layer").exit_code == 0
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(hub.files)
    assert "layer.safetensors" not in hub.files
    assert ModelCard(hub.files["README.md"].decode()).data.get("library_name") == "peft"


def test_a_base_of_the_hub_is_linked(hub: Hub, run: Path) -> None:
    path = run / "layer.safetensors"
    replace(load_patch(path), base="Qwen/Qwen3-8B").save(path)
    assert call(run, "me/layer").exit_code == 0
    data = ModelCard(hub.files["README.md"].decode()).data
    assert (data.get("base_model"), data.get("base_model_relation")) == ("Qwen/Qwen3-8B", "adapter")
    assert data.get("license") is None


def test_refusals_are_one_sentence_before_the_work(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status = 401
    with pytest.raises(ConfigError, match=r"did not take me/layer .* `hf auth login`") as refused:
        call(run, "me/layer", "--merged")
    assert "\n" not in str(refused.value) and not hub.files
    with pytest.raises(ConfigError, match=r"did not take a/b/c"):
        call(run, "a/b/c")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"did not take me/layer \(.*refused"):
        call(run, "me/layer")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="offline mode is enabled"):
        call(run, "me/layer")
    (run / "layer.safetensors").unlink()
    with pytest.raises(RunFolderError, match="has trained no layer yet"):
        call(run, "me/layer")
