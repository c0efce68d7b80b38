"""The continuous Cosmos tokenizer: a causal convolutional autoencoder between video and latents."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from cosmos_ref.blocks.causal_conv import PointwiseConv3d
from cosmos_ref.equations.causal import latent_length
from cosmos_ref.errors import UserError
from cosmos_ref.shapes import Latents, Video
from cosmos_ref.tokenizer.decoder import Decoder
from cosmos_ref.tokenizer.encoder import Encoder


@dataclass(frozen=True)
class ConvTokenizerConfig:
    """The numbers of CV8x8x8: wavelets take a factor of 4 in time and space, one stride the last 2."""

    patch_levels: int = 2
    """Levels of the wavelet transform, along all three axes."""
    strides: tuple[tuple[int, int], ...] = ((2, 2), (1, 1))
    """(time, space) between the encoder's three levels; the decoder has them in reverse."""
    encoder_widths: tuple[int, ...] = (128, 256, 512, 512)
    decoder_widths: tuple[int, ...] = (512, 512, 512, 256)
    num_blocks: int = 2
    """Residual blocks at each level of the encoder; the decoder has one more."""
    channels: int = 16
    latent_frames: int = 16
    """Latent frames that have statistics of their own; a longer clip goes on with the last."""

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame, after the first."""
        return 2**self.patch_levels * prod(time for time, _ in self.strides)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel, along height and width."""
        return 2**self.patch_levels * prod(space for _, space in self.strides)


CV8X8X8 = ConvTokenizerConfig()
CV4X8X8 = ConvTokenizerConfig(patch_levels=1, strides=((2, 2), (1, 2)))


class ContinuousTokenizer(nn.Module):
    """Encoder, decoder, and the statistics that make latents zero-mean and unit-variance.

    There is no sampling: the encoder's answer is the latent. An image is a clip of one frame.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ConvTokenizerConfig):
        super().__init__()
        self.temporal_factor = config.temporal_factor
        self.spatial_factor = config.spatial_factor
        self.channels = channels = config.channels
        levels, strides, num_blocks = config.patch_levels, config.strides, config.num_blocks
        self.encoder = Encoder(levels, config.encoder_widths, strides, num_blocks, channels)
        self.quant_conv = PointwiseConv3d(channels, channels)
        self.post_quant_conv = PointwiseConv3d(channels, channels)
        self.decoder = Decoder(levels, config.decoder_widths, strides[::-1], num_blocks + 1, channels)
        self.register_buffer("mean", torch.zeros(channels, config.latent_frames))
        self.register_buffer("std", torch.ones(channels, config.latent_frames))

    def encode(self, video: Video) -> Latents:
        """Standardised latents of a video in [-1, 1].

        Raises:
            UserError: if the clip's length is not 1 + k * temporal_factor or its sides do not divide.
        """
        latent_length(video.shape[2], self.temporal_factor)
        for name, size in zip(("height", "width"), video.shape[3:], strict=True):
            if size < 1 or size % self.spatial_factor:
                raise UserError(f"{name} {size} does not fit: it must be a multiple of {self.spatial_factor}")
        latents = self.quant_conv(self.encoder(video))
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def decode(self, latents: Latents) -> Video:
        """Video in [-1, 1] from standardised latents.

        Raises:
            UserError: if the latents have another number of channels.
        """
        if latents.shape[1] != self.channels:
            raise UserError(f"latents of {latents.shape[1]} channels do not fit: this tokenizer has {self.channels}")
        mean, std = self._statistics(latents)
        return self.decoder(self.post_quant_conv(latents * std + mean)).clamp(-1, 1)

    def _statistics(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel and latent frame, `C t 1 1`."""
        frame = torch.arange(latents.shape[2], device=self.mean.device).clamp(max=self.mean.shape[1] - 1)
        return self.mean[:, frame, None, None].to(latents), self.std[:, frame, None, None].to(latents)
