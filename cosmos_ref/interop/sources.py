"""Tensors in other programs' files: names, shapes and types at once, values when they are asked for, one at a time."""

import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cosmos_ref.checkpoint import DTYPES, stored_tensors
from cosmos_ref.conditioning.text import LFS_POINTER
from cosmos_ref.errors import UserError

NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ("F64", "F32", "F16", "BF16")
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
REMEDY = "give a .safetensors file, a folder of them (with its index if there are several), or a .pt file of weights"
TORCHSCRIPT = (
    "{path} is TorchScript, and loading that can run code: allow it (--allow-torchscript) only if you trust the file, "
    "or give the same weights as .safetensors, or the vae folder of a diffusers pipeline"
)


class Source(NamedTuple):
    """A tensor that was not read yet."""

    name: str
    """In its file, and which file that is, for errors."""
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def held(name: str, value: Tensor) -> Source:
    """A tensor that is in memory already."""
    return Source(name, tuple(value.shape), NAMES.get(value.dtype, str(value.dtype)), lambda: value)


def read_sources(path: Path, allow_torchscript: bool = False) -> dict[str, Source]:
    """Every tensor of a file, or of the files of a folder, by name; none of them is read yet, except TorchScript's.

    Args:
        path: a safetensors file, a folder of them (with an index if there are several), or a file that `torch.save`
            or `torch.jit.save` wrote.
        allow_torchscript: whether a TorchScript file may be loaded, which can run code.

    Raises:
        UserError: there is none, a file is damaged, holds more than tensors, or is not allowed.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: {REMEDY}")
    refuse_pointer(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if is_torchscript(path):
        if not allow_torchscript:
            raise UserError(TORCHSCRIPT.format(path=path))
        return _read_torchscript(path)
    return _read_pickle(path)


def checkpoint_sources(folder: Path, group: str) -> dict[str, Source]:
    """Every tensor of a group of our checkpoint by name, unread; none if there is no such group.

    Raises:
        UserError: a file is missing or damaged.
    """
    return {
        name: Source(f"{name} of {group} in {folder}", stored.shape, stored.dtype, stored.read)
        for name, stored in stored_tensors(folder, group).items()
    }


def read_finite(source: Source) -> Tensor:
    """The values of a tensor.

    Raises:
        UserError: some are not finite.
    """
    value = source.read()
    # The extremes take no memory, unlike isfinite of all.
    if value.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(value)):
        raise UserError(f"{source.name} is not finite: these weights are damaged, copy them again")
    return value


def refuse_odd_types(sources: Iterable[Source]) -> None:
    """Weights are floating-point numbers.

    Raises:
        UserError: some are not; they are listed.
    """
    if odd := [f"{source.name} is {source.dtype}" for source in sources if source.dtype not in FLOATS]:
        raise UserError(f"weights must be one of {', '.join(FLOATS)}, give unquantised ones:{listed(odd)}")


def listed(problems: Iterable[str]) -> str:
    """Problems line by line for the end of a message: the first ten, and how many more."""
    problems = sorted(problems)
    lines = problems[:10] + ([f"... and {len(problems) - 10} more"] if len(problems) > 10 else [])
    return "".join(f"\n  {line}" for line in lines)


def refuse_pointer(path: Path) -> None:
    """Git leaves a text of three lines where a large file was not fetched.

    Raises:
        UserError: the file is one.
    """
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(
                f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder, or download the file"
            )


def is_torchscript(path: Path) -> bool:
    """Whether `torch.jit.save` wrote a file, whatever its name."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        UserError: it is not there or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again") from error


def load_plain(path: Path, device: str = "cpu") -> Any:
    """What `torch.save` wrote, if it is tensors in plain containers; no code in it is run.

    Raises:
        UserError: it is something else.
    """
    refuse_pointer(path)
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is cut off, or not of torch.save since version 1.6; nothing in it was run: {REMEDY}")
    try:
        # weights_only runs no code. Transformer Engine keeps its extra state in a BytesIO, which is bytes and no more.
        with torch.serialization.safe_globals([io.BytesIO]):
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors, and is not read, as that could run code: {REMEDY}") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as weights ({error}): {REMEDY}") from error


def _stored(
    name: str, path: Path, offset: int, shape: tuple[int, ...], dtype: str, stride: tuple[int, ...] | None = None
) -> Source:
    """A tensor that lies in a file at `offset`. Read, not mapped: mapped pages count as memory, beside their copy."""

    def read() -> Tensor:
        count = math.prod(shape)
        if stride is not None and count:
            count = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        values = torch.empty(count, dtype=DTYPES[dtype])
        with path.open("rb") as file:
            file.seek(offset)
            if file.readinto(values.view(torch.uint8).numpy().data) != values.nbytes:
                raise UserError(f"{path} ends too early: copy it again")
        return values.view(shape) if stride is None else values.as_strided(shape, stride)

    return Source(f"{name} of {path}", shape, dtype, read)


def _read_folder(folder: Path) -> dict[str, Source]:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indices) > 1 or (not indices and len(files) != 1):
        raise UserError(f"{folder} holds {len(files)} safetensors files and {len(indices)} indices: {REMEDY}")
    if not indices:
        return read_sources(files[0])
    try:
        weight_map = dict(read_json(indices[0])["weight_map"])
        files = sorted({folder / Path(file).name for file in weight_map.values()})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{indices[0]} is damaged ({error!r}): copy it again") from error
    tensors: dict[str, Source] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, though {indices[0].name} names it: copy it again")
        tensors |= read_sources(file)
    if tensors.keys() != weight_map.keys():
        differing = listed(tensors.keys() ^ weight_map.keys())
        raise UserError(f"{indices[0]} and the files beside it differ, copy them again:{differing}")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Source]:
    try:
        safe_open(path, framework="pt").__exit__(None, None, None)  # checks the header against the size of the file
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): copy it again") from error
    return {
        name: _stored(name, path, 8 + length + entry["data_offsets"][0], tuple(entry["shape"]), entry["dtype"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _read_pickle(path: Path) -> dict[str, Source]:
    """Tensors of a pickle; where there are dictionaries in a dictionary, their names are joined by a dot."""
    state = load_plain(path, device="meta")  # the storages then know where in the file they are
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type for entry in archive.infolist()):
            raise UserError(f"{path} is compressed, which torch.save never does: {REMEDY}")
    tensors: dict[str, Source] = {}
    others: list[str] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                walk(part, f"{name}.{key}" if name else str(key))
        elif isinstance(value, Tensor) and value.layout == torch.strided:
            start = value.untyped_storage()._checkpoint_offset or 0
            start += int(value.storage_offset()) * value.dtype.itemsize
            dtype = NAMES.get(value.dtype, str(value.dtype))
            tensors[name] = _stored(name, path, start, tuple(value.shape), dtype, value.stride())
        elif value is not None and not name.endswith("_extra_state"):
            others.append(name)

    walk(state, "")
    if others:
        raise UserError(f"{path} holds more than tensors, keep only the weights:{listed(others)}")
    return tensors


def _read_torchscript(path: Path) -> dict[str, Source]:
    try:
        state = torch.jit.load(os.fspath(path), map_location="cpu").state_dict()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as TorchScript ({error}): copy it again") from error
    return {name: held(f"{name} of {path}", value.detach()) for name, value in state.items()}
