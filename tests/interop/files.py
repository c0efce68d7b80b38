"""Files of weights as other programs write them, with small random tensors."""

import os
from dataclasses import replace
from functools import cache
from io import BytesIO
from itertools import pairwise

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cosmos_ref.config import PRESETS
from cosmos_ref.interop.names import from_ours, our_shapes
from tests.strategies import normal
from tests.tokenizer.small import SMALL, drawn_tokenizer

MICRO = PRESETS["micro"]
CODER = SMALL["CV8x8x8"]
WORLD = replace(MICRO, model=replace(MICRO.model, channels=CODER.channels), tokenizer=CODER)
"""A small model whose tokenizer others have too."""
DISCRETE = replace(CODER, fsq_levels=(3, 2))


def values(config=MICRO):
    """Every tensor of a network, each other than all others; the average in another precision."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16 if name.startswith("ema.") else torch.float32)
        for name, shape in our_shapes(config).items()
    }


def written(folder, layout, config=MICRO):
    """A network as another program would write it, and what it holds by our names."""
    names = from_ours(layout, config)
    state = {name: tensor for name, tensor in values(config).items() if name in names}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({names[name]: tensor for name, tensor in state.items()}, folder / "model.safetensors")
    return folder, state


def nested(state, config=MICRO):
    """NVIDIA's training checkpoint: dictionaries `model` and `ema`."""
    names = from_ours("nvidia-training", config)
    groups = {"model": {}, "ema": {}}
    for name, tensor in state.items():
        group, rest = names[name].split(".", 1)
        groups[group][rest] = tensor
    return groups


def groups_of(state):
    """Tensors by group, as a checkpoint of ours has them."""
    groups = {}
    for name, tensor in state.items():
        group, rest = name.split(".", 1)
        groups.setdefault(group, {})[rest] = tensor
    return groups


def loaded(folder):
    """Every tensor of the safetensors files in a folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


# NVIDIA's tokenizer: modules nested and called as in cosmos-predict1, which do nothing ---------------------


class Part(nn.Module):
    """A module with the given parts, tensors and lists."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, nn.Sequential(*part) if isinstance(part, list) else part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def conv(before, after, *kernel):
    return Part(conv3d=nn.Conv3d(before, after, kernel or (1, 1, 1)))


def factorized(before, after):
    return [conv(before, after, 1, 3, 3), conv(after, after, 3, 1, 1)]


def norm(width):
    return Part(norm=nn.GroupNorm(1, width))


def block(before, after):
    shortcut = {} if before == after else {"nin_shortcut": conv(before, after)}
    first, second = factorized(before, after), factorized(after, after)
    return Part(norm1=norm(before), conv1=first, norm2=norm(after), conv2=second, **shortcut)


def attention(width):
    return Part(norm=norm(width), **{name: conv(width, width) for name in ("q", "k", "v", "proj_out")})


def middle(width):
    pair = [attention(width), attention(width)]
    return Part(block_1=block(width, width), attn_1=pair, block_2=block(width, width))


def resampled(width, stride, kernels):
    """Only what has a stride is there; conv3 mixes the channels."""
    there = {f"conv{n}": conv(width, width, *kernel) for n, (on, kernel) in enumerate(kernels, 1) if on}
    return Part(**there, conv3=conv(width, width)) if max(stride) > 1 else Part()


def level(before, after, count, **resample):
    return Part(block=[block(before if n == 0 else after, after) for n in range(count)], **resample)


def nvidia_encoder(config):
    widths, size = config.encoder_widths, 2**config.patch_levels
    levels = []
    for i, (before, after) in enumerate(pairwise(widths)):
        if i < len(config.strides):
            time, space = config.strides[i]
            kernels = [(space > 1, (1, 3, 3)), (time > 1, (3, 1, 1))]
            step = {"downsample": resampled(after, config.strides[i], kernels)}
        else:
            step = {}
        levels.append(level(before, after, config.num_blocks, **step))
    haar = {"wavelets": torch.full((2,), 0.5**0.5), "_arange": torch.arange(2)}
    return Part(
        patcher3d=Part(**haar, patch_size_buffer=torch.full((1,), size, dtype=torch.int32)),
        conv_in=factorized(3 * size**3, widths[0]),
        down=levels,
        mid=middle(widths[-1]),
        norm_out=norm(widths[-1]),
        conv_out=factorized(widths[-1], config.channels),
    )


