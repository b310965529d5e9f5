"""A model in shards (FSDP2) beside the same model whole in every process: what is held, and what the gathers take.

    torchrun --nproc_per_node 2 examples/benchmarks/shards.py [--layers 16 --width 512]   # a minute

One pass forward and backward over a micro-batch, with the middle layer trained, by all processes at once. The floor of
what is held is an even share of the blocks (the buffer that a block is gathered in is not counted); of time, the whole
model without a gather. Processes on one CPU share its
cores and its memory, so the time says little about GPUs.
"""

import argparse
import statistics
import time

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch.distributed.tensor import DTensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from autolayer.distributed.fsdp import make_mesh, shard, unsharded
from autolayer.distributed.process_group import join_process_group
from autolayer.models.layers import find_layers, layer_parameters

REPEATS = 5


def held(model: torch.nn.Module) -> tuple[int, int]:
    """Bytes of blocks that lie in shards now, in this process, and of blocks that are whole."""
    shards = whole = 0
    for parameter in (p for block in find_layers(model) for p in block.parameters()):
        if isinstance(parameter, DTensor):
            shards += parameter.to_local().nbytes
        else:
            whole += parameter.nbytes
    return shards, whole


def timed(model: Qwen3ForCausalLM, ids: torch.Tensor, trained: int) -> tuple[float, int]:
    """Median seconds of a pass with one layer trained, and the most bytes of whole blocks in it."""
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, held(model)[1])

    # While a block is whole.
    handles = [block.get_submodule("mlp").register_forward_hook(look) for block in find_layers(model)]
    seconds = []
    with unsharded(model, (trained,)):
        for parameter in layer_parameters(model, (trained,)).values():
            parameter.requires_grad_(True)
        for _ in range(REPEATS):
            started = time.perf_counter()
            model(ids, labels=ids).loss.backward()
            seconds.append(time.perf_counter() - started)
            model.zero_grad()
    for handle in handles:
        handle.remove()
    return statistics.median(seconds), most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    options = parser.parse_args()
    group, cpu = join_process_group(on_cpu=True), torch.device("cpu")
    torch.manual_seed(0)
    config = Qwen3Config(
        num_hidden_layers=options.layers, hidden_size=options.width, intermediate_size=4 * options.width,
        num_attention_heads=8, num_key_value_heads=4, head_dim=options.width // 8, vocab_size=4096,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).requires_grad_(False)
    ids, trained = torch.randint(4096, (4, 256)), options.layers // 2
    _, blocks = held(model)
    floor, _ = timed(model, ids, trained)
    model.requires_grad_(False)
    shard(model, find_layers(model), group, make_mesh(group, cpu), cpu)
    at_rest, _ = held(model)
    seconds, most = timed(model, ids, trained)
    if not group.is_rank_0:
        return
    table = Table(box=MARKDOWN)
    for name in ("blocks of", "MB in a process", "over an even share", "seconds of a pass", "over whole"):
        table.add_column(name)
    share = blocks / group.world_size
    rows = (
        ("whole in every process", blocks, floor),
        (f"{group.world_size} shards, between passes", at_rest, None),
        (f"{group.world_size} shards, at most in a pass", at_rest + most, seconds),
    )
    for name, size, took in rows:
        time_columns = ("", "") if took is None else (f"{took:.2f}", f"{took / floor:.2f}")
        table.add_row(name, f"{size / 1e6:.0f}", f"{size / share:.2f}", *time_columns)
    Console(width=140).print(table)
    forecast = share + 2 * blocks / options.layers
    print(f"Forecast of the most, the share, the trained block and the one at work: {forecast / 1e6:.0f} MB.")


if __name__ == "__main__":
    main()
