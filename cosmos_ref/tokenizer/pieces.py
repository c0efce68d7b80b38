"""Encoding and decoding piece by piece, so that the memory it takes is bounded: chunks of time, tiles of the frame.

Chunks of time give what the whole clip gives, up to rounding: every layer keeps what it needs of the frames before.

Tiles do not: a tile's norms and its spatial attention see the tile where they would see the whole frame, and at its
edges there are zeros instead of neighbours. Tiles overlap by a quarter at least, and where they do, one fades into the
next linearly, which hides the seams but not the difference. So tiles are the last resort.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from jaxtyping import Float, Int
from torch import Tensor

from cosmos_ref.blocks.causal_conv import Past
from cosmos_ref.equations.causal import check_side, clip_length, latent_length
from cosmos_ref.errors import UserError
from cosmos_ref.shapes import Latents, Video
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.discrete import DiscreteTokenizer
from cosmos_ref.tokenizer.plan import Plan

ConvTokenizer = ContinuousTokenizer | DiscreteTokenizer
Codes = Latents | Int[Tensor, "B t h w"]
"""Latents, or indices of codes if the tokenizer is discrete."""
OVERLAP = 1 / 4
"""Share of a tile that it has in common with the next one, at least."""


class Tile(NamedTuple):
    """A part of the frame, and how much it counts in each pixel."""

    rows: slice
    columns: slice
    weight: Float[Tensor, "H W"]


@torch.no_grad()
def encode_in_pieces(tokenizer: ConvTokenizer, video: Video, plan: Plan) -> Codes:
    """What `tokenizer.encode` gives of a video in [-1, 1], made as the plan says; it lies where the video lies.

    Only one piece at a time is on the tokenizer's device and in its precision. Indices of codes cannot fade: there each
    latent pixel is of the tile that counts most.

    Raises:
        UserError: if the clip or the plan's tiles do not fit the tokenizer.
    """
    weights = next(tokenizer.parameters())
    frames = latent_length(video.shape[2], tokenizer.temporal_factor)
    height, width = _grid(tokenizer, "height", video.shape[3]), _grid(tokenizer, "width", video.shape[4])
    latents = None
    for pixels, cells in _tiles(tokenizer, height, width, plan, fade=isinstance(tokenizer, ContinuousTokenizer)):
        past = Past() if plan.latent_frames < frames else None
        for latent_span, video_span in _chunks(frames, plan.latent_frames, tokenizer.temporal_factor):
            piece = video[:, :, video_span, pixels.rows, pixels.columns]
            part = tokenizer.encode(piece.to(weights), past)
            if latents is None:
                dtype = video.dtype if part.is_floating_point() else part.dtype
                latents = video.new_zeros((*part.shape[:-3], frames, height, width), dtype=dtype)
            latents[..., latent_span, cells.rows, cells.columns] += cells.weight.to(latents) * part.to(latents)
    assert latents is not None
    return latents


@torch.no_grad()
def decode_in_pieces(tokenizer: ConvTokenizer, latents: Codes, plan: Plan) -> Video:
    """What `tokenizer.decode` gives, made as the plan says; it lies in the CPU's memory.

    Only one piece at a time is on the tokenizer's device and in its precision.

    Raises:
        UserError: if the latents or the plan's tiles do not fit the tokenizer.
    """
    weights = next(tokenizer.parameters())
    frames, height, width = latents.shape[-3:]
    factor = tokenizer.spatial_factor
    shape = (latents.shape[0], 3, clip_length(frames, tokenizer.temporal_factor), height * factor, width * factor)
    video = torch.zeros(shape, dtype=latents.dtype if latents.is_floating_point() else weights.dtype)
    for pixels, cells in _tiles(tokenizer, height, width, plan, fade=True):
        past = Past() if plan.latent_frames < frames else None
        for latent_span, video_span in _chunks(frames, plan.latent_frames, tokenizer.temporal_factor):
            piece = latents[..., latent_span, cells.rows, cells.columns]
            piece = piece.to(weights) if piece.is_floating_point() else piece.to(weights.device)
            part = tokenizer.decode(piece, past).to(video)
            video[:, :, video_span, pixels.rows, pixels.columns] += pixels.weight.to(video) * part
    return video


def tile_spans(size: int, tile: int) -> list[tuple[int, int]]:
    """Where tiles begin and end along a side of `size`: evenly spread, each over `OVERLAP` of the next at least."""
    if tile >= size:
        return [(0, size)]
    step = max(1, int(tile * (1 - OVERLAP)))
    last = -(-(size - tile) // step)
    return [(i * (size - tile) // last, i * (size - tile) // last + tile) for i in range(last + 1)]


def blending_weights(spans: list[tuple[int, int]]) -> Float[Tensor, "N S"]:
    """Weight of each tile in each pixel: it falls linearly towards the tile's ends, and all tiles together have 1."""
    position = torch.arange(spans[-1][1], dtype=torch.float64) + 0.5
    distance = torch.stack([torch.minimum(position - start, stop - position).clamp(min=0) for start, stop in spans])
    return distance / distance.sum(dim=0)


def heaviest_only(weights: Float[Tensor, "N S"]) -> Float[Tensor, "N S"]:
    """One for the tile that counts most in a pixel, zero for the others."""
    return nnf.one_hot(weights.argmax(dim=0), len(weights)).T.to(weights)


def _tiles(tokenizer: ConvTokenizer, height: int, width: int, plan: Plan, fade: bool) -> Iterator[tuple[Tile, Tile]]:
    """The plan's tiles of a grid of latents, each in pixels and in latent pixels."""
    if plan.latent_frames < 1:
        raise UserError(f"latent_frames {plan.latent_frames} does not fit: a chunk has at least one")
    rows = tile_spans(height, _grid(tokenizer, "tile_height", plan.tile_height))
    columns = tile_spans(width, _grid(tokenizer, "tile_width", plan.tile_width))
    yield from zip(*(_scaled(rows, columns, factor, fade) for factor in (tokenizer.spatial_factor, 1)), strict=True)


def _scaled(rows: list[tuple[int, int]], columns: list[tuple[int, int]], factor: int, fade: bool) -> Iterator[Tile]:
    rows, columns = ([(factor * start, factor * stop) for start, stop in spans] for spans in (rows, columns))
    downs, acrosses = (blending_weights(spans) for spans in (rows, columns))
    if not fade:
        downs, acrosses = heaviest_only(downs), heaviest_only(acrosses)
    for row, down in zip(rows, downs, strict=True):
        for column, across in zip(columns, acrosses, strict=True):
            yield Tile(slice(*row), slice(*column), torch.outer(down[slice(*row)], across[slice(*column)]))


def _chunks(latent_frames: int, at_once: int, temporal_factor: int) -> Iterator[tuple[slice, slice]]:
    """Latent frames and video frames of each chunk."""
    frame = 0
    for start in range(0, latent_frames, at_once):
        stop = min(start + at_once, latent_frames)
        yield slice(start, stop), slice(frame, frame := clip_length(stop, temporal_factor))


def _grid(tokenizer: ConvTokenizer, name: str, size: int) -> int:
    """Latent pixels of a side."""
    check_side(name, size, tokenizer.spatial_factor)
    return size // tokenizer.spatial_factor
