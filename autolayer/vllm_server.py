"""Rollouts by vLLM servers on other devices or machines (copy_engine.py says how they follow the policy).

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --generation-config vllm

A layer travels as a file: it is written into the run folder, and the server is told to read it there. That works
between any two machines that see one file system, whatever their GPUs and however the server has divided the model
among them, and needs no process group with it. A server belongs to one run: every batch is checked.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from autolayer.copy_engine import CopyEngine
from autolayer.engine import Completion
from autolayer.errors import ConfigError, EngineError

START = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve {model} --dtype {dtype} --logprobs-mode processed_logprobs "
    "--generation-config vllm"
)
"""The command that starts a server which can follow."""


def is_server(rollouts: str) -> bool:
    """Whether --rollouts names servers: URLs, with commas between them."""
    return rollouts.startswith(("http://", "https://"))


class VLLMServer(CopyEngine):
    """See `Engine`; vLLM need not be installed here.

    Args:
        urls: Of the servers, with commas between them; each gets every n-th request.
        path: What the model was loaded from; the servers read it from there, too.
        folder: Where layers are left for the servers to read.
        leads: Whether this process, of several at one run, sends the weights.

    Raises:
        ConfigError: A server does not answer, cannot follow, or does not see the files.
    """

    is_shared = True

    def __init__(self, *args: Any, urls: str, path: str, folder: Path, leads: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        self.urls = [url.strip().rstrip("/").removesuffix("/v1") for url in urls.split(",")]
        self.folder, self.leads = folder.absolute(), leads
        dtype = str(self.model.dtype).removeprefix("torch.")
        self._start = START.format(model=path, dtype=dtype)
        self._syncs = 0
        served = [self._served(url) for url in self.urls]
        self._names = [each["id"] for each in served]
        self.context = min(self.context, *(each["max_model_len"] for each in served))
        if leads:  # the run before may have left its layer behind
            local = Path(path)
            self._load(str(local.absolute()) if local.exists() else path)

    @property
    def advice(self) -> str:
        return f"A server belongs to one run, with this model and these settings: `{self._start}`."

    def _served(self, url: str) -> dict[str, Any]:
        try:
            _post(f"{url}/reset_prefix_cache")
            with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer:
                return json.load(answer)["data"][0]
        except (_RefusedError, OSError, ValueError, LookupError) as error:
            raise ConfigError(
                f"--rollouts {url} is no vLLM server that can follow ({error}): start it by `{self._start}`."
            ) from None

    def _sample(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], limits: Sequence[int], ends: set[int]
    ) -> list[Completion]:
        if not prompt_ids:
            return []
        self.follow()
        with ThreadPoolExecutor(min(self.max_sequences, len(prompt_ids) + len(self.urls))) as threads:
            with self._to_compare(prompt_ids[0]) as limit:
                checks = [
                    threads.submit(self._complete, *self._request(server, prompt_ids[0], 0, limit, set()))
                    for server in range(len(self.urls) if self.leads else 0)
                ]
            asked = [
                self._request(index % len(self.urls), prompt_ids[index], seeds[index], limits[index], ends)
                for index in range(len(prompt_ids))
            ]
            completions = list(threads.map(self._complete, *zip(*asked, strict=True)))
            for check in checks:
                self.compare(prompt_ids[0], check.result())
        return completions

    def _request(
        self, server: int, prompt: Sequence[int], seed: int, limit: int, ends: set[int]
    ) -> tuple[str, dict[str, Any]]:
        return self.urls[server], {
            "model": self._names[server], "prompt": list(prompt), "seed": seed, "max_tokens": limit,
            "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "stop_token_ids": sorted(ends),
            "logprobs": 0, "return_token_ids": True, "skip_special_tokens": False,
        }  # fmt: skip

    def _complete(self, url: str, request: dict[str, Any]) -> Completion:
        try:
            (choice,) = _post(f"{url}/v1/completions", request)["choices"]
        except (_RefusedError, OSError) as error:
            raise EngineError(
                f"the server at {url} has failed ({error}): start it again by `{self._start}`, and the same command "
                "goes on."
            ) from None
        return Completion(choice["token_ids"], choice["logprobs"]["token_logprobs"])

    # The policy's weights

    def changed(self, names: Any) -> None:
        if self.leads:
            super().changed(names)

    def _send(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._syncs += 1
        there = self.folder / f"sync-{self._syncs}"  # a new name each time: some file systems remember the old file
        there.mkdir(parents=True, exist_ok=True)
        try:
            save_file({name: w.detach().cpu().contiguous() for name, w in weights.items()}, there / "model.safetensors")
            self._load(str(there))
        finally:
            shutil.rmtree(there, ignore_errors=True)

    def _load(self, path: str) -> None:
        """Has every server read the weights in a folder."""
        with ThreadPoolExecutor(len(self.urls)) as threads:
            list(threads.map(self._load_one, self.urls, [path] * len(self.urls)))

    def _load_one(self, url: str, path: str) -> None:
        try:
            _post(f"{url}/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
            _post(f"{url}/reset_prefix_cache")
        except (_RefusedError, OSError) as error:
            raise EngineError(
                f"the server at {url} could not read {path} ({error}): start it where it sees this folder, and the "
                "same command goes on."
            ) from None


class _RefusedError(Exception):
    """A server's answer that is none."""


def _post(url: str, body: dict[str, Any] | None = None) -> Any:
    """Posts JSON, however long the answer takes.

    Raises:
        _RefusedError: The server says no.
        OSError: It does not answer.
    """
    data = json.dumps(body or {}).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace").strip()
        with contextlib.suppress(ValueError, LookupError, TypeError):
            said = json.loads(said)["error"]["message"]
        raise _RefusedError(" ".join([f"{error.code} {error.reason}", *said.splitlines()[:1]])) from None
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from None
    return json.loads(text) if text else None
