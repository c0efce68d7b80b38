"""Continuous tokenizers with few channels and every weight drawn, no two widths alike."""

import dataclasses

import torch
from torch import nn

from cosmos_ref.config import TOKENIZERS, ConvTokenizerConfig
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from tests.strategies import normal

_FEW = dict(encoder_widths=(6, 8, 10, 12), decoder_widths=(14, 10, 8, 6), channels=5, latent_frames=3)
SMALL = {
    "CV8x8x8": dataclasses.replace(TOKENIZERS["CV8x8x8"], **_FEW),
    "CV4x8x8": dataclasses.replace(TOKENIZERS["CV4x8x8"], **_FEW, num_blocks=1),
}


def drawn_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 with unit-gain weights; those of norms lie around one."""
    module = module.double()
    norms = {id(norm.weight) for norm in module.modules() if isinstance(norm, nn.GroupNorm)}
    with torch.no_grad():
        for i, (_, weight) in enumerate(sorted(module.named_parameters())):
            drawn = normal(seed * 1009 + i, *weight.shape)
            weight.copy_(1 + 0.3 * drawn if id(weight) in norms else drawn / weight[0].numel() ** 0.5)
    return module


def drawn_tokenizer(config: ConvTokenizerConfig, seed: int = 0) -> ContinuousTokenizer:
    """All weights drawn, statistics far from identity, decoded videos well inside [-1, 1]."""
    tokenizer = drawn_weights(ContinuousTokenizer(config), seed)
    with torch.no_grad():
        tokenizer.decoder.conv_out.time.weight.mul_(0.01)  # 64 bands add up in a pixel
        tokenizer.decoder.conv_out.time.bias.mul_(0.01)
        tokenizer.mean.copy_(normal(seed + 7, *tokenizer.mean.shape))
        tokenizer.std.copy_(normal(seed + 8, *tokenizer.std.shape).exp())
    return tokenizer


def drawn_video(seed: int, frames: int, height: int = 16, width: int = 24, clips: int = 1) -> torch.Tensor:
    """Noise in [-1, 1]."""
    return normal(seed, clips, 3, frames, height, width).tanh()
