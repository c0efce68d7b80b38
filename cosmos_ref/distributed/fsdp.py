"""Weights spread over processes, a block at a time: FSDP2, put around finished modules.

A block's weights are gathered when it is called and given back after; its gradients are averaged over all processes and
every process keeps its part. Names of parameters stay as they are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint, noop_context_fn

from cosmos_ref.blocks.dit_block import DiTBlock
from cosmos_ref.config import ParallelConfig
from cosmos_ref.distributed.mesh import Meshes
from cosmos_ref.model.denoiser import Denoiser

Precision = Literal["fp32", "bf16"]


def blocks_of(denoiser: Denoiser) -> list[DiTBlock]:
    """A denoiser's blocks, first to last."""
    return list(cast("list[DiTBlock]", denoiser.network.blocks))


def prepare_blocks(
    module: nn.Module, parallel: ParallelConfig, context_fn: Callable[[], Any] = noop_context_fn
) -> None:
    """Compile the blocks of a denoiser and let them recompute, as far as that is asked for; other modules have none.

    Args:
        module: a denoiser, or u(sigma).
        parallel: what is asked for.
        context_fn: see `recompute_blocks`.
    """
    if isinstance(module, Denoiser):
        if parallel.compile:
            compile_blocks(module)
        if parallel.recompute:
            recompute_blocks(module, context_fn)


def compile_blocks(denoiser: Denoiser) -> None:
    """Compile each block's `forward`, in place; before `recompute_blocks` and `shard_denoiser`."""
    for block in blocks_of(denoiser):
        block.forward = torch.compile(block.forward)


def recompute_blocks(denoiser: Denoiser, context_fn: Callable[[], Any] = noop_context_fn) -> None:
    """Keep only what enters each block, and compute the rest again in the backward pass; before `shard_denoiser`.

    Args:
        denoiser: whose blocks.
        context_fn: contexts of the first and of the second computation.
    """
    for block in blocks_of(denoiser):
        setattr(block, "forward", partial(_recomputed, block.forward, context_fn))  # noqa: B010


def shard_denoiser(denoiser: Denoiser, meshes: Meshes, precision: Precision = "fp32") -> None:
    """Spread a denoiser's weights, block by block; the rest of them makes one part more.

    Args:
        denoiser: on the meta device, or filled with the same numbers in every process.
        meshes: the processes; where there are several replicas, gradients are averaged over them as well.
        precision: of the gathered weights and so of the network. What is kept, and the average of gradients, are
            float32. Noise levels and positions are not rounded: the modules cast what they have made of them.
    """
    *blocks, last = blocks_of(denoiser)
    for block in blocks:
        shard(block, meshes, precision, give_back=True)
    # The backward pass begins with the last block and ends with the rest, which the next forward pass begins with.
    shard(last, meshes, precision, give_back=False)
    shard(denoiser, meshes, precision, give_back=False)
    for block in (*blocks, last):
        for name in ("modulation", "keys_values", "run"):
            _gather_for(block, name)
    for name in ("prepare", "modulations", "run"):
        register_fsdp_forward_method(denoiser, name)


def shard(module: nn.Module, meshes: Meshes, precision: Precision = "fp32", give_back: bool = False) -> None:
    """Spread the weights of a module, but for those that are spread already.

    Args:
        module: whose weights.
        meshes: the processes.
        precision: of the gathered weights.
        give_back: whether gathered weights are given back after the forward pass, and not only after the backward.
    """
    mesh = meshes.weights if meshes.weights["replicate"].size() > 1 else meshes.weights["shard"]
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32 if precision == "bf16" else None,
        cast_forward_inputs=False,
    )
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=give_back)


def give_back(module: nn.Module) -> None:
    """Forget gathered weights, which do not follow when `write` changes those that they were gathered from."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@torch.no_grad()
def write(tensor: Tensor, value: Tensor) -> None:
    """Put a whole value into a tensor, of which this process may have a part; every process brings the same value."""
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, of which this process may have a part; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _gather_for(block: DiTBlock, name: str) -> None:
    """Let a method be called from outside `forward` as well, where the weights must be gathered for it alone."""
    inside = getattr(block, name)
    register_fsdp_forward_method(block, name)
    outside = getattr(block, name)

    def method(*args: Any) -> Any:
        is_spread = isinstance(block.mlp.layer1.weight, DTensor)
        return (outside if is_spread else inside)(*args)

    setattr(block, name, method)


def _recomputed(forward: Callable[..., Tensor], context_fn: Callable[[], Any], *args: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*args)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=context_fn)
