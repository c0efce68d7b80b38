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
        patches = patchify(x, self.config.patch_size)
        patches = self.predict_patches(patches, c_noise, text_embeddings, positions, fps)
        return unpatchify(patches, token_grid(x, self.config.patch_size), self.config.patch_size)

    def predict_patches(
        self,
        patches: Float[Tensor, "B L P"],
        c_noise: Float[Tensor, "B"],
        text_embeddings: Float[Tensor, "B M E"],
        positions: Int[Tensor, "L 3"],
        fps: Float[Tensor, "B"],
    ) -> Float[Tensor, "B L Q"]:
        """Patches of the network's output. Only self-attention looks from one token to another, so tokens can be split.

        A block meets its weights in one call of its own: there they can be gathered, compiled and computed again.
        """
        noise_embedding, adaln_lora = self.noise_embedding(c_noise)
        position_embedding, cos, sin = self.place(positions, fps)
        tokens = self.patch_embedding(patches)
        for block in self.blocks:
            tokens = block(tokens, noise_embedding, adaln_lora, text_embeddings, position_embedding, cos, sin)
        return self.final_layer(tokens, noise_embedding, adaln_lora)

    def place(
        self, positions: Int[Tensor, "L 3"], fps: Float[Tensor, "B"]
    ) -> tuple[Float[Tensor, "L D"], Float[Tensor, "B L K"], Float[Tensor, "B L K"]]:
        """What the blocks are told of the positions: learned embedding, cosines and sines of the rotary angles."""
        config = self.config
        rate = fps.bfloat16() if config.angles == "bf16" else fps
        angles = angles_3d(positions, rate, config.head_dim, config.rope_ratios, ROPE_BASE, BASE_FPS).to(fps)
        return self.position_embedding(positions), angles.cos(), angles.sin()

    def modulations(self, c_noise: Float[Tensor, "S"]) -> Modulations:
        """What the noise level says to every sub-block; a sampler asks for all its levels at once."""
        embedding = self.noise_embedding(c_noise)
        blocks = [block.modulation(*embedding) for block in cast("list[DiTBlock]", self.blocks)]
        return Modulations(blocks, self.final_layer.modulation(*embedding))

    def prepare(
        self, text_embeddings: Float[Tensor, "B M E"], positions: Int[Tensor, "L 3"], fps: Float[Tensor, "B"]
    ) -> Prepared:
        """Positions and text, ready for any number of calls of `run`."""
        text = [block.keys_values(text_embeddings) for block in cast("list[DiTBlock]", self.blocks)]
        return Prepared(*self.place(positions, fps), text)

    def run(
        self, x: Float[Tensor, "B C T H W"], modulations: Modulations, prepared: Prepared
    ) -> Float[Tensor, "B C2 T H W"]:
        """Network output with noise level, positions and text prepared."""
        patches = self.run_patches(patchify(x, self.config.patch_size), modulations, prepared)
        return unpatchify(patches, token_grid(x, self.config.patch_size), self.config.patch_size)

    def run_patches(
        self, patches: Float[Tensor, "B L P"], modulations: Modulations, prepared: Prepared
    ) -> Float[Tensor, "B L Q"]:
        """Patches of the network's output with noise level, positions and text prepared."""
        position_embedding, cos, sin, text = prepared
        tokens = self.patch_embedding(patches)
        for block, modulation, text_ in zip(cast("list[DiTBlock]", self.blocks), modulations.blocks, text, strict=True):
            tokens = block.run(tokens, modulation, position_embedding, cos, sin, *text_)
        return self.final_layer.run(tokens, modulations.final_layer)


def token_grid(x: Float[Tensor, "B C T H W"], patch_size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tokens along (t, h, w)."""
    T, H, W = (size // patch for size, patch in zip(x.shape[2:], patch_size, strict=True))
    return T, H, W
