"""Letters and names for tensor shapes.

`B` batch, `C` channels, `T H W` of the tensor at hand, `t h w` the compressed grid where both appear, `L` tokens,
`D` width, `N` heads, `K` head_dim, `M` text tokens, `E` text width.
"""

from jaxtyping import Float, Int
from torch import Tensor

Video = Float[Tensor, "B 3 T H W"]
Latents = Float[Tensor, "B C T H W"]
Tokens = Float[Tensor, "B L D"]
Sigma = Float[Tensor, "*B"]
Positions = Int[Tensor, "L 3"]


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """Give a coefficient per sample, shape `B` (or a scalar), the trailing axes it needs to multiply `like`."""
    return coefficient.reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim))
