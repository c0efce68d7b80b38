"""The diffusion transformer F_theta."""

from math import prod
from typing import NamedTuple, cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from cosmos_ref.blocks.dit_block import DiTBlock, FinalLayer
from cosmos_ref.blocks.embeddings import NoiseEmbedding, PositionEmbedding
from cosmos_ref.config import ModelConfig
from cosmos_ref.equations.patches import patchify, unpatchify
from cosmos_ref.equations.rope import angles_3d

ROPE_BASE = 10000.0
BASE_FPS = 24.0


class Modulations(NamedTuple):
    """What the noise level says to every sub-block, at S levels: one a clip, or one that all clips share."""

    blocks: list[list[Float[Tensor, "S D"]]]
    """Shift, scale and gate of the three sub-blocks of each block."""
    final_layer: list[Float[Tensor, "S D"]]
    """Shift and scale."""

    def at(self, level: int) -> "Modulations":
        """Of one level, for all clips."""
        *blocks, final_layer = ([part[level, None] for part in parts] for parts in (*self.blocks, self.final_layer))
        return Modulations(blocks, final_layer)


class Prepared(NamedTuple):
    """What stays the same over all noise levels of a clip."""

    position_embedding: Float[Tensor, "L D"]
    cos: Float[Tensor, "B L K"]
    sin: Float[Tensor, "B L K"]
    text: list[tuple[Float[Tensor, "B N M K"], Float[Tensor, "B N M K"]]]


class CosmosDiT(nn.Module):
    """Patches in, patches out; between them blocks that know the noise level, the positions and the text."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width, patch = config.width, prod(config.patch_size)
        self.patch_embedding = nn.Linear(config.in_channels * patch, width, bias=False)
        self.position_embedding = PositionEmbedding(width, config.max_tokens)
        self.noise_embedding = NoiseEmbedding(width)
        self.blocks = nn.ModuleList(
            DiTBlock(
                width,
                config.num_heads,
                config.text_width,
                config.mlp_ratio,
                config.adaln_lora_dim,
                config.qk_norm_eps,
            )
            for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(width, config.channels * patch, config.adaln_lora_dim)

    def forward(
        self,
        x: Float[Tensor, "B C T H W"],
        c_noise: Float[Tensor, "B"],
        text_embeddings: Float[Tensor, "B M E"],
        positions: Int[Tensor, "L 3"],
        fps: Float[Tensor, "B"],
    ) -> Float[Tensor, "B C2 T H W"]:
        """Network output F for an input that is already scaled and carries its mask channels.

        Args:
            x: network input, latents and mask channels.
            c_noise: noise level as the network is told it.
            text_embeddings: prompt, zeros where it is padded.
            positions: (t, h, w) index of every token.
            fps: frames a second of every clip.
        """
        return self.run(x, self.modulations(c_noise), self.prepare(text_embeddings, positions, fps))

    def modulations(self, c_noise: Float[Tensor, "S"]) -> Modulations:
        """What the noise level says to every sub-block; a sampler asks for all its levels at once."""
        embedding = self.noise_embedding(c_noise)
        blocks = [block.modulation(*embedding) for block in cast("list[DiTBlock]", self.blocks)]
        return Modulations(blocks, self.final_layer.modulation(*embedding))

    def prepare(
        self, text_embeddings: Float[Tensor, "B M E"], positions: Int[Tensor, "L 3"], fps: Float[Tensor, "B"]
    ) -> Prepared:
        """Positions and text, ready for any number of calls of `run`."""
        config = self.config
        rate = fps.bfloat16() if config.angles == "bf16" else fps
        angles = angles_3d(positions, rate, config.head_dim, config.rope_ratios, ROPE_BASE, BASE_FPS).to(fps)
        text = [block.cross_attention.keys_values(text_embeddings) for block in cast("list[DiTBlock]", self.blocks)]
        return Prepared(self.position_embedding(positions), angles.cos(), angles.sin(), text)

    def run(
        self, x: Float[Tensor, "B C T H W"], modulations: Modulations, prepared: Prepared
    ) -> Float[Tensor, "B C2 T H W"]:
        """Network output with noise level, positions and text prepared."""
        tokens = self.embed(x)
        tokens = self.run_blocks(tokens, modulations, prepared)
        return self.unembed(tokens, modulations, token_grid(x, self.config.patch_size))

    def embed(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B L D"]:
        """Tokens of the network's input."""
        return self.patch_embedding(patchify(x, self.config.patch_size))

    def run_blocks(
        self, tokens: Float[Tensor, "B L D"], modulations: Modulations, prepared: Prepared
    ) -> Float[Tensor, "B L D"]:
        """Tokens after all blocks."""
        position_embedding, cos, sin, text = prepared
        for block, modulation, (keys, values) in zip(self.blocks, modulations.blocks, text, strict=True):
            tokens = block(tokens, modulation, position_embedding, cos, sin, keys, values)
        return tokens

    def unembed(
        self, tokens: Float[Tensor, "B L D"], modulations: Modulations, grid: tuple[int, int, int]
    ) -> Float[Tensor, "B C T H W"]:
        """Network output from the last tokens."""
        return unpatchify(self.final_layer(tokens, modulations.final_layer), grid, self.config.patch_size)


def token_grid(x: Float[Tensor, "B C T H W"], patch_size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tokens along (t, h, w)."""
    T, H, W = (size // patch for size, patch in zip(x.shape[2:], patch_size, strict=True))
    return T, H, W
