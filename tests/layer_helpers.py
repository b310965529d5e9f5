"""Steps on a tiny model, what they changed of it, and the size of a block by hand."""

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks

HIDDEN, INTERMEDIATE, HEAD, KV = 32, 64, 8, 2
IDS = torch.arange(2, 26).reshape(2, 12)


def loss_of(model):
    return model(input_ids=IDS, labels=IDS).loss


def bits(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model, before):
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def steps(model, number=2, parameters=None, **kwargs):
    chosen = [p for p in model.parameters() if p.requires_grad] if parameters is None else parameters
    optimizer = torch.optim.AdamW(chosen, lr=1e-2, **kwargs)
    for _ in range(number):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()


def block_size(architecture):
    """Parameters of one trained block, by hand."""
    attention = HIDDEN * HIDDEN * 2 + 2 * HIDDEN * KV * HEAD
    mlp = 3 * HIDDEN * INTERMEDIATE
    extra = {
        "qwen2": HIDDEN + 2 * KV * HEAD,  # q, k, v biases
        "qwen3": 2 * HEAD,  # q, k norms
        "llama": 0,
        "gemma3": 2 * HEAD + 2 * HIDDEN,  # q, k norms and two more block norms
        "qwen3_moe": 2 * HEAD,
        "mixtral": 0,
    }[architecture]
    if architecture == "qwen3_moe":
        mlp = 4 * 3 * HIDDEN * 16
    if architecture == "mixtral":
        mlp = 4 * 3 * HIDDEN * INTERMEDIATE
    return attention + mlp + 2 * HIDDEN + extra


def state(model):
    modules = list(model.modules())
    return (
        [(n, p.requires_grad, id(p.grad)) for n, p in model.named_parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules],
        [len(p._backward_hooks or ()) for p in model.parameters()],
        [len(getattr(p, "_post_accumulate_grad_hooks", None) or ()) for p in model.parameters()],
        len(_global_optimizer_post_hooks),
        model.__dict__.get("forward"),
        [getattr(m, "gradient_checkpointing", None) for m in modules],
    )
