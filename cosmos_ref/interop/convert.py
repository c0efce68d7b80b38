"""Weights from one layout to another, one tensor in memory at a time."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from cosmos_ref.adapter import require_merged
from cosmos_ref.checkpoint import MANIFEST, find_checkpoint, list_groups, read_checkpoint, seal_checkpoint
from cosmos_ref.config import PRESETS, TOKENIZERS, Config, ConvTokenizerConfig
from cosmos_ref.errors import UserError
from cosmos_ref.interop.names import Layout, diffusers_config, from_ours, group_of, recognise_preset
from cosmos_ref.interop.parts import (
    ACCEPTED,
    GROUPS,
    STATISTICS,
    Parts,
    find_parts,
    network_sources,
    read_network,
    read_tokenizer,
    tokenizer_sources,
)
from cosmos_ref.interop.sources import DTYPES, Source, checkpoint_sources, read_finite
from cosmos_ref.interop.tokenizer_names import (
    recognise_tokenizer,
    recognise_tokenizer_layout,
    tokenizer_names,
    vae_config,
)


@dataclass(frozen=True)
class Converted:
    """What was written, and what of the source has no place there."""

    folder: Path
    config: Config
    layout_from: str
    written: list[str]
    """Of `network`, `tokenizer`."""
    left_out: list[str]
    """Groups of tensors: `model`, `ema`, `uncertainty`, `tokenizer`."""


def convert(
    source: Path,
    out: Path,
    layout_to: Layout,
    config: Config | None = None,
    *,
    layout_from: Layout | None = None,
    tokenizer: Path | None = None,
    weights: Literal["model", "ema"] | None = None,
    allow_torchscript: bool = False,
    without_statistics: bool = False,
    max_shard_bytes: int = 5 * 10**9,
    progress: Callable[[int], Callable[[int], None]] = lambda total: lambda done: None,
) -> Converted:
    """Write the weights of `source` into the new folder `out`, under the names of another layout.

    - ours: a checkpoint of one file a group, as training in one process writes it, with what there is of model,
      averages, uncertainty, tokenizer and statistics of images;
    - nvidia, nvidia-training: the network; a tokenizer goes into the folder `tokenizer`, as safetensors under NVIDIA's
      names with `mean_std.pt` beside it;
    - diffusers: a transformer folder, a vae folder, or, of both, a folder with `transformer` and `vae` in it.

    Precision and values stay as they are. Names, shapes and types are all checked before anything is written; the
    folder appears whole or not at all. Memory holds one tensor at a time, except what TorchScript loads.

    Args:
        source: a checkpoint of ours, a diffusers pipeline, transformer or vae, NVIDIA's folder, or a file of weights.
        out: a folder that does not exist yet.
        layout_to: whose names the result has.
        config: the model; None is what the checkpoint says, or the preset whose sizes the weights have.
        layout_from: whose names the network has; None finds out.
        tokenizer: folder or file of the tokenizer, if it is not in `source`.
        weights: which set goes into a layout that holds only one: those of the last step or their average. None is
            the average if there is one, as in sampling.
        allow_torchscript: whether NVIDIA's `.jit` files may be loaded, which can run code.
        without_statistics: whether a tokenizer may come without mean and standard deviation of its latents.
        max_shard_bytes: files of other layouts are split at this size; a tensor is never split.
        progress: called with the bytes there are to copy; what it gives is called with the bytes of each tensor read.

    Raises:
        UserError: the source cannot be read, needs code, does not fit the model, is not finite or has adapters that
            are not merged; or `out` exists or cannot be made.
    """
    source, out = Path(source), Path(out)
    _check_new(out)
    parts = find_parts(source, allow_torchscript)
    if tokenizer is not None:
        parts = parts._replace(tokenizer=find_parts(Path(tokenizer), allow_torchscript).tokenizer)
        if parts.tokenizer is None:
            raise UserError(f"{tokenizer} holds no tokenizer: {ACCEPTED}")
    config = config or _config_of(parts, allow_torchscript)
    from_ours(layout_to, config)  # there is such a layout
    if layout_to != "ours":
        require_merged(config, source, f"the layout {layout_to!r}")
    found_as, network = "", {}
    if parts.network is not None:
        found_as, network = read_network(parts.network, config, layout_from)
    coder: dict[str, Source] = {}
    left_out: list[str] = []
    if parts.tokenizer is not None and layout_to != "ours" and not isinstance(config.tokenizer, ConvTokenizerConfig):
        left_out.append("tokenizer")  # wavelets: nobody else has them
    elif parts.tokenizer is not None:
        coder_as, coder = read_tokenizer(parts.tokenizer, config.tokenizer, allow_torchscript, without_statistics)
        found_as = found_as or coder_as
    if layout_to in ("nvidia", "diffusers") and network:
        network = _one_set(network, weights, source)
    others = {}
    if layout_to == "ours" and parts.network is not None and (parts.network / MANIFEST).is_file():
        groups = [group for group in list_groups(parts.network) if group not in (*GROUPS, "tokenizer", "optimizer")]
        others = {group: checkpoint_sources(parts.network, group) for group in groups}
    names = from_ours(layout_to, config)
    left_out += sorted({group_of(name) for name in network if name not in names})
    network = {name: tensor for name, tensor in network.items() if name in names}
    if not network and not coder:
        raise UserError(f"{source} holds nothing that has a place in the layout {layout_to!r}")
    done = progress(sum(tensor.num_bytes for tensor in (*network.values(), *coder.values())))
    network, coder = _watched(network, done), _watched(coder, done)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if layout_to == "ours":
            _write_ours(partial, network, coder, others, config, {"converted_from": found_as})
        elif layout_to == "diffusers":
            _write_diffusers(partial, network, coder, config, max_shard_bytes)
        else:
            write_shards(partial, "model", {names[name]: t for name, t in network.items()}, max_shard_bytes)
            if coder:
                _write_nvidia_tokenizer(partial / "tokenizer" if network else partial, coder, config)
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    written = [name for name, tensors in (("network", network), ("tokenizer", coder)) if tensors]
    return Converted(out, config, found_as, written, left_out)


def write_shards(folder: Path, stem: str, tensors: dict[str, Source], max_shard_bytes: int) -> None:
    """Write tensors as one safetensors file, or as several with an index, reading them one by one; none is no file.

    Raises:
        UserError: a tensor is not finite.
    """
    shards: list[dict[str, Source]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.num_bytes > max_shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.num_bytes
    if len(shards) == 1:
        if tensors:
            write_safetensors(folder / f"{stem}.safetensors", tensors)
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.num_bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def write_safetensors(path: Path, tensors: dict[str, Source]) -> None:
    """The format: length of the header (8 bytes), header in JSON, then the tensors as the header says.

    Raises:
        UserError: a tensor is not finite.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    tensors = dict(sorted(tensors.items(), key=lambda item: -DTYPES[item[1].dtype].itemsize))  # so that all are aligned
    for name, tensor in tensors.items():
        start, end = end, end + tensor.num_bytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(read_finite(tensor).contiguous().view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _check_new(folder: Path) -> None:
    """Refuse a folder that exists or could not be made."""
    if folder.exists():
        raise UserError(f"{folder} exists: give a folder that does not, or delete it")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):  # permissions do not tell: in /proc even root can write nothing
            pass
    except OSError as error:
        raise UserError(f"cannot write {folder}: nothing can be made in {parent} ({error.strerror})") from None


