"""HTTP client of one vLLM server. Every way in which a request can fail becomes a `ServerError` with a short reason.

This file alone knows vLLM's development endpoints; vllm_compat.py lists the private parts that a local engine needs.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx2

from autolayer.rollouts.engines.base import Completion
from autolayer.rollouts.engines.vllm_compat import TESTED

SHORT_TIMEOUT, LONG_TIMEOUT = 60.0, 3600.0
"""Timeouts in seconds: of queries, and of requests that wait for work (loading a model, a queued completion)."""


class ServerError(Exception):
    """A server does not answer, or does not answer as vLLM does."""


class VLLMClient:
    """Client of one server by its address, without `/v1`; it needs the endpoints of VLLM_SERVER_DEV_MODE=1."""

    def __init__(self, url: str) -> None:
        self.url, self.model, self.max_model_len = url, "", 0
        self.settings: dict[str, Any] = {}
        self._http = httpx2.Client(
            trust_env=False,  # a cluster's proxy leads outside
            # A connection for each request: a kept one may be closed by the server while the next request is sent.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )

    def connect(self) -> None:
        """Reads the server's model and settings, which `complete` and the engine need."""
        with _reading("/v1/models"):
            served = self._request("/v1/models")["data"][0]
            self.model, self.max_model_len = str(served["id"]), int(served["max_model_len"])
        with _reading("/server_info"):
            self.settings = dict(self._request("/server_info?config_format=json")["vllm_config"]["model_config"])
        self.version()  # a server without this endpoint cannot load new weights

    def load(self, path: str, version: str) -> None:
        """Loads weights from a folder that the server can read, or from the Hub, and sets their version."""
        # While loading, and after a failure, the server reports neither the previous version nor this one.
        self._request("/update_weight_version", {"new_version": f"loading {version}"})
        rpc = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        self._request("/collective_rpc", rpc, timeout=LONG_TIMEOUT)
        with _reading("/reset_prefix_cache"):
            reset = self._request("/reset_prefix_cache?reset_running_requests=true&reset_external=true", {})
            if not reset["success"]:
                raise ServerError("it could not clear its prefix cache after a weight update")
        self._request("/update_weight_version", {"new_version": version})

    def version(self) -> str:
        """Returns the version that the last `load` of any client set; 'default' after a start."""
        with _reading("/weight_info"):
            return str(self._request("/weight_info")["weight_version"])

    def complete(self, request: dict[str, Any]) -> Completion:
        """Returns one completion as token ids with their log-probabilities."""
        with _reading("/v1/completions"):
            body = {"model": self.model, **request}
            (choice,) = self._request("/v1/completions", body, timeout=LONG_TIMEOUT)["choices"]
            if choice["finish_reason"] not in ("stop", "length"):
                raise ServerError(f"a completion ended by {choice['finish_reason']}")
            ids, log_probs = list(choice["token_ids"]), [float(p) for p in choice["logprobs"]["token_logprobs"]]
            if len(ids) != len(log_probs):
                raise ServerError(f"{len(ids)} tokens came with {len(log_probs)} log-probabilities")
            return Completion(ids, log_probs)

    def _request(self, path: str, body: dict[str, Any] | None = None, *, timeout: float = SHORT_TIMEOUT) -> Any:
        """Sends a POST request with a body, or a GET request without one, and returns the JSON of the answer."""
        try:
            method = "GET" if body is None else "POST"
            response = self._http.request(method, self.url + path, json=body, timeout=timeout)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ServerError(f"{type(error).__name__}: {error}") from None
        if not response.is_success:
            message = response.text.strip()
            with contextlib.suppress(ValueError, LookupError, TypeError):
                message = str(response.json()["error"]["message"])
            reason = f"{response.status_code} {response.reason_phrase} {''.join(message.splitlines()[:1])}".rstrip()
            if response.status_code == 404 and "/v1/" not in path:
                reason += f"; VLLM_SERVER_DEV_MODE=1 is not set, or its vLLM is not {TESTED} and has moved {path}"
            raise ServerError(reason)
        if not response.content:
            return None
        with _reading(path.partition("?")[0]):
            return response.json()


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Raises `ServerError` for an answer that does not have the form of vLLM's."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise ServerError(f"{path} answers something else than vLLM's ({type(error).__name__}: {error})") from None
