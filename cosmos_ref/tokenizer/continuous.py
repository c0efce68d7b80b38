"""The continuous Cosmos tokenizer: a causal convolutional autoencoder between video and latents."""

import torch
from torch import Tensor, nn

from cosmos_ref.blocks.causal_conv import Past, PointwiseConv3d
from cosmos_ref.config import ConvTokenizerConfig
from cosmos_ref.equations.whitening import standardize, unstandardize
from cosmos_ref.errors import UserError
from cosmos_ref.shapes import Latents, Video
from cosmos_ref.tokenizer.autoencoder import build_decoder, build_encoder, check_video


class ContinuousTokenizer(nn.Module):
    """Encoder, decoder, and the statistics that make latents zero-mean and unit-variance.

    There is no sampling: the encoder's answer is the latent. An image is a clip of one frame.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ConvTokenizerConfig):
        super().__init__()
        if config.fsq_levels:
            raise UserError(
                f"fsq_levels {config.fsq_levels} make a discrete tokenizer: a continuous one has none, leave them empty"
            )
        self.temporal_factor = config.temporal_factor
        self.spatial_factor = config.spatial_factor
        self.channels = channels = config.channels
        self.encoder = build_encoder(config)
        self.quant_conv = PointwiseConv3d(channels, channels)
        self.post_quant_conv = PointwiseConv3d(channels, channels)
        self.decoder = build_decoder(config)
        self.register_buffer("mean", torch.zeros(channels, config.latent_frames))
        self.register_buffer("std", torch.ones(channels, config.latent_frames))

    def encode(self, video: Video, past: Past | None = None) -> Latents:
        """Standardised latents of a video in [-1, 1]; with a past, of the next chunk of one.

        The first chunk is as long as a clip may be, later ones are k * temporal_factor frames.

        Raises:
            UserError: if the clip's length is not 1 + k * temporal_factor or its sides do not divide.
        """
        check_video(video, past, self.temporal_factor, self.spatial_factor)
        latents = self.quant_conv(self.encoder(video, past))
        mean, std = self._statistics(latents, past)
        return standardize(latents, mean, std)

    def decode(self, latents: Latents, past: Past | None = None) -> Video:
        """Video in [-1, 1] from standardised latents; with a past, from the next chunk of them.

        Raises:
            UserError: if the latents have another number of channels.
        """
        if latents.shape[1] != self.channels:
            raise UserError(f"latents of {latents.shape[1]} channels do not fit: this tokenizer has {self.channels}")
        mean, std = self._statistics(latents, past)
        return self.decoder(self.post_quant_conv(unstandardize(latents, mean, std)), past).clamp(-1, 1)

    def _statistics(self, latents: Latents, past: Past | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel and latent frame, `C t 1 1`; a past counts the frames as passed."""
        start, frames = 0 if past is None else past.latent_frames, latents.shape[2]
        frame = torch.arange(start, start + frames, device=self.mean.device).clamp(max=self.mean.shape[1] - 1)
        if past is not None:
            past.latent_frames += frames
        return self.mean[:, frame, None, None].to(latents), self.std[:, frame, None, None].to(latents)
