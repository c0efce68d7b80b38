"""The loss of a tokenizer. The networks that look at features and at motion are passed in; here are small ones of ours.

Theirs are VGG and RAFT, which come with downloads and licences. Ours have no weights to load and nothing random:

- `FilterBank` is what the first stage of seeing does: brightness, and the energy of waves in four directions, at three
  scales. A frozen random network orders distortions about as well on average, but another seed orders them otherwise,
  and none of its features has a name.
- `pyramid_flow` is Lucas and Kanade from coarse to fine.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.equations.reconstruction import (
    absolute_error,
    flow_distance,
    gram_distance,
    lucas_kanade,
    perceptual_distance,
)
from cosmos_ref.shapes import Video

Frames = Float[Tensor, "B 3 H W"]
FeatureNetwork = Callable[[Frames], Sequence[Float[Tensor, "B C H2 W2"]]]
"""Layers of features of frames in [-1, 1]."""
FlowNetwork = Callable[[Frames, Frames], Float[Tensor, "B 2 H W"]]
"""Displacement (right, down) in pixels from frames to other frames, both in [-1, 1]."""


@dataclass(frozen=True)
class LossWeights:
    """How much each part of the loss counts; one that counts nothing is not computed."""

    absolute: float
    perceptual: float
    gram: float
    flow: float


@dataclass(frozen=True)
class TokenizerLoss:
    """The loss of a tokenizer, of a video and its reconstruction."""

    features: FeatureNetwork
    flow: FlowNetwork
    layer_weights: tuple[float, ...]
    """Of the layers of `features`."""

    def __call__(
        self, reconstruction: Video, video: Video, weights: LossWeights
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The weighted sum, and its parts without their weights.

        A part without a weight is left out, and so is motion where there is one frame only.
        """
        parts = {"absolute": absolute_error(reconstruction, video)}
        if weights.perceptual or weights.gram:
            ours, theirs = (self._layers(frames) for frames in (reconstruction, video))
            if weights.perceptual:
                parts["perceptual"] = perceptual_distance(ours, theirs, self.layer_weights)
            if weights.gram:
                parts["gram"] = gram_distance(ours, theirs, self.layer_weights)
        if weights.flow and video.shape[2] > 1:
            parts["flow"] = flow_distance(reconstruction, video, self.flow)
        total = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    def _layers(self, video: Video) -> list[Tensor]:
        """Features of every frame, `B C T H W`: the Gram matrix is that of a whole clip."""
        layers = self.features(rearrange(video, "B C T H W -> (B T) C H W"))
        return [rearrange(layer, "(B T) C H W -> B C T H W", T=video.shape[2]) for layer in layers]


ORIENTATIONS = 4
"""Directions that the filters tell apart: 0, 45, 90 and 135 degrees."""
WAVELENGTH, ENVELOPE = 4.0, 1.5
"""Of the filters' waves, and of the Gaussian around them, in pixels."""
SOFT = 0.02
"""Energy below which the square root is rounded off, so that its gradient stays finite where there is no contrast."""


class FilterBank(nn.Module):
    """Colours, and the energy of waves in four directions, at several scales; each scale halves the one before.

    The energy is the root of the squares of two waves a quarter of a wavelength apart. Unlike either of them it hardly
    changes when something moves by a pixel: it says that there is an edge, and not where exactly.
    """

    waves: Tensor

    def __init__(self, num_scales: int = 3):
        super().__init__()
        self.num_scales = num_scales
        self.register_buffer("waves", oriented_waves())

    def forward(self, frames: Frames) -> list[Float[Tensor, "B 15 H2 W2"]]:
        """Features at each scale; a scale for which the frames are too small is left out."""
        layers = []
        for _ in range(self.num_scales):
            layers.append(torch.cat([frames, self._energy(frames)], dim=1))
            if min(frames.shape[2:]) < 2:
                break
            frames = nnf.avg_pool2d(frames, 2)
        return layers

    def _energy(self, frames: Frames) -> Float[Tensor, "B 12 H W"]:
        side = self.waves.shape[-1] // 2
        padded = nnf.pad(frames, (side, side, side, side), mode="replicate")
        filters = repeat(self.waves, "K side1 side2 -> (colours K) 1 side1 side2", colours=3)
        pairs = rearrange(nnf.conv2d(padded, filters.to(frames), groups=3), "B (K two) H W -> B K two H W", two=2)
        return (pairs.square().sum(dim=2) + SOFT**2).sqrt() - SOFT


def oriented_waves() -> Float[Tensor, "K side side"]:
    """Cosine and sine in each direction, under a Gaussian: no answer to a constant, unit norm."""
    down, right = torch.meshgrid(*[torch.arange(-3, 4, dtype=torch.float64)] * 2, indexing="ij")
    envelope = torch.exp(-(right**2 + down**2) / (2 * ENVELOPE**2))
    waves = []
    for k in range(ORIENTATIONS):
        angle = math.pi * k / ORIENTATIONS
        phase = 2 * math.pi / WAVELENGTH * (math.cos(angle) * right + math.sin(angle) * down)
        even = torch.cos(phase)
        even = even - (even * envelope).sum() / envelope.sum()
        waves += [even * envelope, torch.sin(phase) * envelope]
    return torch.stack([wave / wave.norm() for wave in waves]).float()


FLOW_WINDOW, FLOW_RIDGE, COARSEST = 7, 1e-3, 8
"""Window of each step, in pixels; squared contrast a pixel that is no contrast; least side of the coarsest frames."""


def pyramid_flow(first: Frames, second: Frames) -> Float[Tensor, "B 2 H W"]:
    """Displacement (right, down) from `first` to `second` in pixels: Lucas and Kanade, from coarse frames to fine ones.

    At every scale the second frames are brought back by the motion found so far, and what is left is found twice.
    """
    if min(first.shape[2:]) >= 2 * COARSEST and not (first.shape[2] % 2 or first.shape[3] % 2):
        coarse = pyramid_flow(nnf.avg_pool2d(first, 2), nnf.avg_pool2d(second, 2))
        flow = 2 * nnf.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
    else:
        flow = torch.zeros_like(first[:, :2])
    for _ in range(2):
        flow = flow + lucas_kanade(first, brought_back(second, flow), FLOW_WINDOW, FLOW_RIDGE)
    return flow


def brought_back(frames: Frames, flow: Float[Tensor, "B 2 H W"]) -> Frames:
    """What lies at the end of each pixel's motion, $I(p + v(p))$; beyond the border, what is there."""
    height, width = frames.shape[2:]
    down, right = torch.meshgrid(
        torch.arange(height, dtype=flow.dtype, device=flow.device),
        torch.arange(width, dtype=flow.dtype, device=flow.device),
        indexing="ij",
    )
    # Pixels are squares of side 2 / size, counted by their centres.
    x, y = (2 * (right + flow[:, 0]) + 1) / width - 1, (2 * (down + flow[:, 1]) + 1) / height - 1
    return nnf.grid_sample(frames, torch.stack([x, y], dim=-1), padding_mode="border", align_corners=False)


def default_loss() -> TokenizerLoss:
    """The loss with networks of ours; all scales count alike."""
    bank = FilterBank()
    return TokenizerLoss(bank, pyramid_flow, layer_weights=(1 / bank.num_scales,) * bank.num_scales)
