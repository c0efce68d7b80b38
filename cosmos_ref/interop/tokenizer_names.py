"""What diffusers' AutoencoderKLCosmos calls the tensors of our continuous tokenizer. Only names differ."""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cosmos_ref.config import ConvTokenizerConfig
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer

# ours, diffusers: patterns replaced one after the other in a whole name
RULES = [
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


def tokenizer_names(config: ConvTokenizerConfig) -> dict[str, str]:
    """Diffusers' name for each of our weights; the statistics have none, diffusers keeps them in its config."""
    with torch.device("meta"):
        names = [name for name, _ in ContinuousTokenizer(config).named_parameters()]
    return {name: _diffusers_name(name) for name in names}


def tokenizer_from_diffusers(
    tensors: Mapping[str, Tensor],
    config: ConvTokenizerConfig,
    latents_mean: Sequence[float] | None = None,
    latents_std: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """The state of a ContinuousTokenizer from diffusers' tensors.

    Args:
        tensors: the state dictionary of an AutoencoderKLCosmos.
        config: which tokenizer it is.
        latents_mean: of diffusers' config, channel by channel, each latent frame by latent frame; zeros if None.
        latents_std: the same of the standard deviation; ones if None.

    Raises:
        UserError: tensors are missing or unknown (all are listed), or the statistics have another length.
    """
    theirs_to_ours = {theirs: ours for ours, theirs in tokenizer_names(config).items()}
    _check_names(tensors, theirs_to_ours, "diffusers' tokenizer")
    state = {ours: tensors[theirs] for theirs, ours in theirs_to_ours.items()}
    dtype = next(iter(state.values())).dtype
    for name, values, identity in (("mean", latents_mean, 0.0), ("std", latents_std, 1.0)):
        count = config.channels * config.latent_frames
        if values is not None and len(values) != count:
            raise UserError(
                f"latents_{name} has {len(values)} values, not {config.channels} channels * "
                f"{config.latent_frames} latent frames = {count}: set latent_frames, or give the model's own"
            )
        flat = torch.full((count,), identity) if values is None else torch.tensor(values)
        state[name] = flat.to(dtype).reshape(config.channels, config.latent_frames)
    return state


def tokenizer_to_diffusers(state: Mapping[str, Tensor], config: ConvTokenizerConfig) -> dict[str, Tensor]:
    """Diffusers' tensors from the state of a ContinuousTokenizer, without its statistics.

    Raises:
        UserError: tensors are missing or unknown; all are listed.
    """
    names = tokenizer_names(config)
    _check_names(state, {*names, "mean", "std"}, "the tokenizer")
    return {theirs: state[ours] for ours, theirs in names.items()}


def _diffusers_name(name: str) -> str:
    for ours, theirs in RULES:
        name = re.sub(ours, theirs, name)
    return name


def _check_names(found: Iterable[str], expected: Iterable[str], what: str) -> None:
    found, expected = set(found), set(expected)
    problems = [f"missing: {name}" for name in expected - found] + [f"unknown: {name}" for name in found - expected]
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise UserError(f"these are not the weights of {what} of this configuration:\n  {listed}")
