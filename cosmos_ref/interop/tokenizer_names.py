"""What NVIDIA's release and diffusers call the tensors of our convolutional tokenizers. Only names differ."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from cosmos_ref.config import TOKENIZERS, ConvTokenizerConfig, HaarPCAConfig, TokenizerConfig
from cosmos_ref.errors import UserError
from cosmos_ref.interop.sources import listed
from cosmos_ref.tokenizer.build import build_tokenizer

TokenizerLayout = Literal["ours", "nvidia", "diffusers"]

# ours, diffusers: patterns replaced one after the other in a whole name
DIFFUSERS_RULES = [
    (r"^encoder\.levels\.(\d+)\.resample\.space\.conv\.", r"encoder.down_blocks.\1.downsamplers.0.conv1."),
    (r"^encoder\.levels\.(\d+)\.resample\.time\.conv\.", r"encoder.down_blocks.\1.downsamplers.0.conv2."),
    (r"^encoder\.levels\.(\d+)\.resample\.mix\.", r"encoder.down_blocks.\1.downsamplers.0.conv3."),
    (r"^decoder\.levels\.(\d+)\.resample\.time\.conv\.", r"decoder.up_blocks.\1.upsamplers.0.conv1."),
    (r"^decoder\.levels\.(\d+)\.resample\.space\.conv\.", r"decoder.up_blocks.\1.upsamplers.0.conv2."),
    (r"^decoder\.levels\.(\d+)\.resample\.mix\.", r"decoder.up_blocks.\1.upsamplers.0.conv3."),
    (r"^encoder\.levels\.", "encoder.down_blocks."),
    (r"^decoder\.levels\.", "decoder.up_blocks."),
    (r"\.mid\.resnet_in\.", ".mid_block.resnets.0."),
    (r"\.mid\.resnet_out\.", ".mid_block.resnets.1."),
    (r"\.mid\.spatial_attention\.", ".mid_block.attentions.0."),
    (r"\.mid\.temporal_attention\.", ".mid_block.temp_attentions.0."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.(norm\w*)\.(weight|bias)$", r".\1.norm.\2"),
    (r"\.space\.(weight|bias)$", r".conv_s.\1"),
    (r"\.time\.(weight|bias)$", r".conv_t.\1"),
]


# ours, NVIDIA, after the levels were numbered as there: the decoder's from the last
NVIDIA_RULES = [
    (r"^encoder\.levels\.", "encoder.down."),
    (r"^decoder\.levels\.", "decoder.up."),
    (r"\.resnets\.", ".block."),
    (r"^(encoder.*)\.resample\.space\.conv\.", r"\1.downsample.conv1.conv3d."),
    (r"^(encoder.*)\.resample\.time\.conv\.", r"\1.downsample.conv2.conv3d."),
    (r"^(encoder.*)\.resample\.mix\.", r"\1.downsample.conv3.conv3d."),
    (r"^(decoder.*)\.resample\.time\.conv\.", r"\1.upsample.conv1.conv3d."),
    (r"^(decoder.*)\.resample\.space\.conv\.", r"\1.upsample.conv2.conv3d."),
    (r"^(decoder.*)\.resample\.mix\.", r"\1.upsample.conv3.conv3d."),
    (r"\.mid\.resnet_in\.", ".mid.block_1."),
    (r"\.mid\.resnet_out\.", ".mid.block_2."),
    (r"\.mid\.spatial_attention\.", ".mid.attn_1.0."),
    (r"\.mid\.temporal_attention\.", ".mid.attn_1.1."),
    (r"\.to_([qkv])\.", r".\1.conv3d."),
    (r"\.to_out\.", ".proj_out.conv3d."),
    (r"\.shortcut\.", ".nin_shortcut.conv3d."),
    (r"\.(norm\w*)\.(weight|bias)$", r".\1.norm.\2"),
    (r"\.space\.(weight|bias)$", r".0.conv3d.\1"),
    (r"\.time\.(weight|bias)$", r".1.conv3d.\1"),
    (r"^((post_)?quant_conv)\.", r"\1.conv3d."),
]
NVIDIA_CONSTANTS = (
    "encoder.patcher3d.wavelets",  # the Haar filter, (0.7071, 0.7071)
    "encoder.patcher3d._arange",  # (0, 1), for the signs of the high-pass filter
    "encoder.patcher3d.patch_size_buffer",
    "decoder.unpatcher3d.wavelets",
    "decoder.unpatcher3d._arange",
)
NVIDIA_QUANTIZERS = ("quantizer", "inv_quant.quantizer")  # of a whole model or encoder, and of a decoder
NVIDIA_QUANTIZER_CONSTANTS = ("_levels", "_basis", "implicit_codebook")  # levels; their products; every code, in order
"""Buffers in NVIDIA's files that hold no weights: everything in them follows from the configuration."""


