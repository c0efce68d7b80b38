"""Somebody's weights, ready for sampling as they are: nothing is converted, nothing is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from cosmos_ref.config import TOKENIZERS, Config, ConvTokenizerConfig
from cosmos_ref.equations import costs
from cosmos_ref.errors import UserError
from cosmos_ref.interop.names import Layout, group_of
from cosmos_ref.interop.parts import ACCEPTED, find_parts, read_network, read_tokenizer, tokenizer_sources
from cosmos_ref.interop.sources import Source, read_finite, read_json
from cosmos_ref.interop.tokenizer_names import recognise_tokenizer, recognise_tokenizer_layout
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import build_denoiser
from cosmos_ref.tokenizer.build import build_tokenizer
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.discrete import DiscreteTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Release:
    """Weights whose names, shapes and types are checked, and of which nothing is loaded yet."""

    config: Config
    layout: Layout
    """Whose names the network has."""
    t5_folder: Path | None
    """Of the text encoder, if one was given or lies beside the network."""
    bytes: dict[str, int]
    """What `denoiser`, `tokenizer` and (if there is one) `text_encoder` take in memory, in `precision`."""
    precision: torch.dtype
    device: torch.device
    denoiser_tensors: Mapping[str, Source] = field(repr=False)
    tokenizer_tensors: Mapping[str, Source] = field(repr=False)

    def load_denoiser(self) -> Denoiser:
        """The denoiser, on its device and in its precision; memory holds it and one tensor more.

        Raises:
            UserError: a tensor is not finite.
        """
        return fill(build_denoiser(self.config), self.denoiser_tensors, self.device, self.precision)

    def load_tokenizer(self) -> ContinuousTokenizer | HaarPCATokenizer:
        """The tokenizer, on its device and in its precision, statistics included.

        Raises:
            UserError: a tensor is not finite.
        """
        with torch.device("meta"):
            tokenizer = build_tokenizer(self.config.tokenizer)
        assert not isinstance(tokenizer, DiscreteTokenizer)  # open_release refuses it
        return fill(tokenizer, self.tokenizer_tensors, self.device, self.precision)


def open_release(
    folder: Path,
    config: Config,
    *,
    tokenizer: Path | None = None,
    t5: Path | None = None,
    precision: torch.dtype,
    device: torch.device | str,
    allow_torchscript: bool = False,
) -> Release:
    """Find network, tokenizer and text encoder in a folder of weights, in whatever layout, and check them all.

    Of a training checkpoint the averaged weights are taken, if it has them.

    Args:
        folder: a diffusers pipeline or transformer, NVIDIA's folder, a checkpoint of either program or ours, or a file.
        config: the model it should be.
        tokenizer: folder or file of the tokenizer, if it is not in `folder`.
        t5: folder of the T5 encoder, if it is not in `folder`.
        precision: of all weights once loaded.
        device: where they go.
        allow_torchscript: whether NVIDIA's `.jit` files may be loaded, which can run code.

    Raises:
        UserError: a part is not there, cannot be read, or does not fit the model.
    """
    folder = Path(folder)
    if isinstance(config.tokenizer, ConvTokenizerConfig) and config.tokenizer.fsq_levels:
        raise UserError(f"the tokenizer of {config.name} is discrete: this diffusion model works on continuous latents")
    parts = find_parts(folder, allow_torchscript)
    if parts.network is None:
        raise UserError(f"{folder} holds no network: {ACCEPTED}")
    layout, network = read_network(parts.network, config)
    groups = {group_of(name) for name in network}
    chosen = "ema" if "ema" in groups else "model"
    denoiser_tensors = {
        name.removeprefix(f"{chosen}."): source for name, source in network.items() if group_of(name) == chosen
    }
    coder = parts.tokenizer if tokenizer is None else find_parts(Path(tokenizer), allow_torchscript).tokenizer
    if coder is None:
        raise UserError(
            f"{tokenizer or folder} holds no tokenizer, which turns latents into video: give diffusers' vae folder, or "
            "NVIDIA's with encoder, decoder and mean_std.pt"
        )
    tokenizer_tensors = read_tokenizer(coder, config.tokenizer, allow_torchscript).tensors
    t5 = parts.text if t5 is None else Path(t5)
    sizes = {"denoiser": _bytes(denoiser_tensors, precision), "tokenizer": _bytes(tokenizer_tensors, precision)}
    if t5 is not None:
        sizes["text_encoder"] = t5_parameters(t5) * precision.itemsize
    return Release(config, layout, t5, sizes, precision, torch.device(device), denoiser_tensors, tokenizer_tensors)


def open_tokenizer(
    path: Path, device: torch.device, precision: torch.dtype, allow_torchscript: bool = False
) -> tuple[ConvTokenizerConfig, Callable[[], ContinuousTokenizer | DiscreteTokenizer]]:
    """Which of NVIDIA's tokenizers the weights at `path` are, and what loads it.

    A continuous one without statistics gives latents as its encoder does, not standardised.

    Args:
        path: diffusers' vae folder, NVIDIA's folder, or a file of weights.
        device: where it goes.
        precision: of its weights once loaded.
        allow_torchscript: whether NVIDIA's `.jit` files may be loaded, which can run code.

    Raises:
        UserError: there is no tokenizer, or none of NVIDIA's.
    """
    coder = find_parts(Path(path), allow_torchscript).tokenizer
    if coder is None:
        raise UserError(f"{path} holds no tokenizer: {ACCEPTED}")
    shapes = {name: source.shape for name, source in tokenizer_sources(coder, allow_torchscript).items()}
    layout = recognise_tokenizer_layout(shapes)
    name = layout and recognise_tokenizer(shapes, layout)
    if name is None:
        raise UserError(f"{path} holds none of these tokenizers: {', '.join(TOKENIZERS)}")
    config = TOKENIZERS[name]
    tensors = read_tokenizer(coder, config, allow_torchscript, without_statistics=True).tensors

    def load() -> ContinuousTokenizer | DiscreteTokenizer:
        with torch.device("meta"):
            tokenizer = build_tokenizer(config)
        assert not isinstance(tokenizer, HaarPCATokenizer)
        return fill(tokenizer, tensors, device, precision)

    return config, load


T5_SIZES = {  # of the equation, and what transformers calls them
    "vocabulary": "vocab_size",
    "width": "d_model",
    "depth": "num_layers",
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "mlp_width": "d_ff",
    "distances": "relative_attention_num_buckets",
}


def t5_parameters(folder: Path) -> int:
    """Numbers in the encoder half of a T5 model, from its `config.json`.

    Raises:
        UserError: there is none, or it is no T5's.
    """
    path = folder / "config.json"
    config = read_json(path)
    try:
        sizes = {ours: config[theirs] for ours, theirs in T5_SIZES.items()}
        gates = sizes["depth"] * sizes["width"] * sizes["mlp_width"]  # of version 1.1
        return costs.t5_parameters(**sizes) + ("gated" in config.get("feed_forward_proj", "relu")) * gates
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not of a T5 model ({error!r}): give the folder of t5-11b") from error


def _bytes(tensors: Mapping[str, Source], precision: torch.dtype) -> int:
    return sum(torch.Size(source.shape).numel() for source in tensors.values()) * precision.itemsize


def fill(module: Module, tensors: Mapping[str, Source], device: torch.device, precision: torch.dtype) -> Module:
    """A module with its tensors, read one by one.

    Raises:
        UserError: a tensor is not finite.
    """
    state = {name: read_finite(tensor).to(device, precision) for name, tensor in tensors.items()}
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)