def _config_of(parts: Parts, allow_torchscript: bool) -> Config:
    """What our checkpoint says, or the preset, or NVIDIA's tokenizer, that has the sizes of these weights."""
    if parts.network is not None:
        if (parts.network / MANIFEST).is_file():
            return read_checkpoint(find_checkpoint(parts.network), names=()).config
        config = recognise_preset({name: source.shape for name, source in network_sources(parts.network).items()})
        if config is None:
            raise UserError(f"{parts.network} has the sizes of no preset: name the one that it is of")
        return config
    if parts.tokenizer is None:
        raise UserError(f"there is nothing to convert: {ACCEPTED}")
    if (parts.tokenizer / MANIFEST).is_file():
        return read_checkpoint(parts.tokenizer, names=()).config
    found = tokenizer_sources(parts.tokenizer, allow_torchscript)
    shapes = {name: source.shape for name, source in found.items()}
    layout = recognise_tokenizer_layout(shapes)
    name = recognise_tokenizer(shapes, layout) if layout else None
    if name is None:
        raise UserError(f"{parts.tokenizer} is none of {', '.join(TOKENIZERS)}: name a preset that it is of")
    whole, coder = PRESETS["7b"], TOKENIZERS[name]
    return replace(whole, name=name, tokenizer=coder, model=replace(whole.model, channels=coder.channels))