def tokenizer_names(config: TokenizerConfig, layout: TokenizerLayout = "diffusers") -> dict[str, str]:
    """The name in `layout` of each of our tensors; elsewhere the statistics have none, they lie in another file.

    Raises:
        UserError: that layout has no such tokenizer.
    """
    names = list(tokenizer_shapes(config))
    if layout == "ours":
        return {name: name for name in names}
    if isinstance(config, HaarPCAConfig):
        raise UserError("the wavelet tokenizer is ours alone: only convolutional ones have names elsewhere")
    if layout == "diffusers" and config.fsq_levels:
        raise UserError("diffusers has no discrete tokenizer: take the layout nvidia or ours")
    names = [name for name in names if name not in ("mean", "std")]
    if layout == "diffusers":
        return {name: _renamed(name, DIFFUSERS_RULES) for name in names}
    last = len(config.strides)
    counted = {
        name: re.sub(r"^decoder\.levels\.(\d+)", lambda m: f"decoder.levels.{last - int(m[1])}", name) for name in names
    }
    return {name: _renamed(counted[name], NVIDIA_RULES) for name in names}


def tokenizer_to_ours(
    shapes: Mapping[str, tuple[int, ...]], layout: TokenizerLayout, config: TokenizerConfig
) -> dict[str, str]:
    """The name of every weight of a tokenizer in `layout`, to its name with us.

    Left out are exactly the constants of NVIDIA's files (`nvidia_constants`).

    Raises:
        UserError: tensors are unknown, missing or of another shape; ten of them are listed, the others counted.
    """
    expected, wanted = (
        tokenizer_shapes(config),
        {theirs: ours for ours, theirs in tokenizer_names(config, layout).items()},
    )
    left_out = nvidia_constants(config) if layout == "nvidia" else set()
    problems = [f"missing: {name}" for name in wanted if name not in shapes]
    problems += [f"unknown: {name}" for name in shapes if name not in wanted and name not in left_out]
    problems += [
        f"of another shape: {name} is {tuple(shapes[name])}, should be {expected[ours]}"
        for name, ours in wanted.items()
        if name in shapes and tuple(shapes[name]) != expected[ours]
    ]
    if problems:
        other = recognise_tokenizer(shapes, layout)
        start = "these tensors are not the tokenizer of this configuration" + (f", but of {other}" if other else "")
        raise UserError(f"{start}:{listed(problems)}")
    return wanted


@cache
def tokenizer_shapes(config: TokenizerConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a tokenizer by our name, and its shape."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build_tokenizer(config).state_dict().items()}


def nvidia_constants(config: TokenizerConfig) -> set[str]:
    """Names in NVIDIA's files that hold no weights."""
    quantizers = NVIDIA_QUANTIZERS if isinstance(config, ConvTokenizerConfig) and config.fsq_levels else ()
    return {*NVIDIA_CONSTANTS, *(f"{part}.{name}" for part in quantizers for name in NVIDIA_QUANTIZER_CONSTANTS)}


def recognise_tokenizer_layout(names: Iterable[str]) -> TokenizerLayout | None:
    """Whose names of a tokenizer these are; None if they are nobody's."""
    signs: dict[TokenizerLayout, str] = {
        "ours": r"encoder\.levels\.|decoder\.levels\.|axes$",
        "diffusers": r"encoder\.down_blocks\.|decoder\.up_blocks\.",
        "nvidia": r"encoder\.down\.|decoder\.up\.",
    }
    names = list(names)
    return next((layout for layout, sign in signs.items() if any(re.match(sign, name) for name in names)), None)


def recognise_tokenizer(shapes: Mapping[str, tuple[int, ...]], layout: TokenizerLayout) -> str | None:
    """The name of NVIDIA's tokenizer that has all these weights, of these shapes."""
    for name, config in TOKENIZERS.items():
        if layout == "diffusers" and config.fsq_levels:
            continue
        expected = tokenizer_shapes(config)
        if all(
            tuple(shapes.get(theirs, ())) == expected[ours] for ours, theirs in tokenizer_names(config, layout).items()
        ):
            return name
    return None


def vae_config(config: ConvTokenizerConfig, mean: Tensor, std: Tensor) -> dict[str, Any]:
    """What diffusers' AutoencoderKLCosmos is built from (its `config.json`).

    Args:
        config: a continuous tokenizer.
        mean: of every channel and latent frame, `C t`.
        std: the same of the standard deviation.
    """
    return {
        "_class_name": "AutoencoderKLCosmos",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": config.channels,
        "encoder_block_out_channels": list(config.encoder_widths),
        "decode_block_out_channels": list(config.decoder_widths[::-1]),
        "attention_resolutions": [32],
        "resolution": 1024,
        "num_layers": config.num_blocks,
        "patch_size": 2**config.patch_levels,
        "patch_type": "haar",
        "scaling_factor": 1.0,
        "spatial_compression_ratio": config.spatial_factor,
        "temporal_compression_ratio": config.temporal_factor,
        "latents_mean": mean.flatten().tolist(),
        "latents_std": std.flatten().tolist(),
    }


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for ours, theirs in rules:
        name = re.sub(ours, theirs, name)
    return name
