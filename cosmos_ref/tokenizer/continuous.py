"""The continuous Cosmos tokenizer: a causal convolutional autoencoder between video and latents."""

import torch
from torch import Tensor, nn

from cosmos_ref.blocks.causal_conv import Past, PointwiseConv3d
from cosmos_ref.config import ConvTokenizerConfig
from cosmos_ref.equations.causal import latent_length
from cosmos_ref.errors import UserError
from cosmos_ref.shapes import Latents, Video
from cosmos_ref.tokenizer.decoder import Decoder
from cosmos_ref.tokenizer.encoder import Encoder


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

    def encode(self, video: Video, past: Past | None = None) -> Latents:
        """Standardised latents of a video in [-1, 1]; with a past, of the next chunk of one.

        The first chunk is as long as a clip may be, later ones are k * temporal_factor frames.

        Raises:
            UserError: if the clip's length is not 1 + k * temporal_factor or its sides do not divide.
        """
        _check_video(video, past, self.temporal_factor, self.spatial_factor)
        latents = self.quant_conv(self.encoder(video, past))
        mean, std = self._statistics(latents, past)
        return (latents - mean) / std

    def decode(self, latents: Latents, past: Past | None = None) -> Video:
        """Video in [-1, 1] from standardised latents; with a past, from the next chunk of them.

        Raises:
            UserError: if the latents have another number of channels.
        """
        if latents.shape[1] != self.channels:
            raise UserError(f"latents of {latents.shape[1]} channels do not fit: this tokenizer has {self.channels}")
        mean, std = self._statistics(latents, past)
        return self.decoder(self.post_quant_conv(latents * std + mean), past).clamp(-1, 1)

    def _statistics(self, latents: Latents, past: Past | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel and latent frame, `C t 1 1`; a past counts the frames as passed."""
        start, frames = 0 if past is None else past.latent_frames, latents.shape[2]
        frame = torch.arange(start, start + frames, device=self.mean.device).clamp(max=self.mean.shape[1] - 1)
        if past is not None:
            past.latent_frames += frames
        return self.mean[:, frame, None, None].to(latents), self.std[:, frame, None, None].to(latents)


def _check_video(video: Video, past: Past | None, temporal_factor: int, spatial_factor: int) -> None:
    """Refuse a clip, or a later chunk of one, that does not fit the grid of latents."""
    frames = video.shape[2]
    if past is None or not past.latent_frames:
        latent_length(frames, temporal_factor)
    elif frames < 1 or frames % temporal_factor:
        raise UserError(f"a later chunk of {frames} frames does not fit: it must be a multiple of {temporal_factor}")
    for name, size in zip(("height", "width"), video.shape[3:], strict=True):
        if size < 1 or size % spatial_factor:
            raise UserError(f"{name} {size} does not fit: it must be a multiple of {spatial_factor}")
