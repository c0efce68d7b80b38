"""A video file through the tokenizer and back."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from cosmos_ref.checkpoint import find_checkpoint, load_strict, read_checkpoint
from cosmos_ref.config import Config, latent_shape, preset
from cosmos_ref.equations.metrics import psnr
from cosmos_ref.errors import UserError
from cosmos_ref.shapes import Video
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.video_io import read_clip, write_video


class Tokenized(NamedTuple):
    """What tokenizing a file gave."""

    video_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    compression: float
    """Numbers in the video for every number in the latents."""
    psnr: float


def load_tokenizer(path: Path) -> tuple[Config, HaarPCATokenizer]:
    """Tokenizer of a checkpoint, and the checkpoint's config."""
    checkpoint = read_checkpoint(find_checkpoint(path), names=("tokenizer",))
    tokenizer = HaarPCATokenizer(checkpoint.config.tokenizer)
    load_strict(tokenizer, checkpoint.tensors["tokenizer"], what="tokenizer")
    return checkpoint.config, tokenizer


def reconstruct(tokenizer: HaarPCATokenizer, video: Video) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Latents, reconstruction, and its peak signal-to-noise ratio."""
    latents = tokenizer.encode(video)
    reconstruction = tokenizer.decode(latents)
    return latents, reconstruction, psnr(video, reconstruction, peak=2.0).item()


def tokenize_file(file: Path, out: Path, weights: Path | None, resize: bool, clip: dict[str, int]) -> Tokenized:
    """Write `latents.safetensors` and `reconstruction.mp4` (original left, reconstruction right) into `out`.

    Args:
        file: video or image.
        out: folder to write into.
        weights: checkpoint whose tokenizer to use; without one, a tokenizer is fitted to the video itself.
        resize: resize and crop the video to the clip's size.
        clip: frames, height or width, where they are not the preset's.

    Raises:
        UserError: if the file, the folder or the clip cannot be used.
    """
    config, tokenizer = load_tokenizer(weights) if weights else (preset("tiny"), None)
    size = replace(config.clip, **clip)
    latent_shape(config, size)
    source = read_clip(file, frames=size.frames, height=size.height, width=size.width, resize=resize)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror}") from None
    video = source.video[None]
    latents, reconstruction, quality = reconstruct(tokenizer or HaarPCATokenizer.fit(config.tokenizer, video), video)
    write_video(out / "reconstruction.mp4", torch.cat([video, reconstruction], dim=-1)[0], source.fps)
    partial = out / "latents.safetensors.partial"
    save_file({"latents": latents.contiguous()}, partial)
    os.replace(partial, out / "latents.safetensors")
    return Tokenized(tuple(video.shape[1:]), tuple(latents.shape[1:]), video.numel() / latents.numel(), quality)
