"""What a preset's network counts, from its numbers alone: parameters, operations, tokens."""

from math import prod

from cosmos_ref.config import ClipConfig, Config, latent_shape
from cosmos_ref.equations import costs


def network_sizes(config: Config) -> dict[str, int]:
    """What both parameters and arithmetic of the network depend on."""
    model, patch = config.model, prod(config.model.patch_size)
    return {
        "width": model.width,
        "depth": model.depth,
        "text_width": model.text_width,
        "mlp_width": int(model.mlp_ratio * model.width),
        "adaln_lora_dim": model.adaln_lora_dim,
        "patch_in": model.in_channels * patch,
        "patch_out": model.channels * patch,
    }


def parameters(config: Config) -> dict[str, int]:
    """Numbers in the denoiser's weights, by group."""
    model = config.model
    return costs.parameters(**network_sizes(config), head_dim=model.head_dim, position_rows=sum(model.max_tokens))


def parameter_count(config: Config) -> int:
    """Numbers in the denoiser's weights."""
    return sum(parameters(config).values())


def flops(config: Config, clip: ClipConfig) -> dict[str, int]:
    """Operations of a call of the network for one clip, by group."""
    return costs.flops(token_count(config, clip), config.text.length, **network_sizes(config))


def token_count(config: Config, clip: ClipConfig) -> int:
    """Tokens of a clip."""
    return costs.tokens(latent_shape(config, clip)[1:], config.model.patch_size)
