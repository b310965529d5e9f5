"""Rollouts by vLLM servers on other devices or machines (weight_sync.py decides which weights they need).

Weights are sent as files: a layer is written into the run folder, and the server loads it from there. This needs a
shared file system but no common process group, and works for any GPUs and any parallelism of the server.

A server belongs to one run at a time. Each load sets a new version on the server, which is checked before and after
every batch, because log-probabilities alone cannot distinguish a layer in training from the base in 16 bits.
"""

import itertools
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
from autolayer.distributed.process_group import ProcessGroup, attempt
from autolayer.models.disk_space import follow_umask
from autolayer.rollouts.engines.base import Completion
from autolayer.rollouts.engines.vllm_client import ServerError, VLLMClient
from autolayer.rollouts.engines.weight_sync import SyncedEngine

START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --dtype DTYPE --logprobs-mode processed_logprobs"
"""The command that starts a server which can load new weights."""

T = TypeVar("T")


def connect_servers(rollouts: str, start: str = START) -> list[VLLMClient]:
    """Returns clients of the servers of --rollouts, URLs separated by commas; an error shows the command `start`."""
    servers = [VLLMClient(url.strip().rstrip("/").removesuffix("/v1")) for url in rollouts.split(",")]
    for server in servers:
        try:
            server.connect()
        except ServerError as error:
            raise ConfigError(
                f"--rollouts {server.url} is not a vLLM server that can load new weights ({error}): start one with "
                f"`{start}`."
            ) from None
    return servers


class VLLMServerEngine(SyncedEngine):
    """Samples from vLLM servers, without vLLM in this process; does not change their weights before its first use.

    With n servers, each gets every n-th request. They load `path`, the folder or name of the model, and find the
    trained layers in `folder`, the run folder. See `Engine`.
    """

    def __init__(self, *args: Any, urls: str, path: str, folder: Path, is_rank_0: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        self.folder, self.is_rank_0 = folder.absolute(), is_rank_0
        self.path = str(Path(path).absolute()) if Path(path).exists() else path
        self._start = START.replace("MODEL", path).replace("DTYPE", str(self.model.dtype).removeprefix("torch."))
        self._version: str | None = None
        """Version that this run has set on the servers; None before the first use."""
        self.servers = connect_servers(urls, self._start)
        for server in self.servers:
            self._check_settings(server)
            self.max_context = min(self.max_context, server.max_model_len)

    def _check_settings(self, server: VLLMClient) -> None:
        mode, dtype = server.settings.get("logprobs_mode"), str(server.settings.get("dtype"))
        if (quantization := server.settings.get("quantization")) is not None:
            raise ConfigError(
                f"the server at {server.url} quantizes its copy ({quantization}) and would sample from "
                f"another policy: start it with `{self._start}`."
            )
        if mode != "processed_logprobs" or f"torch.{dtype.removeprefix('torch.')}" != str(self.model.dtype):
            raise ConfigError(
                f"the server at {server.url} returns {mode} in {dtype}, which cannot be compared with the policy's "
                f"log-probabilities: start it with `{self._start}`."
            )

    @property
    def advice(self) -> str:
        """Says how to restart the server and resume the run."""
        return f"Restart the server with `{self._start}`, then rerun the command to resume."

    def sample_requests(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], limits: Sequence[int], ends: set[int]
    ) -> list[Completion]:
        """See `Engine.sample_requests`."""
        if not prompt_ids:
            return []
        self.sync_weights()

        def one_of_each(limit: int) -> list[Completion]:
            return self._complete([self._request(prompt_ids[0], 0, limit, set())] * len(self.servers))

        self._check(prompt_ids[0], one_of_each)
        if is_sharded(self.model) and not self.is_rank_0:  # the check's forward pass of the policy needed every rank
            return []
        requests = zip(prompt_ids, seeds, limits, strict=True)
        completions = self._complete([self._request(prompt, seed, limit, ends) for prompt, seed, limit in requests])
        self._check_version()  # nobody has changed the weights during the batch
        return completions

    def _check_version(self) -> None:
        found = self._all(lambda server: self._try(server, server.version), self.servers)
        if any(version != self._version for version in found):
            raise EngineError(
                "a server has other weights than this run has given it, because it was restarted or another run uses "
                "it. Start one server for each run, then rerun the command to resume."
            )

    def _request(self, prompt: Sequence[int], seed: int, limit: int, ends: set[int]) -> dict[str, Any]:
        return {
            "prompt": list(prompt), "seed": seed, "max_tokens": limit, "stop_token_ids": sorted(ends),
            "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k,
            "logprobs": 0, "return_token_ids": True, "skip_special_tokens": False,
            # A server may take the model's own sampling settings as defaults, so they are switched off.
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0,
        }  # fmt: skip

    def _complete(self, requests: Sequence[dict[str, Any]]) -> list[Completion]:
        def complete(server: VLLMClient, request: dict[str, Any]) -> Completion:
            return self._try(server, lambda: server.complete(request))

        return self._all(complete, itertools.islice(itertools.cycle(self.servers), len(requests)), requests)

    def _try(self, server: VLLMClient, work: Callable[[], T]) -> T:
        try:
            return work()
        except ServerError as error:
            raise EngineError(f"the server at {server.url} has failed ({error}). {self.advice}") from None

    def _all(self, work: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
        """Calls `work` in up to `max_sequences` threads; an error or Ctrl-C does not wait for the other calls."""
        threads = ThreadPoolExecutor(self.max_sequences)
        try:
            return list(threads.map(work, *arguments))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    # The policy's weights

    def sync_weights(self) -> None:
        """Loads the base weights at the first use, then sends the layers that have changed."""
        if self.is_rank_0 and self._version is None:  # an earlier run may have left a trained layer on the server
            self._load(self.path)
        else:
            self._check_version()  # before sending, which would hide that the server had other weights
        super().sync_weights()

    def share_weights(self, process_group: ProcessGroup) -> None:
        """Sends the weights from rank 0 and tells every rank their version. Call it on every rank."""

        def send() -> str | None:
            if self.is_rank_0:
                self.sync_weights()
            else:
                SyncedEngine.sync_weights(self)  # sends nothing, but gathering a sharded block needs all ranks
            return self._version

        self._version = process_group.gather(attempt(send))[0]

    def _send(self, weights: Mapping[str, torch.Tensor]) -> None:
        if not self.is_rank_0:
            return
        # A new name each time, because some network file systems cache the old file.
        there = self.folder / f"sync-{uuid.uuid4().hex}"
        there.mkdir(parents=True)
        try:
            save_file({name: w.detach().cpu().contiguous() for name, w in weights.items()}, there / "model.safetensors")
            follow_umask(there)
            self._load(str(there))
        finally:
            shutil.rmtree(there, ignore_errors=True)

    def _load(self, path: str) -> None:
        """Loads weights into every server, under a new version."""
        version = uuid.uuid4().hex

        def load(server: VLLMClient) -> None:
            try:
                server.load(path, version)
            except ServerError as error:
                raise EngineError(
                    f"the server at {server.url} did not load {path} ({error}); that path must be readable on its "
                    f"machine. {self.advice}"
                ) from None

        self._all(load, self.servers)
        self._version, self._unchecked = version, True
