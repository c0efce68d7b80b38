"""What a folder of somebody's weights holds, found out from its files: the network, the tokenizer, the text encoder."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cosmos_ref.checkpoint import MANIFEST, find_checkpoint, list_groups, read_checkpoint
from cosmos_ref.config import Config, ConvTokenizerConfig, TokenizerConfig
from cosmos_ref.errors import UserError
from cosmos_ref.interop.names import Layout, check_diffusers_config, recognise_layout, to_ours
from cosmos_ref.interop.sources import (
    PICKLES,
    Source,
    checkpoint_sources,
    held,
    listed,
    load_plain,
    read_json,
    read_sources,
    refuse_odd_types,
)
from cosmos_ref.interop.tokenizer_names import TokenizerLayout, recognise_tokenizer_layout, tokenizer_to_ours

GROUPS = ("model", "ema", "uncertainty")
HALVES, WHOLE = ("encoder", "decoder"), ("autoencoder",)
"""Stems of NVIDIA's tokenizer files: two that belong together, or one that has everything."""
STATISTICS = "mean_std.pt"
ACCEPTED = (
    "give a checkpoint of ours, a diffusers pipeline (transformer, vae), its transformer or vae folder, NVIDIA's "
    "folder (model.pt; encoder.jit, decoder.jit and mean_std.pt there or in tokenizer), or one file of weights"
)


class Parts(NamedTuple):
    """Where the parts of a model are; None is not there."""

    network: Path | None = None
    tokenizer: Path | None = None
    text: Path | None = None


class NetworkSource(NamedTuple):
    """Tensors of a network by our names, unread, and whose names they had."""

    layout: Layout
    tensors: dict[str, Source]


class TokenizerSource(NamedTuple):
    """Tensors of a tokenizer by our names, statistics included, and whose names they had."""

    layout: TokenizerLayout
    tensors: dict[str, Source]


def find_parts(path: Path, allow_torchscript: bool = False) -> Parts:
    """Recognise a folder or file of weights by what is in it.

    Raises:
        UserError: there is nothing that could be weights, or a checkpoint is not complete.
    """
    if path.is_file():
        names = read_sources(path, allow_torchscript)
        return Parts(tokenizer=path) if recognise_tokenizer_layout(names) else Parts(network=path)
    if not path.is_dir():
        raise UserError(f"{path} does not exist: {ACCEPTED}")
    if (path / MANIFEST).is_file() or (path / "checkpoints").is_dir():
        path = find_checkpoint(path)
        groups = list_groups(path)
        network = "model" in groups or "ema" in groups
        return Parts(path if network else None, path if "tokenizer" in groups else None)
    transformer, vae, text = (path / name for name in ("transformer", "vae", "text_encoder"))
    if transformer.is_dir() or vae.is_dir():
        return Parts(*(part if part.is_dir() else None for part in (transformer, vae, text)))
    if _diffusers_class(path) == "AutoencoderKLCosmos":
        return Parts(tokenizer=path)
    tokenizer = next((folder for folder in (path, path / "tokenizer") if _tokenizer_files(folder)), None)
    parts = Parts(path if _network_files(path) else None, tokenizer)
    if not any(parts):
        there = ", ".join(sorted(file.name for file in path.iterdir())[:10])
        raise UserError(f"{path} {f'holds no weights, only: {there}' if there else 'is empty'}; {ACCEPTED}")
    return parts


def read_network(path: Path, config: Config, layout: Layout | None = None) -> NetworkSource:
    """The tensors of a network, checked against a model by name, shape and type before any of them is read.

    Raises:
        UserError: it cannot be read, is nobody's layout, or does not fit the model.
    """
    found = network_sources(path)
    layout = layout or recognise_layout(found)
    if layout is None:
        raise UserError(f"{path}: nobody calls the tensors of a Cosmos network so:{listed(found)}")
    names = to_ours({name: source.shape for name, source in found.items()}, layout, config)
    tensors = {ours: found[name] for name, ours in names.items()}
    refuse_odd_types(tensors.values())
    if layout == "diffusers" and (path / "config.json").is_file():
        check_diffusers_config(path, config)
    if (path / MANIFEST).is_file():
        _check_ours(path, config)
    return NetworkSource(layout, tensors)


def network_sources(path: Path) -> dict[str, Source]:
    """Every tensor of a network's files by the name it has there; of our checkpoints `model.`, `ema.` and so on."""
    if (path / MANIFEST).is_file():
        return {
            f"{group}.{name}": source
            for group in GROUPS
            if group in list_groups(path)
            for name, source in checkpoint_sources(path, group).items()
        }
    if not path.is_dir():
        return read_sources(path)
    files = _network_files(path)
    if any(file.suffix == ".safetensors" for file in files):
        # An index says which files belong together; without one there may be no second file.
        return read_sources(path if list(path.glob("*.safetensors.index.json")) or len(files) > 1 else files[0])
    if len(files) != 1:
        raise UserError(f"{path} holds {len(files)} files of weights: give one of them")
    return read_sources(files[0])


