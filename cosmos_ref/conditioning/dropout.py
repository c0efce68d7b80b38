"""Hide the text from some training samples, so that one network learns both halves of guidance."""

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


def drop_text(text_embeddings: Float[Tensor, "B M E"], keep: Bool[Tensor, "B"]) -> Float[Tensor, "B M E"]:
    """Replace the text of the samples that are not kept by the null text, all zeros.

    Args:
        text_embeddings: `B M E`.
        keep: `B`, False where the whole text of the sample is dropped.
    """
    return text_embeddings.masked_fill(rearrange(~keep, "B -> B 1 1"), 0)
