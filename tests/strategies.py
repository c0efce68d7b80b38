"""What the laws are tried on."""

import math

import torch
from hypothesis import strategies as st

sigmas = st.floats(math.log(2e-3), math.log(80)).map(lambda x: torch.tensor([math.exp(x)], dtype=torch.float64))
"""One noise level, log-uniform over the range the samplers visit, shape `1`."""

sigma_datas = st.floats(0.05, 2.0)
seeds = st.integers(0, 2**31 - 1)


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Unit Gaussian float64 tensor that depends on nothing but its seed."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
