"""Floor 4: tokenizers, from video to latents and back."""

from typing import Protocol

from torch import Tensor

from cosmos_ref.shapes import Latents, Video


class VideoTokenizer(Protocol):
    """What the rest of the house asks of a tokenizer."""

    temporal_factor: int
    """Frames per latent frame, after the first: a clip has 1 + k * temporal_factor frames."""
    spatial_factor: int
    """Pixels per latent pixel."""
    channels: int
    """Latent channels."""
    mean: Tensor
    """Statistics of the latents, and with them the device and the precision that it works in."""

    def encode(self, video: Video) -> Latents:
        """Standardised latents (zero mean, unit variance per channel) of a video in [-1, 1]."""
        ...

    def decode(self, latents: Latents) -> Video:
        """Video in [-1, 1] from standardised latents."""
        ...
