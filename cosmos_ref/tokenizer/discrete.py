"""The discrete Cosmos tokenizer: the same autoencoder, with a word of a fixed vocabulary for each cell of the video."""

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from cosmos_ref.blocks.causal_conv import Past, PointwiseConv3d
from cosmos_ref.config import ConvTokenizerConfig
from cosmos_ref.equations.quantization import fsq_code, fsq_index, fsq_quantize
from cosmos_ref.errors import UserError
from cosmos_ref.shapes import Video
from cosmos_ref.tokenizer.autoencoder import build_decoder, build_encoder, check_video

FSQ_MARGIN = 1e-3
"""How much wider than its levels the range of each number is, relative: NVIDIA's epsilon."""

Codes = Float[Tensor, "B D t h w"]
Indices = Int[Tensor, "B t h w"]


class DiscreteTokenizer(nn.Module):
    """Encoder, finite scalar quantizer, decoder. The vocabulary is all combinations of levels: nothing is learned."""

    def __init__(self, config: ConvTokenizerConfig):
        super().__init__()
        if not config.fsq_levels:
            raise UserError("no fsq_levels make no discrete tokenizer: give some; Cosmos has 8, 8, 8, 5, 5, 5")
        self.temporal_factor = config.temporal_factor
        self.spatial_factor = config.spatial_factor
        self.fsq_levels = config.fsq_levels
        self.codebook_size = math.prod(config.fsq_levels)
        self.encoder = build_encoder(config)
        self.quant_conv = PointwiseConv3d(config.channels, len(config.fsq_levels))
        self.post_quant_conv = PointwiseConv3d(len(config.fsq_levels), config.channels)
        self.decoder = build_decoder(config)

    def encode(self, video: Video, past: Past | None = None) -> Indices:
        """Number of the code of each cell of a video in [-1, 1]; with a past, of the next chunk of one.

        Raises:
            UserError: if the clip's length is not 1 + k * temporal_factor or its sides do not divide.
        """
        return fsq_index(rearrange(self.quantize(video, past), "B D t h w -> B t h w D"), self.fsq_levels)

    def decode(self, indices: Indices, past: Past | None = None) -> Video:
        """Video in [-1, 1] from numbers of codes; with a past, from the next chunk of them.

        Raises:
            UserError: if they are not integers, or there are no codes with such numbers.
        """
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise UserError(f"indices of type {indices.dtype} do not fit: they must be integers")
        if indices.numel() and not (indices.min() >= 0 and indices.max() < self.codebook_size):
            raise UserError(
                f"indices from {indices.min()} to {indices.max()} do not fit: "
                f"the codes of this tokenizer are 0 to {self.codebook_size - 1}"
            )
        codes = fsq_code(indices.long(), self.fsq_levels, self.post_quant_conv.weight.dtype)
        return self.decode_codes(rearrange(codes, "B t h w D -> B D t h w"), past)

    def quantize(self, video: Video, past: Past | None = None) -> Codes:
        """Codes of a video as the decoder gets them, with gradients, for training.

        Raises:
            UserError: if the clip's length is not 1 + k * temporal_factor or its sides do not divide.
        """
        check_video(video, past, self.temporal_factor, self.spatial_factor)
        z = rearrange(self.quant_conv(self.encoder(video, past)), "B D t h w -> B t h w D")
        if past is not None:
            past.latent_frames += z.shape[1]
        return rearrange(fsq_quantize(z, self.fsq_levels, FSQ_MARGIN), "B t h w D -> B D t h w")

    def decode_codes(self, codes: Codes, past: Past | None = None) -> Video:
        """Video in [-1, 1] from codes."""
        return self.decoder(self.post_quant_conv(codes), past).clamp(-1, 1)