def nvidia_decoder(config):
    widths, size, last = config.decoder_widths, 2**config.patch_levels, len(config.strides)
    levels = []
    for i in range(last + 1):  # numbered from the output
        before, after = widths[last - i], widths[last - i + 1]
        step = {}
        if i:
            time, space = config.strides[i - 1]
            kernels = [(time > 1, (3, 1, 1)), (space > 1, (1, 3, 3))]
            step = {"upsample": resampled(after, config.strides[i - 1], kernels)}
        levels.append(level(before, after, config.num_blocks + 1, **step))
    haar = {"wavelets": torch.full((2,), 0.5**0.5), "_arange": torch.arange(2)}
    return Part(
        unpatcher3d=Part(**haar),
        conv_in=factorized(config.channels, widths[0]),
        mid=middle(widths[0]),
        up=levels,
        norm_out=norm(widths[-1]),
        conv_out=factorized(widths[-1], 3 * size**3),
    )


def nvidia_tokenizer(config):
    """What `autoencoder.jit` has; random weights, of the size that keeps a video within its range."""
    between = len(config.fsq_levels) or config.channels
    whole = Part(
        encoder=nvidia_encoder(config),
        decoder=nvidia_decoder(config),
        quant_conv=conv(config.channels, between),
        post_quant_conv=conv(between, config.channels),
    )
    if config.fsq_levels:
        levels = torch.tensor(config.fsq_levels, dtype=torch.int32)
        codes = torch.zeros(int(levels.prod()), len(levels))
        whole.quantizer = Part(_levels=levels, _basis=levels.cumprod(0).int(), implicit_codebook=codes)
    with torch.no_grad():
        for n, (_, weight) in enumerate(sorted(whole.named_parameters())):
            weight.copy_(normal(n, *weight.shape) * 0.1)
    return whole


@cache
def jit_files(config):
    """NVIDIA's three files of a tokenizer, and the tensors in them."""
    model = nvidia_tokenizer(config)
    quantizer = {"quantizer": model.quantizer} if config.fsq_levels else {}
    inverse = {"inv_quant": Part(quantizer=model.quantizer)} if config.fsq_levels else {}
    parts = {
        "encoder": Part(encoder=model.encoder, quant_conv=model.quant_conv, **quantizer),
        "decoder": Part(**inverse, post_quant_conv=model.post_quant_conv, decoder=model.decoder),
        "autoencoder": model,
    }
    files = {}
    for name, part in parts.items():
        torch.jit.save(torch.jit.script(part), file := BytesIO())
        files[name] = file.getvalue()
    return files, {name: tensor.detach() for name, tensor in model.state_dict().items()}


def write_jit(folder, config, names=("encoder", "decoder")):
    """NVIDIA's folder of a tokenizer; gives the tensors in its files."""
    folder.mkdir(parents=True, exist_ok=True)
    files, state = jit_files(config)
    for name in names:
        (folder / f"{name}.jit").write_bytes(files[name])
    return state


def write_statistics(folder, config=CODER, frames=16):
    """NVIDIA's `mean_std.pt`, as long as a clip of 121 frames has latents, and what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    mean, std = normal(1, config.channels * frames).float(), normal(2, config.channels * frames).float().exp()
    torch.save((mean, std), folder / "mean_std.pt")
    return mean, std


def our_coder(config=CODER):
    """A state of ours with all statistics, in float32."""
    return {name: tensor.float() for name, tensor in drawn_tokenizer(config).state_dict().items()}
