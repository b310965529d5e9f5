"""A server with vLLM's endpoints and a small model of its own behind them: what a client sees, without vLLM.

It samples as transformers does, so that a served run has to find what an unserved one finds, and it loads layers as
files, so that weights which were not sent show.
"""

import contextlib
import copy
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from autolayer.rollouts.engines.hf import TransformersEngine


class Stub(ThreadingHTTPServer):
    """`broken` counts down to the request at which it dies; `answers` replaces answers by path."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, model: Any, tokenizer: Any, max_model_len: int = 512) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer, self.max_model_len = copy.deepcopy(model), tokenizer, max_model_len
        self.version, self.lock, self.broken = "default", threading.Lock(), -1
        self.answers: dict[str, Any] = {}
        self.loads: list[int] = []
        """Tensors in each load."""
        self.completions = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path in self.answers:
            return self.answers[path]
        if path == "/v1/models":
            return {"data": [{"id": "stub", "max_model_len": self.max_model_len}]}
        if path == "/server_info":
            settings = {"dtype": str(self.model.dtype), "logprobs_mode": "processed_logprobs"}
            return {"vllm_config": {"model_config": settings}}
        if path == "/collective_rpc":
            (file,) = Path(body["kwargs"]["weights_path"]).glob("*.safetensors")
            tensors = load_file(file)
            self.loads.append(len(tensors))
            wrong = self.model.load_state_dict(tensors, strict=False)
            assert not wrong.unexpected_keys
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return {}
        if path == "/weight_info":
            return {"weight_version": self.version}
        assert path == "/v1/completions", path
        return self.complete(body)

    def complete(self, body: dict[str, Any]) -> Any:
        self.completions += 1
        engine = TransformersEngine(
            self.model, self.tokenizer, max_new_tokens=body["max_tokens"], temperature=body["temperature"]
        )
        engine.top_p, engine.top_k = body["top_p"], body["top_k"]
        engine.eos_token_ids = body["stop_token_ids"] or engine.eos_token_ids
        (ids,) = engine.generate([body["prompt"]], [body["seed"]])
        whole = torch.tensor([[*body["prompt"], *ids]])
        with torch.no_grad():
            logits_T_V = self.model(input_ids=whole).logits[0, len(body["prompt"]) - 1 : -1]
        log_probs_T_V = (logits_T_V / body["temperature"]).log_softmax(-1)
        log_probs = log_probs_T_V.gather(1, torch.tensor([list(ids)]).T)[:, 0].tolist()
        return {"choices": [choice(list(ids), {"token_logprobs": log_probs})]}


def choice(ids: list[int], logprobs: Any) -> dict[str, Any]:
    return {"finish_reason": "stop", "token_ids": ids, "logprobs": logprobs}


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self._do()

    def do_POST(self) -> None:
        self._do()

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            if self.server.broken == 0:
                self.connection.close()  # in the middle of an answer
                return
            self.server.broken -= 1
            found = self.server.answer(self.path.partition("?")[0], json.loads(body or b"{}"))
        text = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(404 if found == b"" else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(model: Any, tokenizer: Any, **options: Any) -> Iterator[Stub]:
    with Stub(model, tokenizer, **options) as stub:
        thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield stub
        finally:
            stub.shutdown()
            thread.join()
