"""Checkpoints from one layout to another, one tensor in memory at a time."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cosmos_ref.checkpoint import MANIFEST
from cosmos_ref.config import Config
from cosmos_ref.errors import UserError
from cosmos_ref.interop.names import Layout, diffusers_config, from_ours, group_of, to_ours

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
REMEDY = "give a .safetensors file, a folder of them (with its index if there are several), or a .pt file of weights"


class Source(NamedTuple):
    """A tensor that was not read yet."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * int(self.dtype.lstrip("BF")) // 8


def convert(
    source: Path,
    out: Path,
    layout_from: Layout,
    layout_to: Layout,
    config: Config,
    weights: Literal["model", "ema"] = "model",
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Write the weights of `source` into the new folder `out`, under the names of another layout.

    Precision and values stay as they are; what the other layout has no place for is left out. Names and shapes are all
    checked before anything is written; the folder appears whole or not at all. Memory holds one tensor at a time.

    Args:
        source: a safetensors file, a folder of them, one of our checkpoints, or a `.pt` file without code.
        out: a folder that does not exist yet.
        layout_from: whose names the source has.
        layout_to: whose names the result has.
        config: the model.
        weights: which set goes into a layout that holds only one: those of the last step or their average.
        max_shard_bytes: files are split at this size; a tensor is never split.

    Raises:
        UserError: the source cannot be read, needs code, does not fit the model or is not finite; or `out` exists.
    """
    source, out = Path(source), Path(out)
    target = from_ours(layout_to, config)
    if out.exists():
        raise UserError(f"{out} exists: give a folder that does not, or delete it")
    found = read_sources(source)
    ours = to_ours({name: tensor.shape for name, tensor in found.items()}, layout_from, config)
    if odd := [f"{name} ({found[name].dtype})" for name in ours if found[name].dtype not in DTYPES.values()]:
        raise UserError(f"{source}: only {', '.join(DTYPES.values())} can be converted, not: {', '.join(odd)}")
    tensors = {our_name: found[name] for name, our_name in ours.items()}
    if layout_to in ("nvidia", "diffusers"):
        if not any(group_of(name) == weights for name in tensors):
            raise UserError(f"{source} holds no averaged weights (ema): take weights 'model'")
        other = "model" if weights == "ema" else "ema"
        tensors = {
            name.replace("ema.", "model.", 1) if group_of(name) == "ema" else name: tensor
            for name, tensor in tensors.items()
            if group_of(name) != other
        }
    renamed = {target[name]: tensor for name, tensor in tensors.items() if name in target}
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        stem = "diffusion_pytorch_model" if layout_to == "diffusers" else "model"
        write_shards(partial, stem, renamed, max_shard_bytes)
        if layout_to == "diffusers":
            (partial / "config.json").write_text(json.dumps(diffusers_config(config), indent=2) + "\n")
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def read_sources(path: Path) -> dict[str, Source]:
    """Every tensor of a checkpoint by name, none of them read yet; of ours, only those of the model.

    Raises:
        UserError: there is none, a file is damaged, or it holds more than tensors.
    """
    if path.is_dir() and (path / MANIFEST).is_file():
        groups = [path / f"{group}.safetensors" for group in ("model", "ema", "uncertainty")]
        return {
            f"{file.stem}.{name}": tensor
            for file in groups
            if file.is_file()
            for name, tensor in _read_safetensors(file).items()
        }
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: {REMEDY}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def write_shards(folder: Path, stem: str, tensors: dict[str, Source], max_shard_bytes: int) -> None:
    """Write tensors as one safetensors file, or as several with an index, reading them one by one.

    Raises:
        UserError: a tensor is not finite.
    """
    shards: list[dict[str, Source]] = [{}]
    for name, tensor in tensors.items():
        held = sum(other.num_bytes for other in shards[-1].values())
        if shards[-1] and held + tensor.num_bytes > max_shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        _write_safetensors(folder / f"{stem}.safetensors", shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.num_bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _write_safetensors(path: Path, tensors: dict[str, Source]) -> None:
    """The format: length of the header (8 bytes), header in JSON, then the tensors as the header says."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.num_bytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the first tensor is aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            value = tensor.read().contiguous()
            if not all(torch.isfinite(extreme) for extreme in torch.aminmax(value)):  # takes no memory, unlike isfinite
                raise UserError(f"{name} is not finite: these weights are damaged, copy them again")
            file.write(value.view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _read_folder(folder: Path) -> dict[str, Source]:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indices) > 1 or (not indices and len(files) != 1):
        raise UserError(f"{folder} holds {len(files)} safetensors files and {len(indices)} indices: {REMEDY}")
    if not indices:
        return _read_safetensors(files[0])
    try:
        weight_map = json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"]
        files = sorted({folder / Path(file).name for file in weight_map.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{indices[0]} is damaged ({error!r}): copy it again") from error
    tensors: dict[str, Source] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, though {indices[0].name} names it: copy it again")
        tensors |= _read_safetensors(file)
    if tensors.keys() != weight_map.keys():
        differing = ", ".join(sorted(tensors.keys() ^ weight_map.keys()))
        raise UserError(f"{indices[0]} and the files beside it differ in: {differing}; copy them again")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Source]:
    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            # Opened anew each time: a mapped file counts as memory for as long as it is open.
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)

        return read

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return {
                name: Source(tuple(part.get_shape()), part.get_dtype(), reader(name)) for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): copy it again") from error


def _read_pickle(path: Path) -> dict[str, Source]:
    try:
        # weights_only runs no code. Transformer Engine keeps its extra state in a BytesIO, which is bytes and no more.
        with torch.serialization.safe_globals([io.BytesIO]):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors, and is not read, as that could run code: {REMEDY}") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as weights ({error}): {REMEDY}") from error
    tensors: dict[str, Source] = {}
    others: list[str] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                walk(part, f"{name}.{key}" if name else str(key))
        elif isinstance(value, Tensor):
            dtype = DTYPES.get(value.dtype, str(value.dtype))
            tensors[name] = Source(tuple(value.shape), dtype, lambda: value)
        elif not name.endswith("_extra_state"):
            others.append(name)

    walk(state, "")
    if others:
        raise UserError(f"{path} holds more than tensors: {', '.join(sorted(others))}; keep only the weights")
    return tensors
