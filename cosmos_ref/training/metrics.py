"""What an update cost and what it showed, noise level by noise level."""

import sys
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.config import Config, latent_shape
from cosmos_ref.equations import costs
from cosmos_ref.model.sizes import network_sizes
from cosmos_ref.training.data import Batch, noise_levels
from cosmos_ref.training.sources import Domain

SIGMA_BUCKETS = 5
"""Ranges of noise levels that are reported apart, evenly spaced in the logarithm."""
PASSES = 3
"""A backward pass is two forward passes; what is computed again to save memory is not counted as useful."""
PEAK_TFLOPS: dict[str, dict[str, float]] = {
    "H200": {"bf16": 989, "fp32": 67},
    "H100 PCIe": {"bf16": 756, "fp32": 51},
    "H100": {"bf16": 989, "fp32": 67},
    "A100": {"bf16": 312, "fp32": 19.5},
    "B200": {"bf16": 2250, "fp32": 75},
    "L40S": {"bf16": 362, "fp32": 91.6},
    "L4": {"bf16": 121, "fp32": 30.3},
    "RTX 4090": {"bf16": 165, "fp32": 82.6},
    "RTX 3090": {"bf16": 71, "fp32": 35.6},
}
"""Dense matrix products in TFLOP/s, from the makers' data sheets, by a part of the GPU's name; the first counts."""


def sigma_edges(config: Config, domain: Domain) -> list[float]:
    """Borders of the ranges of noise levels of a domain, one standard deviation of their logarithm apart."""
    deviations = torch.arange(1, SIGMA_BUCKETS, dtype=torch.float64) - SIGMA_BUCKETS / 2
    return noise_levels(deviations, config, domain, latent_shape(config, config.clip)[1]).tolist()


def sigma_sums(
    error: Float[Tensor, "B"], expected: Float[Tensor, "B"], sigma: Float[Tensor, "B"], edges: Sequence[float]
) -> Float[Tensor, "3 S"]:
    """Number of clips, sum of their weighted errors and of what u(sigma) expects, for each range of noise levels."""
    where = torch.bucketize(sigma, torch.tensor(edges, device=sigma.device))
    values = torch.stack([torch.ones_like(error), error, expected]).double()
    return torch.zeros(3, len(edges) + 1, dtype=torch.float64, device=sigma.device).index_add_(1, where, values)


def sigma_record(domain: Domain, sums: Float[Tensor, "3 S"]) -> dict[str, float]:
    """Names and numbers of the ranges that clips fell into: `video_error_2` is the mean of lambda L in the second."""
    record = {}
    for i, (clips, error, expected) in enumerate(sums.T.tolist(), 1):
        if clips:
            means = {"clips": clips, "error": error / clips, "expected": expected / clips}
            record |= {f"{domain}_{name}_{i}": value for name, value in means.items()}
    return record


def batch_costs(batch: Batch, config: Config) -> tuple[int, int]:
    """Tokens of a micro-batch, and the operations of the network's matrix products on it, forward and backward."""
    B, _, *grid = batch.x0.shape
    tokens = costs.tokens((grid[0], grid[1], grid[2]), config.model.patch_size)
    call = costs.flops(tokens, batch.condition["text_embeddings"].shape[1], **network_sizes(config))
    return B * tokens, PASSES * B * sum(call.values())


def peak_flops(device: torch.device, precision: str, asked: float | None) -> float | None:
    """Operations a second that a device could do at most, as far as it is known.

    Args:
        device: a GPU; of a CPU nothing is known.
        precision: fp32 or bf16.
        asked: TFLOP/s, where someone knows better.
    """
    if asked is not None:
        return asked * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak[precision] * 1e12 for part, peak in PEAK_TFLOPS.items() if part in name), None)


def memory_gib(device: torch.device) -> float:
    """The most memory this process has held so far: on the GPU if it computes there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
