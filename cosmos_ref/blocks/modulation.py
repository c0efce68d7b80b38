"""The AdaLN-LoRA weights of one sub-block."""

from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.equations import modulation


class AdaLNLoRA(nn.Module):
    """Shift, scale and gate (three parts), or shift and scale (two), from the noise embedding."""

    def __init__(self, width: int, dim: int, parts: int):
        super().__init__()
        self.parts = parts
        self.down = nn.Linear(width, dim, bias=False)
        self.up = nn.Linear(dim, parts * width, bias=False)

    def forward(
        self, noise_embedding: Float[Tensor, "B D"], adaln_lora: Float[Tensor, "B P"]
    ) -> tuple[Float[Tensor, "B D"], ...]:
        """The parts of this sub-block; `adaln_lora` is the term that all sub-blocks share."""
        shared = adaln_lora[:, : self.up.out_features]
        return modulation.adaln_lora(noise_embedding, self.down.weight, self.up.weight, shared, self.parts)
