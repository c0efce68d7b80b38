"""How a clip has to go through a convolutional tokenizer so that it fits the memory there is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cosmos_ref.config import ConvTokenizerConfig
from cosmos_ref.equations.causal import check_side, clip_length, latent_length
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer.build import build_tokenizer

LIVE = 8
"""Tensors of a layer's own width alive at once in a residual block: its input, the result of its first half, what the
norm, the swish and the spatial convolution give, the last with frames in front, and two that a convolution reorders.
Measured peaks on a CPU (benchmarks/tokenizer_memory.py) lie below what follows from it.
"""
HEAP_BYTES = 5 * 2**27
"""Room for holes: the C library gives tensors of less than 32 MiB places in a heap, and they leave gaps behind. Up to
560 MiB of them were seen on Linux, with twenty tiles.
"""
VIDEO_BYTES = 4
"""Of a number in a video or in latents: float32, whatever the precision of the weights."""
SMALLEST_TILE = 8
"""Side of the smallest tile worth decoding, in latent pixels."""


@dataclass(frozen=True)
class Plan:
    """How one clip goes through a tokenizer, and the memory that this takes.

    Chunks of time change nothing but rounding. Tiles do change the result, see `pieces`.
    """

    latent_frames: int
    """Latent frames per chunk."""
    tile_height: int
    """In pixels, as the next."""
    tile_width: int
    weight_bytes: int = 0
    working_bytes: int = 0
    """All that is not weights, the whole clip and its latents included: the more of encoding and decoding."""

    @property
    def peak_bytes(self) -> int:
        """All of it together."""
        return self.weight_bytes + self.working_bytes


class Stage(NamedTuple):
    """Layers at one resolution."""

    frames: int
    """Per latent frame, after the first."""
    pixels: int
    """Per latent pixel."""
    held: int
    """Channels that stay alive around these layers, namely the level's input."""
    width: int
    """Channels inside these layers."""
    kept: int
    """Channels, times frames of each, that these layers' convolutions keep for the next chunk."""


