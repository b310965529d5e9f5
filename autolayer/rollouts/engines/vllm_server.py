"""Rollouts by vLLM servers on other devices or machines (weight_sync.py sends them the weights).

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs

A layer travels as a file: it is written into the run folder, and the server is told to read it there. That works
between any two machines that see one file system, whatever their GPUs and however the server has divided the model
among them, and needs no process group with it.

A server belongs to one run at a time. Each load leaves a version of its own there, which is looked at before and after
every batch: log-probabilities alone would not tell a layer in training from the base in 16 bits.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file

from autolayer.core.errors import ConfigError, EngineError
from autolayer.distributed.fsdp import is_sharded
from autolayer.models.disk_space import follow_umask
from autolayer.rollouts.engines.base import Completion
from autolayer.rollouts.engines.vllm_client import ServerError, VLLMClient
from autolayer.rollouts.engines.weight_sync import SyncedEngine

START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --dtype DTYPE --logprobs-mode processed_logprobs"
"""The command that starts a server which can follow."""

T = TypeVar("T")


def clients_of(rollouts: str) -> list[VLLMClient]:
    """--rollouts as servers: URLs, with commas between them."""
    return [VLLMClient(url.strip().rstrip("/").removesuffix("/v1")) for url in rollouts.split(",")]


def check_servers(rollouts: str, start: str = START) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What servers serve, and how they were started.

    Raises:
        ConfigError: One does not answer, or cannot follow; `start` is the command that starts one which can.
    """
    found = []
    for server in clients_of(rollouts):
        try:
            found.append((server.model(), server.settings()))
        except ServerError as error:
            raise ConfigError(
                f"--rollouts {server.url} is no vLLM server that can follow ({error}): start one by `{start}`."
            ) from None
    return found


class VLLMServerEngine(SyncedEngine):
    """See `Engine`; vLLM need not be installed here. A server is changed when it is first used, not before.

    Args:
        urls: Of the servers, with commas between them; each gets every n-th request.
        path: What the model was loaded from; the servers read it from there, too.
        folder: Where layers are left for the servers to read.
        is_rank_0: Whether this process, of several at one run, sends the weights.

    Raises:
        ConfigError: A server does not answer, cannot follow, or was started in another way.
    """

    is_shared = True

    def __init__(self, *args: Any, urls: str, path: str, folder: Path, is_rank_0: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        self.servers = clients_of(urls)
        self.folder, self.is_rank_0 = folder.absolute(), is_rank_0
        self.path = str(Path(path).absolute()) if Path(path).exists() else path
        self._start = START.replace("MODEL", path).replace("DTYPE", str(self.model.dtype).removeprefix("torch."))
        self._version: str | None = None
        """That this run has left in the servers; None before the first use."""
        found = check_servers(urls, self._start)
        for server, (_, settings) in zip(self.servers, found, strict=True):
            self._check_settings(server, settings)
        self._names = [served["id"] for served, _ in found]
        self.max_context = min(self.max_context, *(served["max_model_len"] for served, _ in found))

    def _check_settings(self, server: VLLMClient, settings: Mapping[str, Any]) -> None:
        mode, dtype = settings.get("logprobs_mode"), str(settings.get("dtype"))
        if settings.get("quantization") is not None:
            raise ConfigError(
                f"the server at {server.url} quantizes its copy ({settings['quantization']}) and would sample from "
                f"another policy: start it by `{self._start}`."
            )
        if mode != "processed_logprobs" or f"torch.{dtype.removeprefix('torch.')}" != str(self.model.dtype):
            raise ConfigError(
                f"the server at {server.url} gives {mode} in {dtype}, which does not compare with the policy's: start "
                f"it by `{self._start}`."
            )

    @property
    def advice(self) -> str:
        return f"Start the server anew by `{self._start}`, and the same command goes on."

    def sample_requests(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], limits: Sequence[int], ends: set[int]
    ) -> list[Completion]:
        """See `Engine.sample_requests`."""
        if not prompt_ids:
            return []
        self.sync_weights()
        count, num = len(prompt_ids), len(self.servers)

        def one_of_each(limit: int) -> list[Completion]:
            asked = [self._request(server, prompt_ids[0], 0, limit, set()) for server in range(num)]
            return self._all(self._complete, range(num), asked)

        self._check(prompt_ids[0], one_of_each)
        if is_sharded(self.model) and not self.is_rank_0:  # every rank was needed for the policy's pass in the check
            return []
        servers = [index % num for index in range(count)]
        asked = [self._request(servers[i], prompt_ids[i], seeds[i], limits[i], ends) for i in range(count)]
        completions = self._all(self._complete, servers, asked)
        self._look()  # nobody has changed anything meanwhile
        return completions

    def _look(self) -> None:
        """Whether all servers have the weights that rank 0 has given them."""
        found = self._all(lambda server: self._try(server, server.version), self.servers)
        if any(version != self._version for version in found):
            raise EngineError(
                "a server has other weights than this run has given it: it was started again, or another run uses it. "
                "Start one for each run, and the same command goes on."
            )

    def _request(self, server: int, prompt: Sequence[int], seed: int, limit: int, ends: set[int]) -> dict[str, Any]:
        return {
            "model": self._names[server], "prompt": list(prompt), "seed": seed, "max_tokens": limit,
            "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "stop_token_ids": sorted(ends),
            "logprobs": 0, "return_token_ids": True, "skip_special_tokens": False,
            # Nothing of the model's own sampling settings, which a server may take as defaults.
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0,
        }  # fmt: skip

    def _complete(self, server: int, request: dict[str, Any]) -> Completion:
        return self._try(self.servers[server], lambda: self.servers[server].complete(request))

    def _try(self, server: VLLMClient, work: Callable[[], T]) -> T:
        try:
            return work()
        except ServerError as error:
            raise EngineError(f"the server at {server.url} has failed ({error}). {self.advice}") from None

    def _all(self, work: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
        """At once, as many as the engine may; an error, or Ctrl-C, waits for none of the others."""
        threads = ThreadPoolExecutor(self.max_sequences)
        try:
            return list(threads.map(work, *arguments))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    # The policy's weights

    def sync_weights(self) -> None:
        if self.is_rank_0 and self._version is None:  # the run before may have left its layer behind
            self._load(self.path)
        else:
            self._look()  # before anything is sent, which would hide that there were other weights
        super().sync_weights()

    def publish_version(self) -> str | None:
        if self.is_rank_0:
            self.sync_weights()
        else:
            super().sync_weights()  # sends nothing, but a sharded block is made whole by all ranks
        return self._version

    def expect_version(self, version: str | None) -> None:
        self._version = version

    def _send(self, weights: Mapping[str, torch.Tensor]) -> None:
        if not self.is_rank_0:
            return
        # A new name each time: some file systems remember the old file.
        there = self.folder / f"sync-{uuid.uuid4().hex}"
        there.mkdir(parents=True)
        try:
            save_file({name: w.detach().cpu().contiguous() for name, w in weights.items()}, there / "model.safetensors")
            follow_umask(there)
            self._load(str(there))
        finally:
            shutil.rmtree(there, ignore_errors=True)

    def _load(self, path: str) -> None:
        """Has every server read the weights in a folder."""
        version = uuid.uuid4().hex

        def load(server: VLLMClient) -> None:
            try:
                server.load(path, version)
            except ServerError as error:
                raise EngineError(
                    f"the server at {server.url} did not load {path} ({error}); it has to see that path. {self.advice}"
                ) from None

        self._all(load, self.servers)
        self._version, self._unchecked = version, True