def read_tokenizer(
    path: Path, config: TokenizerConfig, allow_torchscript: bool = False, without_statistics: bool = False
) -> TokenizerSource:
    """The tensors of a tokenizer, checked by name, shape and type.

    Args:
        path: a vae folder of diffusers, NVIDIA's folder, a checkpoint of ours, or a file of weights, whose statistics
            lie beside it.
        config: which tokenizer it should be.
        allow_torchscript: whether NVIDIA's `.jit` files may be loaded, which can run code.
        without_statistics: whether latents stay as the encoder gives them where there are no mean and standard
            deviation. A diffusion model needs them; NVIDIA published them for CV8x8x8 alone.

    Raises:
        UserError: it cannot be read, does not fit, or has no statistics and needs them.
    """
    if (path / MANIFEST).is_file() and (theirs := read_checkpoint(path, names=()).config.tokenizer) != config:
        raise UserError(f"{path} has another tokenizer: {theirs}, not {config}")
    found = tokenizer_sources(path, allow_torchscript)
    layout = recognise_tokenizer_layout(found)
    if layout is None:
        raise UserError(f"{path}: nobody calls the tensors of a Cosmos tokenizer so:{listed(found)}")
    names = tokenizer_to_ours({name: source.shape for name, source in found.items()}, layout, config)
    tensors = {ours: found[name] for name, ours in names.items()}
    refuse_odd_types(tensors.values())
    if isinstance(config, ConvTokenizerConfig):
        if layout == "nvidia":
            _check_levels(found, config, path)
        if not config.fsq_levels and "mean" not in tensors:
            statistics = _statistics(path, layout, config, without_statistics)
            tensors |= {
                name: held(f"{name} of {path}", value) for name, value in zip(("mean", "std"), statistics, strict=True)
            }
    return TokenizerSource(layout, tensors)


def tokenizer_sources(path: Path, allow_torchscript: bool = False) -> dict[str, Source]:
    """Every tensor of a tokenizer's files by the name it has there."""
    if (path / MANIFEST).is_file():
        return checkpoint_sources(path, "tokenizer")
    if not path.is_dir():
        return read_sources(path, allow_torchscript)
    if not (files := _tokenizer_files(path)):
        return read_sources(path)
    return {name: source for file in files for name, source in read_sources(file, allow_torchscript).items()}


def _statistics(
    path: Path, layout: TokenizerLayout, config: ConvTokenizerConfig, without: bool
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents, `C latent_frames`, from the file where this layout keeps them."""
    folder = path if path.is_dir() else path.parent
    file = folder / ("config.json" if layout == "diffusers" else STATISTICS)
    pair = None
    if layout == "diffusers":
        kept = read_json(file)
        kept = kept if isinstance(kept, dict) else {}
        pair = [kept.get("latents_mean"), kept.get("latents_std")]
        try:
            pair = None if None in pair else [torch.tensor(values) for values in pair]
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{file} has no lists of numbers as statistics ({error}): copy it again") from error
    elif file.is_file():
        pair = load_plain(file)
    if pair is None and without:
        shape = config.channels, config.latent_frames
        return torch.zeros(shape), torch.ones(shape)
    if pair is None:
        raise UserError(
            f"{file} has no mean and standard deviation of the latents, which a diffusion model needs: give NVIDIA's "
            f"{STATISTICS} beside the weights; `cosmos-ref convert --without-statistics` takes latents as they are"
        )
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)):
        raise UserError(f"{file} should hold two tensors, mean and standard deviation: copy it again")
    count, per_channel = pair[0].numel(), pair[0].numel() // config.channels
    if pair[1].numel() != count or count % config.channels or per_channel < config.latent_frames:
        raise UserError(
            f"{file} has {count} means and {pair[1].numel()} deviations, not {config.channels} channels of at least "
            f"{config.latent_frames} latent frames: give those of this tokenizer"
        )
    mean, std = (part.reshape(config.channels, -1)[:, : config.latent_frames].contiguous() for part in pair)
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise UserError(f"{file}: means must be finite and deviations above 0; copy it again")
    return mean.float(), std.float()


def _check_ours(path: Path, config: Config) -> None:
    """Numbers of a checkpoint of ours that its shapes do not show; two of them are conventions of sampling."""
    theirs = read_checkpoint(path, names=()).config
    model = replace(theirs.model, angles=config.model.angles, qk_norm_eps=config.model.qk_norm_eps)
    if (model, theirs.diffusion.sigma_data) != (config.model, config.diffusion.sigma_data):
        raise UserError(
            f"{path} is of {theirs.name} with other numbers than {config.name}: do not name a preset for it"
        )


def _check_levels(found: dict[str, Source], config: ConvTokenizerConfig, path: Path) -> None:
    """The quantizer's levels decide what the weights do, and no shape of a weight shows them."""
    for name, source in found.items():
        if name.endswith("quantizer._levels") and (levels := tuple(source.read().tolist())) != config.fsq_levels:
            raise UserError(f"{path} has quantizer levels {levels}, not {config.fsq_levels}: give its configuration")


def _diffusers_class(folder: Path) -> str | None:
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    return config.get("_class_name") if isinstance(config, dict) else None


def _tokenizer_files(folder: Path) -> list[Path]:
    """NVIDIA's tokenizer: safetensors rather than TorchScript, a whole file rather than two halves."""
    for suffix in (".safetensors", ".jit"):
        for stems in (*((stem,) for stem in WHOLE), HALVES):
            if all((folder / f"{stem}{suffix}").is_file() for stem in stems):
                return [folder / f"{stem}{suffix}" for stem in stems]
    return []


def _network_files(folder: Path) -> list[Path]:
    """Safetensors, or where there are none, files of torch.save."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    found = [file for file in files if file.suffix == ".safetensors" and file.stem not in (*HALVES, *WHOLE)]
    return found or [file for file in files if file.suffix in PICKLES and not file.stem.endswith("mean_std")]
