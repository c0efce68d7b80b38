"""A video file through the tokenizer and back."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from cosmos_ref.config import ClipConfig, ConvTokenizerConfig, HaarPCAConfig, TokenizerConfig
from cosmos_ref.equations.causal import check_side, clip_length, latent_length
from cosmos_ref.equations.metrics import psnr
from cosmos_ref.errors import UserError
from cosmos_ref.shapes import Video
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.discrete import DiscreteTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.tokenizer.pieces import decode_in_pieces, encode_in_pieces
from cosmos_ref.tokenizer.plan import Plan, plan_tokenizer
from cosmos_ref.video_io import Probe, read_clip, write_video

Tokenizer = HaarPCATokenizer | ContinuousTokenizer | DiscreteTokenizer


class Tokenized(NamedTuple):
    """What tokenizing a file gave."""

    video_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    """Of the latents; of the numbers of codes, if the tokenizer is discrete."""
    compression: float
    """Numbers in the video for every number in the latents."""
    psnr: float
    discrete: bool


def reconstruct(tokenizer: Tokenizer, video: Video, plan: Plan | None = None) -> tuple[Tensor, Video, float]:
    """Latents (numbers of codes, of a discrete tokenizer), reconstruction, and its peak signal-to-noise ratio."""
    if plan is None or isinstance(tokenizer, HaarPCATokenizer):
        with torch.no_grad():
            latents = tokenizer.encode(video)
            reconstruction = tokenizer.decode(latents)
    else:
        latents = encode_in_pieces(tokenizer, video, plan)
        reconstruction = decode_in_pieces(tokenizer, latents, plan)
    return latents, reconstruction, psnr(video, reconstruction, peak=2.0).item()


def longest_clip(found: Probe, tokenizer: TokenizerConfig, most: int) -> ClipConfig:
    """The clip of a file that a tokenizer can take whole: as long as it is, up to `most` frames, and as large."""
    count = min(found.frames, most)
    frames = clip_length(1 + (count - 1) // tokenizer.temporal_factor, tokenizer.temporal_factor)
    unit = tokenizer.spatial_factor
    return ClipConfig(frames, max(unit, found.height // unit * unit), max(unit, found.width // unit * unit))


def tokenize_file(
    file: Path,
    out: Path,
    config: TokenizerConfig,
    load: Callable[[], Tokenizer | None],
    clip: ClipConfig,
    resize: bool,
    max_memory: float,
) -> Tokenized:
    """Write `latents.safetensors` and `reconstruction.mp4` (original left, reconstruction right) into `out`.

    Args:
        file: video or image.
        out: folder to write into.
        config: the tokenizer's numbers.
        load: gives the tokenizer; None fits one to the video itself.
        clip: frames, height and width.
        resize: resize and crop the video to the clip's size.
        max_memory: bytes that a convolutional tokenizer may take; it works in pieces that fit.

    Raises:
        UserError: if the file, the folder or the clip cannot be used.
    """
    latent_length(clip.frames, config.temporal_factor)
    check_side("height", clip.height, config.spatial_factor)
    check_side("width", clip.width, config.spatial_factor)
    plan = None
    if isinstance(config, ConvTokenizerConfig):
        plan = plan_tokenizer(config, clip.frames, clip.height, clip.width, max_memory)
    source = read_clip(file, frames=clip.frames, height=clip.height, width=clip.width, resize=resize)
    tokenizer = load()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror}") from None
    video = source.video[None]
    if tokenizer is None:
        assert isinstance(config, HaarPCAConfig)
        tokenizer = HaarPCATokenizer.fit(config, video)
    latents, reconstruction, quality = reconstruct(tokenizer, video, plan)
    write_video(out / "reconstruction.mp4", torch.cat([video, reconstruction], dim=-1)[0], source.fps)
    partial = out / "latents.safetensors.partial"
    save_file({"latents": latents.contiguous()}, partial)
    os.replace(partial, out / "latents.safetensors")
    return Tokenized(
        tuple(video.shape[1:]),
        tuple(latents.shape[1:]),
        video.numel() / latents.numel(),
        quality,
        not latents.is_floating_point(),
    )
