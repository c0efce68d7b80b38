"""The learned uncertainty u(sigma) that balances the noise levels of the loss."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.equations import losses


class Uncertainty(nn.Module):
    """Log-variance of the weighted denoising error: random Fourier features of c_noise and one linear layer."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("frequencies", torch.empty(channels))
        self.register_buffer("phases", torch.empty(channels))
        self.linear = nn.Linear(channels, 1, bias=False)

    def forward(self, sigma: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Log-variance u of every sample."""
        u = losses.log_variance(sigma, self.frequencies, self.phases, self.linear.weight[0])
        return u.clone()  # einsum may give a view, which FSDP warns of
