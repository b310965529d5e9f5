"""Handing new weights to vLLM after a step of one layer, against handing over the whole model as stock trainers do.

    make test-vllm && .venv-vllm/bin/python examples/benchmarks/sync.py      # vLLM's CPU build: 3 minutes

A random model of 16 layers of width 512 in one process with vLLM; the middle layer has changed. Whole: all parameters
by the same way, which is what TRL's `sync_weights` sends. Floor: the layer's bytes over all bytes. Median of some
rounds; the check that both engines agree is timed apart.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_LOGGING_LEVEL="ERROR",
)  # fmt: skip

import torch  # noqa: E402 (vLLM reads those variables when it is imported)
from memory import config, tokenizer_of  # noqa: E402
from rich.box import MARKDOWN  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from autolayer.core.config import VLLMConfig  # noqa: E402
from autolayer.models.layers import layer_parameters  # noqa: E402
from autolayer.models.loading import load_model  # noqa: E402
from autolayer.rollouts.engines.vllm_local import VLLMEngine  # noqa: E402

LAYERS, WIDTH, ROUNDS = 16, 512, 5


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model"
        made = config(LAYERS, WIDTH)
        AutoModelForCausalLM.from_config(made).save_pretrained(path)
        tokenizer_of(made.vocab_size).save_pretrained(path)
        loaded = load_model(str(path))
        model = loaded.model
        make = partial(VLLMEngine, path=str(path), settings=VLLMConfig(memory_share=0.05))
        engine = cast(VLLMEngine, make(model, loaded.tokenizer, max_new_tokens=8, temperature=1.0))
        prompt = [[5, 6, 7, 8]]
        engine.generate(prompt, [0])
        middle = list(layer_parameters(model, (LAYERS // 2,)))
        everything = [name for name, _ in model.named_parameters()]
        rows, sent, send = {}, (0, 0), engine._send

        def count(weights: Mapping[str, torch.Tensor]) -> None:
            nonlocal sent
            sent = len(weights), sum(tensor.nbytes for tensor in weights.values())
            send(weights)

        engine._send = count
        for name, changed in (("the layer", middle), ("the whole model", everything)):
            seconds, checks = [], []
            for _ in range(ROUNDS):
                with torch.no_grad():
                    for each in middle:
                        model.get_parameter(each).add_(1e-4 * torch.randn_like(model.get_parameter(each)))
                engine.mark_changed(changed)
                started = time.perf_counter()
                engine.sync_weights()
                seconds.append(time.perf_counter() - started)
                started = time.perf_counter()
                engine._check(prompt[0], lambda limit: engine._generate(prompt, [0], [limit], set()))
                checks.append(time.perf_counter() - started)
            rows[name] = (*sent, statistics.median(seconds), statistics.median(checks))
        table, whole = Table(box=MARKDOWN), rows["the whole model"]
        for head in ("sent", "tensors", "MB", "ms", "share of bytes", "share of time", "check, ms"):
            table.add_column(head)
        for name, (tensors, size, seconds, check) in rows.items():
            table.add_row(
                name, str(tensors), f"{size / 1e6:.1f}", f"{1e3 * seconds:.1f}", f"{size / whole[1]:.3f}",
                f"{seconds / whole[2]:.3f}", f"{1e3 * check:.1f}",
            )  # fmt: skip
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