def _watched(tensors: dict[str, Source], done: Callable[[int], None]) -> dict[str, Source]:
    """The same tensors; each tells when it was read."""

    def watched(tensor: Source) -> Source:
        def read() -> torch.Tensor:
            value = tensor.read()
            done(tensor.num_bytes)
            return value

        return tensor._replace(read=read)

    return {name: watched(tensor) for name, tensor in tensors.items()}


def _one_set(tensors: dict[str, Source], weights: Literal["model", "ema"] | None, source: Path) -> dict[str, Source]:
    """Of weights and their averages, those that are wanted, as `model`; and u(sigma)."""
    groups = {group_of(name) for name in tensors}
    chosen = weights or ("ema" if "ema" in groups else "model")
    if chosen not in groups:
        raise UserError(f"{source} holds no weights called {chosen!r}, only: {', '.join(sorted(groups))}")
    return {
        name.replace(f"{chosen}.", "model.", 1) if group_of(name) == chosen else name: tensor
        for name, tensor in tensors.items()
        if group_of(name) in (chosen, "uncertainty")
    }


def _write_ours(
    folder: Path,
    network: dict[str, Source],
    coder: dict[str, Source],
    others: dict[str, dict[str, Source]],
    config: Config,
    state: dict[str, Any],
) -> None:
    groups = others | ({"tokenizer": coder} if coder else {})
    for name, tensor in network.items():
        group, rest = name.split(".", 1)
        groups.setdefault(group, {})[rest] = tensor
    for group, tensors in groups.items():
        write_safetensors(folder / f"{group}.safetensors", tensors)
    seal_checkpoint(folder, config, state)


def _write_diffusers(
    folder: Path, network: dict[str, Source], coder: dict[str, Source], config: Config, max_shard_bytes: int
) -> None:
    both = bool(network and coder)
    if network:
        names = from_ours("diffusers", config)
        renamed = {names[name]: tensor for name, tensor in network.items()}
        _write_model(folder / "transformer" if both else folder, renamed, diffusers_config(config), max_shard_bytes)
    if coder and isinstance(config.tokenizer, ConvTokenizerConfig):
        names = tokenizer_names(config.tokenizer, "diffusers")
        renamed = {names[name]: tensor for name, tensor in coder.items() if name in names}
        settings = vae_config(config.tokenizer, coder["mean"].read(), coder["std"].read())
        _write_model(folder / "vae" if both else folder, renamed, settings, max_shard_bytes)


def _write_model(folder: Path, tensors: dict[str, Source], settings: dict[str, Any], max_shard_bytes: int) -> None:
    folder.mkdir(exist_ok=True)
    write_shards(folder, "diffusion_pytorch_model", tensors, max_shard_bytes)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _write_nvidia_tokenizer(folder: Path, coder: dict[str, Source], config: Config) -> None:
    """Weights without the constants of NVIDIA's files, which their program makes itself."""
    folder.mkdir(exist_ok=True)
    names = tokenizer_names(config.tokenizer, "nvidia")
    renamed = {names[name]: tensor for name, tensor in coder.items() if name in names}
    write_safetensors(folder / "autoencoder.safetensors", renamed)
    if "mean" in coder:
        torch.save(tuple(coder[name].read().flatten() for name in ("mean", "std")), folder / STATISTICS)
