"""What vLLM serves is what was trained. Run: make test-vllm. On a CPU vLLM needs head_dim 32 at least."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_model, build_tokenizer
from workbench_helpers import make_bench

from autolayer import lora
from autolayer.arms import Arm

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_LOGGING_LEVEL="ERROR",
)  # fmt: skip
if "AUTOLAYER_ENGINES" in os.environ:
    import vllm  # pyright: ignore[reportMissingImports]
else:
    vllm: Any = pytest.importorskip("vllm")

PROMPT = [5, 6, 7, 8, 9, 10]


def test_a_trained_adapter_is_served(tmp_path: Path) -> None:
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    model = build_model("qwen3", head_dim=32)
    model.save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    bench = make_bench(model, tmp_path / "run")
    bench.adapt((1, 2), seed=0)
    arm = bench.train(Arm(layers=(2,), learning_rate=0.1, seed=0), 2).arm
    tensors = bench.arm_weights(arm)
    assert tensors is not None
    lora.save(tmp_path / "adapter", tensors, str(tmp_path / "base"), {"base": "test"})

    llm = vllm.LLM(
        model=str(tmp_path / "base"), dtype="float32", max_model_len=64, enable_lora=True, max_lora_rank=lora.RANK,
        enforce_eager=True, generation_config="vllm", gpu_memory_utilization=0.05,
    )  # fmt: skip
    asked = vllm.SamplingParams(temperature=1.0, seed=3, max_tokens=8, logprobs=0, ignore_eos=True)
    found = []
    for request in (None, LoRARequest("trained", 1, str(tmp_path / "adapter"))):
        (output,) = llm.generate({"prompt_token_ids": PROMPT}, asked, lora_request=request, use_tqdm=False)
        ids = list(output.outputs[0].token_ids)
        served = torch.tensor([next(iter(each.values())).logprob for each in output.outputs[0].logprobs])
        with bench.weights(arm.layers, tensors if request else None), torch.no_grad():
            logits = model(input_ids=torch.tensor([PROMPT + ids])).logits[0, len(PROMPT) - 1 : -1]
        ours = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(served, ours, rtol=0, atol=1e-5)
        found.append(served)
    assert float((found[0] - found[1]).abs().max()) > 1e-2, "the adapter does something"
    del llm
    gc.collect()
