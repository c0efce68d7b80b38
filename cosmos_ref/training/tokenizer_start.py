"""What a tokenizer is before its training: random, or already the best linear one.

Random convolutions need hundreds of updates before anything can be seen. But where the wavelets alone make the cells
(no strides), the network has the training-free tokenizer in it: Haar wavelets, principal axes, and back. Every
residual branch begins at zero, which leaves linear maps and two norms with a swish behind them. The swish is undone by
pairs, since silu(x) - silu(-x) = x. The norm divides by the energy of a frame, which a pair of large constants makes
almost the same for all frames. Training goes on from there: whatever it finds is better than principal components.
"""

import math

import torch
from torch import Tensor, nn

from cosmos_ref.blocks.causal_attention import AxisAttention
from cosmos_ref.blocks.causal_conv import FactorizedConv3d, PointwiseConv3d
from cosmos_ref.blocks.resnet import ResnetBlock
from cosmos_ref.config import ConvTokenizerConfig, HaarPCAConfig
from cosmos_ref.shapes import Video
from cosmos_ref.tokenizer.build import build_tokenizer
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.discrete import DiscreteTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer

ConvTokenizer = ContinuousTokenizer | DiscreteTokenizer

ENERGY = 4.0
"""Size of all principal coordinates of a cell together: the larger, the less a residual branch changes at first."""
CONSTANT = 3 * ENERGY
"""Of the constant pair."""
CODE_GAIN = 1.54
"""What a unit normal number is, on average, for one unit of its tanh: E[g tanh g] / E[tanh(g)^2]."""


def new_tokenizer(network: ConvTokenizerConfig, generator: torch.Generator) -> ConvTokenizer:
    """A random tokenizer: every convolution keeps the size of what it gets, and adds no constant.

    torch's own first weights shrink and add: after twenty layers the constants drown the video, and training sits on
    one grey for hundreds of updates. Only the last one is smaller, since 8 ** patch_levels bands add up in a pixel.
    """
    with torch.device("meta"):
        tokenizer = build_tokenizer(network)
    assert isinstance(tokenizer, ConvTokenizer)
    tokenizer.to_empty(device=generator.device)
    with torch.no_grad():
        for module in tokenizer.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.fill_(1)
                module.bias.fill_(0)
            elif isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
                module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
                if module.bias is not None:
                    module.bias.fill_(0)
        tokenizer.decoder.conv_out.time.weight.mul_(8 ** (-network.patch_levels / 2))
        if isinstance(tokenizer, ContinuousTokenizer):
            tokenizer.mean.fill_(0)
            tokenizer.std.fill_(1)
    return tokenizer


def wavelet_rules(network: ConvTokenizerConfig) -> list[tuple[bool, str]]:
    """What must hold for a network to begin as wavelets, and what to say if it does not."""
    width = 2 * (_kept(network) + 1)  # a pair for each number that is kept, and one constant
    narrowest = min(*network.encoder_widths, *network.decoder_widths)
    bands = 3 * 8**network.patch_levels
    return [
        (
            not any(stride > 1 for pair in network.strides for stride in pair),
            "network.strides must be 1 1 1 1 to begin as wavelets: set them, or --train.start random",
        ),
        (narrowest >= width, f"network widths must be at least {width} to begin as wavelets"),
        (_kept(network) <= bands, f"a cell of wavelets has {bands} numbers: network.channels must not be above"),
        (
            _kept(network) <= network.channels,
            f"network.channels must be at least {_kept(network)}, one for each number of a code",
        ),
    ]


@torch.no_grad()
def begin_as_wavelets(tokenizer: ConvTokenizer, network: ConvTokenizerConfig, video: Video) -> None:
    """Make of a random tokenizer without strides the best linear one for `video`, up to its two norms.

    Further pairs, as many as the widths have, hold the next principal axes: nothing is read from them yet.
    """
    levels, kept = network.patch_levels, _kept(network)
    pairs = min(*network.encoder_widths, *network.decoder_widths) // 2 - 1
    axes = HaarPCATokenizer.fit(HaarPCAConfig((levels, levels, levels), min(pairs, 3 * 8**levels)), video)
    # What a latent is to be: the mean and deviation of later latent frames, of which a clip has most.
    mean, std = axes.mean[1, :kept], axes.std[1, :kept]
    size = (axes.mean[1].square() + axes.std[1].square()).sum().sqrt()

    for module in tokenizer.modules():
        if isinstance(module, ResnetBlock):
            module.conv2.time.weight.fill_(0)
            if isinstance(module.shortcut, PointwiseConv3d):
                _set_pointwise(module.shortcut, torch.eye(module.shortcut.out_channels, module.shortcut.in_channels))
        elif isinstance(module, AxisAttention):
            module.to_out.weight.fill_(0)

    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    _set(encoder.conv_in, _paired(axes.axes * (ENERGY / size), encoder.conv_in.space.out_channels), constant=True)
    _set(
        encoder.conv_out,
        _read(encoder.norm_out.num_channels, encoder.conv_out.space.out_channels, kept) * (size / ENERGY),
    )
    gain = 1.0 if isinstance(tokenizer, ContinuousTokenizer) else CODE_GAIN
    select = torch.eye(kept, tokenizer.quant_conv.in_channels)
    _set_pointwise(tokenizer.quant_conv, select / std[:, None], -mean / std)
    _set_pointwise(tokenizer.post_quant_conv, select.T * std * gain, select.T @ mean)
    numbers = torch.eye(len(axes.axes), decoder.conv_in.space.in_channels)
    _set(decoder.conv_in, _paired(numbers * (ENERGY / size), decoder.conv_in.space.out_channels), constant=True)
    width = decoder.norm_out.num_channels
    _set(decoder.conv_out, axes.axes.T @ _read(width, len(axes.axes), len(axes.axes)) * (size / ENERGY))


def _kept(network: ConvTokenizerConfig) -> int:
    return len(network.fsq_levels) or network.channels


def _paired(matrix: Tensor, width: int) -> Tensor:
    """Each row, then each row turned around, at channels 2, 3, ... of `width`; 0 and 1 are for the constant."""
    rows = matrix.new_zeros(width, matrix.shape[1])
    rows[2 : 2 + 2 * len(matrix) : 2], rows[3 : 3 + 2 * len(matrix) : 2] = matrix, -matrix
    return rows


def _read(width: int, count: int, kept: int) -> Tensor:
    """The differences of the first `kept` pairs, times what the norm divided by if the energy is the usual one."""
    matrix = torch.zeros(count, width)
    rows = torch.arange(kept)
    matrix[rows, 2 + 2 * rows], matrix[rows, 3 + 2 * rows] = 1.0, -1.0
    return matrix * math.sqrt(2 * (CONSTANT**2 + ENERGY**2) / width)


def _set(conv: FactorizedConv3d, matrix: Tensor, constant: bool = False) -> None:
    """Make of a convolution a matrix that sees its own cell only; with a constant pair if wished."""
    conv.space.weight.fill_(0)
    conv.space.weight[:, :, 0, 1, 1] = matrix
    conv.time.weight.fill_(0)
    conv.time.weight[:, :, -1, 0, 0] = torch.eye(len(matrix))
    if constant:
        assert conv.time.bias is not None
        conv.time.bias[:2] = torch.tensor([CONSTANT, -CONSTANT])


def _set_pointwise(conv: PointwiseConv3d, matrix: Tensor, bias: Tensor | None = None) -> None:
    conv.weight.copy_(matrix[:, :, None, None, None])
    if bias is not None:
        assert conv.bias is not None
        conv.bias.copy_(bias)
