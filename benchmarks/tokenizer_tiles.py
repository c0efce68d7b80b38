"""What cutting the frame into tiles changes in CV8x8x8's latents and pixels, on a clip of yours.

    python benchmarks/tokenizer_tiles.py clip.mp4

The weights are random, with unit gain in every layer: the figures say how much of a result hangs on the whole frame in
such a network, not what trained weights would lose. Differences are relative to the root mean square of the whole-frame
result about its mean.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from cosmos_ref.config import TOKENIZERS
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.pieces import decode_in_pieces, encode_in_pieces
from cosmos_ref.tokenizer.plan import Plan
from cosmos_ref.video_io import read_clip

FRAMES, HEIGHT, WIDTH = 9, 352, 640
TILES = [(352, 384), (256, 256), (128, 128)]


def random_tokenizer() -> ContinuousTokenizer:
    """CV8x8x8 whose convolutions keep the variance of what they get."""
    tokenizer = ContinuousTokenizer(TOKENIZERS["CV8x8x8"]).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for module in tokenizer.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.normal_(std=module.weight[0].numel() ** -0.5, generator=generator)
            module.bias.normal_(std=0.1, generator=generator)  # pyright: ignore[reportOptionalMemberAccess]
    last = tokenizer.decoder.conv_out.time
    last.weight.mul_(0.02)  # 64 bands add up in a pixel: hardly anything is clamped to [-1, 1]
    last.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
    return tokenizer


def difference(found: Tensor, expected: Tensor) -> str:
    """Root mean square and maximum of what is different."""
    error, scale = found - expected, expected.std()
    return f"{error.square().mean().sqrt() / scale:8.4f} {error.abs().max() / scale:8.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    video = read_clip(parser.parse_args().clip, frames=FRAMES, height=HEIGHT, width=WIDTH, resize=True).video[None]
    tokenizer = random_tokenizer()
    whole = Plan(FRAMES, HEIGHT, WIDTH)
    latents = encode_in_pieces(tokenizer, video, whole)
    decoded = decode_in_pieces(tokenizer, latents, whole)
    print(f"torch {torch.__version__}, {FRAMES} frames of {HEIGHT} x {WIDTH}; whole frame: largest pixel", end=" ")
    print(f"{decoded.abs().max():.2f}, standard deviation {decoded.std():.2f}")
    print("tile      latents: RMS      max  pixels: RMS      max")
    for height, width in TILES:
        plan = Plan(FRAMES, height, width)
        in_latents = difference(encode_in_pieces(tokenizer, video, plan), latents)
        in_pixels = difference(decode_in_pieces(tokenizer, latents, plan), decoded)
        print(f"{height:3}x{width:<5}    {in_latents}     {in_pixels}", flush=True)


if __name__ == "__main__":
    main()
