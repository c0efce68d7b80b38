"""The feed-forward half of a block."""

from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.equations.mlp import gelu


class MLP(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.layer1 = nn.Linear(width, hidden, bias=False)
        self.layer2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Map every token by itself."""
        return self.layer2(gelu(self.layer1(x)))
