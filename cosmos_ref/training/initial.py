"""Where a training starts that does not start from nothing: the weights of an earlier one, fitted to its network."""

import dataclasses
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from cosmos_ref.blocks.lora import initialize_A, merge_lora
from cosmos_ref.checkpoint import find_checkpoint, read_checkpoint
from cosmos_ref.config import Config, ModelConfig
from cosmos_ref.errors import UserError
from cosmos_ref.model.initialization import build_denoiser, build_uncertainty

FIXED = (
    *("model.width", "model.depth", "model.num_heads", "model.text_width", "model.adaln_lora_dim", "model.channels"),
    *("model.mlp_ratio", "model.patch_size", "diffusion.sigma_data", "diffusion.uncertainty_channels"),
    *("tokenizer", "text.encoder"),
)
"""Fields without which the weights mean something else."""


@dataclasses.dataclass(frozen=True)
class Initial:
    """Weights to start from, by the names of the modules' state dictionaries, in float32 on the CPU."""

    folder: Path
    """The checkpoint they come from."""
    config: Config
    """Its configuration."""
    denoiser: dict[str, Tensor]
    uncertainty: dict[str, Tensor] | None
    """None where the checkpoint has no u(sigma), as a converted one: it starts anew."""
    tokenizer: dict[str, Tensor] | None
    """The tokenizer whose latents the weights know."""
    images: dict[str, Tensor] | None
    """Mean and deviation of the latents of images, where there were images."""


def load_initial(config: Config, path: str | Path) -> Initial:
    """Weights of an earlier training that fit the modules of `config` exactly.

    The average is taken if there is one, else the last weights; adapters in it are merged, and new ones, if `config`
    has any, begin with B = 0. What else may differ:

    - a Text2World network becomes a Video2World one: the channel that marks given frames enters with weight zero, so
      that at the start it makes no difference;
    - position tables become shorter, by their last rows: what is left has the same output;
    - NTK ratios, clip, data, training and sampling are free.

    Args:
        config: what is going to be trained.
        path: a checkpoint, or the folder of a training run (its newest checkpoint).

    Raises:
        UserError: there is no checkpoint, it is damaged, holds no network, or its network is another; all differences
            are listed.
    """
    try:
        folder = find_checkpoint(path)
    except UserError as error:
        hint = "weights of NVIDIA's or diffusers' become a checkpoint by `cosmos-ref convert WEIGHTS --to ours --out"
        raise UserError(f"{error}; {hint} FOLDER`") from None
    then = read_checkpoint(folder, names=())
    _check_fits(then.config, config, folder)
    network = next((group for group in ("ema", "model") if group in then.groups), None)
    if network is None:
        raise UserError(f"{folder} holds no network to start from: give another checkpoint, or convert it again")
    others = [group for group in ("uncertainty", "tokenizer", "images") if group in then.groups]
    tensors = read_checkpoint(folder, [network, *others]).tensors
    denoiser = fit_network(_plain(then.config, tensors[network], folder), then.config.model, config.model)
    if config.lora.rank:
        denoiser |= _new_adapters(config)
    uncertainty = tensors.get("uncertainty")
    if uncertainty is not None:
        uncertainty = _of_module(build_uncertainty(config), uncertainty, f"u(sigma) in {folder}")
    return Initial(
        folder,
        then.config,
        denoiser,
        uncertainty,
        tensors.get("tokenizer"),
        tensors.get("images"),
    )


def fit_network(tensors: dict[str, Tensor], then: ModelConfig, now: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a denoiser with the mask channel that it lacks, and without the positions that are too many."""
    fitted = dict(tensors)
    if now.video2world and not then.video2world:
        name = "network.patch_embedding.weight"
        fitted[name] = add_mask_channel(fitted[name], now)
    for axis, rows in zip("thw", now.max_tokens, strict=True):
        name = f"network.position_embedding.{axis}"
        fitted[name] = fitted[name][:rows].clone()
    return fitted


def add_mask_channel(weight: Tensor, model: ModelConfig) -> Tensor:
    """Weight of the patch embedding with columns of zeros where the given-frame mask enters.

    The mask stands behind the latents and before the padding mask, and `patchify` has the channels outermost.
    """
    column = model.channels * prod(model.patch_size)
    zeros = weight.new_zeros(len(weight), prod(model.patch_size))
    return torch.cat([weight[:, :column], zeros, weight[:, column:]], dim=1)


def _plain(config: Config, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Tensors of a denoiser's, checked, with adapters merged into the weights."""
    denoiser = build_denoiser(config)
    tensors = _of_module(denoiser, tensors, f"the network in {folder}")
    if not config.lora.rank:
        return tensors
    denoiser.load_state_dict(tensors, assign=True)
    merge_lora(denoiser.network)
    return denoiser.state_dict()


def _new_adapters(config: Config) -> dict[str, Tensor]:
    """A and B of every layer that has them, drawn from the training's seed."""
    generator = torch.Generator().manual_seed(config.train.seed)
    adapters = {}
    for name, tensor in build_denoiser(config).state_dict().items():
        if name.endswith(("lora_A", "lora_B")):
            adapters[name] = torch.zeros(tensor.shape)
        if name.endswith("lora_A"):
            initialize_A(adapters[name], generator)
    return adapters


def _check_fits(then: Config, now: Config, folder: Path) -> None:
    problems = []
    for name in FIXED:
        old, new = then, now
        for part in name.split("."):
            old, new = getattr(old, part), getattr(new, part)
        if old != new:
            problems.append(f"{name}: there {old!r}, here {new!r}")
    if then.model.video2world and not now.model.video2world:
        problems.append("model.video2world: there True, here False; without given frames, give --train.given-latents 1")
    if any(rows > before for rows, before in zip(now.model.max_tokens, then.model.max_tokens, strict=True)):
        before, after = then.model.max_tokens, now.model.max_tokens
        problems.append(f"model.max_tokens: there {before}, here {after}; positions that were never trained are noise")
    if problems:
        listed = "\n  ".join(problems)
        raise UserError(f"cannot start from {folder}, its network is another; give its numbers:\n  {listed}")


def _of_module(module: nn.Module, tensors: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """The tensors in float32, once they are known to be the module's: all of them, no others, finite."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wrong := sorted({name for name, _ in expected.items() ^ found.items()}):
        listed = "\n  ".join(
            f"{name}: {found.get(name, 'missing')}, not {expected.get(name, 'known')}" for name in wrong
        )
        raise UserError(f"{what} does not fit; use a checkpoint of this version:\n  {listed}")
    if wrong := sorted(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()):
        raise UserError(f"{what} is not finite ({', '.join(wrong)}): use an earlier checkpoint")
    return {name: tensor.float() for name, tensor in tensors.items()}