def plan_tokenizer(
    config: ConvTokenizerConfig,
    frames: int,
    height: int,
    width: int,
    max_memory_bytes: float,
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """The plan for one clip that changes least and fits: the whole clip, else fewer frames at once, else also tiles.

    Args:
        config: which tokenizer.
        frames: of the clip.
        height: of the clip, in pixels.
        width: of the clip, in pixels.
        max_memory_bytes: what weights, clip, latents and everything in between may take. The process itself (some
            300 MB with torch loaded) comes on top.
        dtype: of the weights.

    Raises:
        UserError: if the clip does not fit the tokenizer, or even the smallest pieces do not fit the memory.
    """
    plans = plans_from_whole_to_smallest(config, frames, height, width, dtype)
    for plan in plans:
        if plan.peak_bytes <= max_memory_bytes:
            return plan
    least = min(plan.peak_bytes for plan in plans)
    raise UserError(
        f"{max_memory_bytes / 2**30:.3g} GiB do not suffice for {frames} frames of {height} x {width}: the smallest "
        f"pieces take {least / 2**30:.3g} GiB ({least} bytes)"
    )


def plans_from_whole_to_smallest(
    config: ConvTokenizerConfig, frames: int, height: int, width: int, dtype: torch.dtype
) -> list[Plan]:
    """Every plan for one clip, in the order of what each changes: the whole clip, fewer frames at once, then tiles.

    Raises:
        UserError: if the clip does not fit the tokenizer.
    """
    latent_frames = latent_length(frames, config.temporal_factor)
    check_side("height", height, config.spatial_factor)
    check_side("width", width, config.spatial_factor)
    grid = (latent_frames, height // config.spatial_factor, width // config.spatial_factor)
    with torch.device("meta"):
        weight_bytes = dtype.itemsize * sum(weight.numel() for weight in build_tokenizer(config).parameters())
    return [
        Plan(
            latent_frames=chunk,
            tile_height=tile[0] * config.spatial_factor,
            tile_width=tile[1] * config.spatial_factor,
            weight_bytes=weight_bytes,
            working_bytes=working_bytes(config, grid, chunk, tile, dtype),
        )
        for chunk, tile in _from_whole_to_smallest(*grid)
    ]


def working_bytes(
    config: ConvTokenizerConfig, grid: tuple[int, int, int], chunk: int, tile: tuple[int, int], dtype: torch.dtype
) -> int:
    r"""Most bytes in use beside the weights.

    $$b\,\Big(\max_s\big[(\text{held}_s + 8 w_s) F_s + 2 w_s\big] P_s + \sum_s k_s P_s + 3\,w\,t\,P\Big)
    + 4\,(V + z) + h$$

    over the stages s of width w, F frames of P pixels each, that keep k; keys and values of all t latent frames, one of
    the two twice while it grows; V and z numbers in the clip and its latents; b bytes to a number; h for holes in the
    heap. A whole clip keeps nothing. Spatial attention adds nothing: its kernels never hold the matrix of all pairs.

    Args:
        config: which tokenizer.
        grid: latent frames, height and width of the clip.
        chunk: latent frames at once.
        tile: height and width of a tile, in latent pixels.
        dtype: of the weights.
    """
    latent_frames, height, width = grid
    whole = chunk >= latent_frames
    tile_pixels = tile[0] * tile[1]
    peaks = []
    for stages in (encoder_stages(config), decoder_stages(config)):
        alive = kept = 0
        for stage in stages:
            frames = clip_length(latent_frames, stage.frames) if whole else chunk * stage.frames
            alive = max(alive, ((stage.held + LIVE * stage.width) * frames + 2 * stage.width) * stage.pixels)
            kept += stage.kept * stage.pixels
        attention = max(config.encoder_widths[-1], config.decoder_widths[0])
        past = 0 if whole else kept + 3 * attention * latent_frames
        peaks.append((alive + past) * tile_pixels)
    clip = 3 * clip_length(latent_frames, config.temporal_factor) * config.spatial_factor**2 * height * width
    latents = config.channels * latent_frames * height * width
    return dtype.itemsize * max(peaks) + VIDEO_BYTES * (clip + latents) + HEAP_BYTES


def encoder_stages(config: ConvTokenizerConfig) -> Iterator[Stage]:
    """The encoder's layers in order, resolution by resolution."""
    widths, bands = config.encoder_widths, 3 * 8**config.patch_levels
    frames = config.temporal_factor // 2**config.patch_levels
    side = config.spatial_factor // 2**config.patch_levels
    yield Stage(frames, side**2, held=0, width=bands, kept=2 * widths[0])
    levels = zip(widths, widths[1:], (*config.strides, (1, 1)), strict=False)
    for before, after, (time, space) in levels:
        yield Stage(frames, side**2, held=before, width=max(before, after), kept=4 * config.num_blocks * after)
        side //= space
        yield Stage(frames, side**2, held=0, width=after, kept=after if time == 2 else 0)
        frames //= time
    yield Stage(frames, side**2, held=0, width=widths[-1], kept=8 * widths[-1] + 2 * config.channels)


def decoder_stages(config: ConvTokenizerConfig) -> Iterator[Stage]:
    """The decoder's layers in order, resolution by resolution."""
    widths, bands = config.decoder_widths, 3 * 8**config.patch_levels
    frames = side = 1
    yield Stage(frames, side**2, held=0, width=widths[0], kept=10 * widths[0])
    for before, after, (time, space) in zip(widths, widths[1:], (*config.strides[::-1], (1, 1)), strict=False):
        yield Stage(frames, side**2, before, max(before, after), kept=4 * (config.num_blocks + 1) * after)
        frames *= time
        yield Stage(frames, side**2, held=0, width=after, kept=2 * after if time == 2 else 0)
        side *= space
        yield Stage(frames, side**2, held=0, width=after, kept=0)
    yield Stage(frames, side**2, held=widths[-1], width=bands, kept=2 * bands)


def _from_whole_to_smallest(latent_frames: int, height: int, width: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Latent frames per chunk, and tiles in latent pixels: the time is cut first, for it costs nothing but time."""
    for chunk in range(latent_frames, 0, -1):
        yield chunk, (height, width)
    while max(height, width) > SMALLEST_TILE:
        if height >= width:
            height -= 1
        else:
            width -= 1
        yield 1, (height, width)
