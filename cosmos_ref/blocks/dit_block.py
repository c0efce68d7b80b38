"""One block of the transformer, and its final layer."""

import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.blocks.attention import NORM_EPS, CrossAttention, SelfAttention
from cosmos_ref.blocks.mlp import MLP
from cosmos_ref.blocks.modulation import AdaLNLoRA
from cosmos_ref.equations.modulation import gate, modulate


class DiTBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each normalised, modulated, gated and added."""

    def __init__(self, width: int, num_heads: int, text_width: int, mlp_ratio: float, adaln_lora_dim: int):
        super().__init__()
        self.adaln_self = AdaLNLoRA(width, adaln_lora_dim, parts=3)
        self.self_attention = SelfAttention(width, num_heads)
        self.adaln_cross = AdaLNLoRA(width, adaln_lora_dim, parts=3)
        self.cross_attention = CrossAttention(width, text_width, num_heads)
        self.adaln_mlp = AdaLNLoRA(width, adaln_lora_dim, parts=3)
        self.mlp = MLP(width, int(mlp_ratio * width))

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        noise_embedding: Float[Tensor, "B D"],
        adaln_lora: Float[Tensor, "B P"],
        position_embedding: Float[Tensor, "L D"],
        cos: Float[Tensor, "B L K"],
        sin: Float[Tensor, "B L K"],
        text_keys: Float[Tensor, "B N M K"],
        text_values: Float[Tensor, "B N M K"],
    ) -> Float[Tensor, "B L D"]:
        """Tokens after this block."""
        x = x + position_embedding
        shift, scale, weight = self.adaln_self(noise_embedding, adaln_lora)
        x = gate(x, self.self_attention(modulate(norm(x), shift, scale), cos, sin), weight)
        shift, scale, weight = self.adaln_cross(noise_embedding, adaln_lora)
        x = gate(x, self.cross_attention(modulate(norm(x), shift, scale), text_keys, text_values), weight)
        shift, scale, weight = self.adaln_mlp(noise_embedding, adaln_lora)
        return gate(x, self.mlp(modulate(norm(x), shift, scale)), weight)


class FinalLayer(nn.Module):
    """From tokens to patches: normalise, modulate (no gate), project."""

    def __init__(self, width: int, patch_channels: int, adaln_lora_dim: int):
        super().__init__()
        self.adaln = AdaLNLoRA(width, adaln_lora_dim, parts=2)
        self.linear = nn.Linear(width, patch_channels, bias=False)

    def forward(
        self, x: Float[Tensor, "B L D"], noise_embedding: Float[Tensor, "B D"], adaln_lora: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B L Q"]:
        """Patches of the network's output."""
        shift, scale = self.adaln(noise_embedding, adaln_lora)
        return self.linear(modulate(norm(x), shift, scale))


def norm(x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
    """Layer norm without weights: AdaLN brings them."""
    return nnf.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
