"""One block of the transformer, and its final layer."""

from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.blocks.attention import NORM_EPS, CrossAttention, SelfAttention
from cosmos_ref.blocks.mlp import MLP
from cosmos_ref.blocks.modulation import AdaLNLoRA
from cosmos_ref.equations.modulation import gate, layer_norm, modulate


class DiTBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each normalised, modulated, gated and added."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        text_width: int,
        mlp_ratio: float,
        adaln_lora_dim: int,
        qk_norm_eps: float = NORM_EPS,
    ):
        super().__init__()
        self.adaln_self = AdaLNLoRA(width, adaln_lora_dim, parts=3)
        self.self_attention = SelfAttention(width, num_heads, qk_norm_eps)
        self.adaln_cross = AdaLNLoRA(width, adaln_lora_dim, parts=3)
        self.cross_attention = CrossAttention(width, text_width, num_heads, qk_norm_eps)
        self.adaln_mlp = AdaLNLoRA(width, adaln_lora_dim, parts=3)
        self.mlp = MLP(width, int(mlp_ratio * width))

    def modulation(
        self, noise_embedding: Float[Tensor, "S D"], adaln_lora: Float[Tensor, "S P"]
    ) -> list[Float[Tensor, "S D"]]:
        """Shift, scale and gate of self-attention, of cross-attention and of the MLP, at S noise levels."""
        adalns = (self.adaln_self, self.adaln_cross, self.adaln_mlp)
        return [part for adaln in adalns for part in adaln(noise_embedding, adaln_lora)]

    def keys_values(
        self, text_embeddings: Float[Tensor, "B M E"]
    ) -> tuple[Float[Tensor, "B N M K"], Float[Tensor, "B N M K"]]:
        """What the text offers to the cross-attention."""
        return self.cross_attention.keys_values(text_embeddings)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        noise_embedding: Float[Tensor, "#B D"],
        adaln_lora: Float[Tensor, "#B P"],
        text_embeddings: Float[Tensor, "B M E"],
        position_embedding: Float[Tensor, "L D"],
        cos: Float[Tensor, "B L K"],
        sin: Float[Tensor, "B L K"],
    ) -> Float[Tensor, "B L D"]:
        """Tokens after this block; all its weights are used within this call."""
        modulation = self.modulation(noise_embedding, adaln_lora)
        return self.run(x, modulation, position_embedding, cos, sin, *self.keys_values(text_embeddings))

    def run(
        self,
        x: Float[Tensor, "B L D"],
        modulation: list[Float[Tensor, "#B D"]],
        position_embedding: Float[Tensor, "L D"],
        cos: Float[Tensor, "B L K"],
        sin: Float[Tensor, "B L K"],
        text_keys: Float[Tensor, "B N M K"],
        text_values: Float[Tensor, "B N M K"],
    ) -> Float[Tensor, "B L D"]:
        """Tokens after this block, with noise level and text prepared."""
        x = x + position_embedding
        shift, scale, weight, *rest = modulation
        x = gate(x, self.self_attention(modulate(norm(x), shift, scale), cos, sin), weight)
        shift, scale, weight, *rest = rest
        x = gate(x, self.cross_attention(modulate(norm(x), shift, scale), text_keys, text_values), weight)
        shift, scale, weight = rest
        return gate(x, self.mlp(modulate(norm(x), shift, scale)), weight)


class FinalLayer(nn.Module):
    """From tokens to patches: normalise, modulate (no gate), project."""

    def __init__(self, width: int, patch_channels: int, adaln_lora_dim: int):
        super().__init__()
        self.adaln = AdaLNLoRA(width, adaln_lora_dim, parts=2)
        self.linear = nn.Linear(width, patch_channels, bias=False)

    def modulation(
        self, noise_embedding: Float[Tensor, "S D"], adaln_lora: Float[Tensor, "S P"]
    ) -> list[Float[Tensor, "S D"]]:
        """Shift and scale at S noise levels."""
        return list(self.adaln(noise_embedding, adaln_lora))

    def forward(
        self, x: Float[Tensor, "B L D"], noise_embedding: Float[Tensor, "#B D"], adaln_lora: Float[Tensor, "#B P"]
    ) -> Float[Tensor, "B L Q"]:
        """Patches of the network's output."""
        return self.run(x, self.modulation(noise_embedding, adaln_lora))

    def run(self, x: Float[Tensor, "B L D"], modulation: list[Float[Tensor, "#B D"]]) -> Float[Tensor, "B L Q"]:
        """Patches of the network's output, with the noise level prepared."""
        shift, scale = modulation
        return self.linear(modulate(norm(x), shift, scale))


def norm(x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
    """Layer norm without weights: AdaLN brings them."""
    return layer_norm(x, NORM_EPS)
