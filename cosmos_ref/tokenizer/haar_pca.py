"""A causal tokenizer in closed form: Haar wavelets, then principal components. It needs data, but no training."""

import torch
from einops import rearrange
from torch import Tensor, nn

from cosmos_ref.config import HaarPCAConfig
from cosmos_ref.equations.causal import causal_pad, check_side, latent_length
from cosmos_ref.equations.wavelets import haar_3d, inverse_haar_3d
from cosmos_ref.equations.whitening import principal_axes, unwhiten, whiten
from cosmos_ref.shapes import Latents, Video

MIN_STD = 2 / 255
"""Least standard deviation a channel is divided by, one grey level: what hardly moves in the data is not blown up."""


class HaarPCATokenizer(nn.Module):
    """Wavelets make one vector of each space-time cell, the leading principal axes keep most of its energy.

    The first frame is repeated in front, so the first latent frame is an image's; it has statistics of its own.
    """

    axes: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: HaarPCAConfig):
        super().__init__()
        self.levels = config.levels
        self.temporal_factor = config.temporal_factor
        self.spatial_factor = config.spatial_factor
        self.channels = config.channels
        bands = 3 * 2 ** sum(config.levels)
        self.register_buffer("axes", torch.empty(config.channels, bands))
        self.register_buffer("mean", torch.empty(2, config.channels))  # of the first latent frame; of the later ones
        self.register_buffer("std", torch.empty(2, config.channels))

    @classmethod
    @torch.no_grad()
    def fit(cls, config: HaarPCAConfig, video: Video) -> "HaarPCATokenizer":
        """The tokenizer whose latents of `video` are standardised and lose least in the mean square."""
        tokenizer = cls(config).to(video)
        cells = tokenizer._wavelets(video)
        samples = rearrange(cells, "B T H W D -> (B T H W) D").double()
        # Not centred: what `decode` gives lies in the span of the axes, so a colour that never changes must too.
        energy = samples.T @ samples / len(samples)
        tokenizer.axes = principal_axes(energy, config.channels).to(video)
        coordinates = cells @ tokenizer.axes.T
        first, later = coordinates[:, :1], coordinates[:, 1:] if cells.shape[1] > 1 else coordinates
        parts = [rearrange(part, "B T H W C -> (B T H W) C") for part in (first, later)]
        tokenizer.mean = torch.stack([part.mean(0) for part in parts])
        tokenizer.std = torch.stack([part.std(0).clamp(min=MIN_STD) for part in parts])
        return tokenizer

    def encode(self, video: Video) -> Latents:
        """Standardised latents of a video in [-1, 1].

        Raises:
            UserError: if the clip's length is not 1 + k * temporal_factor or its sides do not divide.
        """
        cells = self._wavelets(video)
        mean, std = self._statistics(cells.shape[1])
        return rearrange(whiten(cells, self.axes, mean, std), "B T H W C -> B C T H W")

    def decode(self, latents: Latents) -> Video:
        """Video in [-1, 1] from standardised latents."""
        mean, std = self._statistics(latents.shape[2])
        cells = unwhiten(rearrange(latents, "B C T H W -> B T H W C"), self.axes, mean, std)
        padded = inverse_haar_3d(rearrange(cells, "B T H W D -> B D T H W"), self.levels)
        return padded[:, :, self.temporal_factor - 1 :].clamp(-1, 1)

    def _wavelets(self, video: Video) -> Tensor:
        """Wavelet bands of every cell, `B t h w D`."""
        latent_length(video.shape[2], self.temporal_factor)
        for name, size in zip(("height", "width"), video.shape[3:], strict=True):
            check_side(name, size, self.spatial_factor)
        bands = haar_3d(causal_pad(video, self.temporal_factor - 1), self.levels)
        return rearrange(bands, "B D T H W -> B T H W D")

    def _statistics(self, latent_frames: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per latent frame and channel, `t 1 1 C`."""
        later = torch.arange(latent_frames, device=self.mean.device).clamp(max=1)
        return self.mean[later][:, None, None], self.std[later][:, None, None]
