"""Asking a vLLM server over HTTP: every way in which that can fail becomes one exception with a short reason."""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from autolayer.rollouts.engines.base import Completion

SHORT, LONG = 60.0, 3600.0
"""Seconds without an answer: of a question, and of work (loading a model, a completion that waits for its turn)."""


class ServerError(Exception):
    """A server does not answer, or its answer is none."""


@dataclass(frozen=True)
class VLLMClient:
    """One server, with vLLM's development endpoints (VLLM_SERVER_DEV_MODE=1)."""

    url: str

    def model(self) -> dict[str, Any]:
        """What it serves: 'id' and 'max_model_len'."""
        with _read("/v1/models"):
            found = self._ask("/v1/models", None, SHORT)["data"][0]
            return {"id": str(found["id"]), "max_model_len": int(found["max_model_len"])}

    def settings(self) -> dict[str, Any]:
        """Of the model, as the server was started: 'dtype', 'logprobs_mode', ..."""
        with _read("/server_info"):
            return dict(self._ask("/server_info?config_format=json", None, SHORT)["vllm_config"]["model_config"])

    def load(self, path: str, version: str) -> None:
        """Reads the weights in a folder, forgets what was computed with those before, and notes their version."""
        # Whoever looks in between, or after a failure, finds neither the version before nor this one.
        self._ask("/update_weight_version", {"new_version": f"loading {version}"}, SHORT)
        self._ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}}, LONG)
        with _read("/reset_prefix_cache"):
            reset = self._ask("/reset_prefix_cache?reset_running_requests=true&reset_external=true", {}, SHORT)
            if not reset["success"]:
                raise ServerError("it keeps what it has computed with other weights")
        self._ask("/update_weight_version", {"new_version": version}, SHORT)

    def version(self) -> str:
        """What `load` has noted last, by whomever; 'default' after a start."""
        with _read("/weight_info"):
            return str(self._ask("/weight_info", None, SHORT)["weight_version"])

    def complete(self, request: dict[str, Any]) -> Completion:
        """One completion of token ids, with its log-probabilities."""
        with _read("/v1/completions"):
            (choice,) = self._ask("/v1/completions", request, LONG)["choices"]
            if choice["finish_reason"] not in ("stop", "length"):
                raise ServerError(f"a completion ended by {choice['finish_reason']}")
            ids, log_probs = list(choice["token_ids"]), [float(p) for p in choice["logprobs"]["token_logprobs"]]
            if len(ids) != len(log_probs):
                raise ServerError(f"{len(ids)} tokens came with {len(log_probs)} log-probabilities")
            return Completion(ids, log_probs)

    def _ask(self, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        """Posts a body, or gets where there is none."""
        data = None if body is None else json.dumps(body).encode()
        # A cluster's proxy leads outside.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
            with opener.open(request, timeout=timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            said = ""
            with contextlib.suppress(OSError, http.client.HTTPException):
                said = error.read().decode(errors="replace").strip()
            with contextlib.suppress(ValueError, LookupError, TypeError):
                said = json.loads(said)["error"]["message"]
            hint = "; VLLM_SERVER_DEV_MODE=1 is not set" if error.code == 404 and "/v1/" not in path else ""
            raise ServerError(" ".join([f"{error.code} {error.reason}", *said.splitlines()[:1]]) + hint) from None
        except urllib.error.URLError as error:
            raise ServerError(str(error.reason)) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServerError(f"{type(error).__name__}: {error}") from None
        if not text:
            return None
        with _read(path.partition("?")[0]):
            return json.loads(text)


@contextlib.contextmanager
def _read(path: str) -> Any:
    """What does not look like vLLM's answer is none."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise ServerError(f"{path} answers something else than vLLM's ({type(error).__name__}: {error})") from None
