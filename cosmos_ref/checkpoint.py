"""Checkpoints: a folder of safetensors and JSON that is there whole or not at all. Nothing is ever unpickled.

A group of tensors is one file, `model.safetensors`. If its tensors are spread over processes it is a folder, `model/`,
into which each process writes its own parts through torch.distributed.checkpoint. What reads a group reads both, in any
number of processes.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cosmos_ref.config import Config
from cosmos_ref.errors import UserError, everywhere

FORMAT = 2
MANIFEST = "manifest.json"
REMEDY = "copy the checkpoint again, or delete its folder and use an earlier one"
SUFFIX = ".safetensors"
OFFSETS = "DCP_SHARDING_INFO"
"""Where torch.distributed.checkpoint notes in a file which part of each tensor it has."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
}
"""Types of tensors as safetensors calls them."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: the configuration, named groups of named tensors, and the state of the training."""

    config: Config
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    groups: tuple[str, ...] = ()
    """All groups that the folder has, read or not."""


class Piece(NamedTuple):
    """A part of a tensor that lies in one piece in a file."""

    path: Path
    start: int
    """Its first byte in the file."""
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    """Where in the tensor it begins."""


class Stored(NamedTuple):
    """A tensor of a checkpoint that was not read yet."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it."""
    pieces: tuple[Piece, ...]

    def read(self) -> Tensor:
        """Its values. Read, not mapped: mapped pages count as memory, beside their copy.

        Raises:
            UserError: a file ends too early.
        """
        values = torch.empty(self.shape, dtype=DTYPES[self.dtype])
        for piece in self.pieces:
            part = values[tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.shape, strict=True))]
            read = part if part.is_contiguous() else torch.empty_like(part, memory_format=torch.contiguous_format)
            with piece.path.open("rb") as file:
                file.seek(piece.start)
                if part.numel() and file.readinto(read.view(-1).view(torch.uint8).numpy().data) != read.nbytes:
                    raise UserError(f"{piece.path} is truncated: {REMEDY}")
            if read is not part:
                part.copy_(read)
        return values


def save_checkpoint(
    folder: str | Path, config: Config, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write a checkpoint folder; it appears whole or not at all, whenever a process is killed.

    Where a process group is, all its processes call this with the same groups and names: of a DTensor each writes the
    part that it has, everything else process 0 writes. They need a file system in common.

    Args:
        folder: where; an older checkpoint there is replaced, its parent is made.
        config: the whole configuration.
        tensors: groups of tensors: `model`, `ema`, `uncertainty`, `tokenizer`, `optimizer`, ...
        state: what else the training needs, as JSON values.

    Raises:
        UserError: the folder exists and is no checkpoint.
        OSError: a process cannot write, as on a full disk: then all processes raise, and nothing is left.
    """
    folder = Path(folder)
    # Hidden and with a fixed name: never taken for a checkpoint, and a killed writer's rest is swept by the next one.
    partial, replaced = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "replaced"))

    def prepare() -> None:
        if folder.exists() and not (folder / MANIFEST).is_file():
            raise UserError(f"{folder} exists and is no checkpoint: give another folder, or delete it")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
        partial.mkdir()

    def write() -> None:
        for name, group in whole.items():
            save_file({key: t.detach().cpu().contiguous() for key, t in group.items()}, partial / f"{name}{SUFFIX}")

    def seal() -> None:
        if unseen := [name for part in entries for name in part if not (partial / name).is_file()]:
            raise OSError(f"{partial / unseen[0]} was written but is not there: all processes need one file system")
        seal_checkpoint(partial, config, state, {name: entry for part in entries for name, entry in part.items()})
        if folder.exists():
            os.rename(folder, replaced)
        os.rename(partial, folder)
        _flush(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    spread = {name: group for name, group in tensors.items() if _is_spread(group)}
    whole = {name: group for name, group in tensors.items() if name not in spread}
    _together(prepare, only_first=True)
    try:
        _together(write, only_first=True)
        for name, group in spread.items():
            _write_shards(partial / name, group)
        entries = _together(lambda: _own_shards(partial, spread))
        _together(seal, only_first=True)
    except (OSError, SafetensorError) as error:
        if _rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the space
        said = f"the checkpoint {folder} was not written ({error}); the earlier ones are kept: make room, and --resume"
        raise everywhere(OSError(said)) from error
    return folder


def seal_checkpoint(
    folder: Path, config: Config, state: Mapping[str, Any], shards: Mapping[str, dict[str, Any]] | None = None
) -> None:
    """Make a checkpoint of a folder of safetensors: add configuration, state and manifest, and flush it to the disk.

    Args:
        folder: has the groups that are one file, and those that are a folder.
        config: the whole configuration.
        state: what else there is to say, as JSON values.
        shards: the manifest's entries of the files in folders, which are on the disk already.
    """
    _write_json(folder / "config.json", dataclasses.asdict(config))
    _write_json(folder / "state.json", dict(state))
    files = {path.name: _entry(path) for path in sorted(folder.iterdir()) if path.is_file()}
    _write_json(folder / MANIFEST, {"format": FORMAT, "files": files | dict(shards or {})})
    for path in [*folder.iterdir(), folder]:
        _flush(path)


def list_checkpoints(run: str | Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    found = [path.parent for path in Path(run).glob(f"checkpoints/step_*/{MANIFEST}")]
    return sorted((path for path in found if path.name[5:].isdecimal()), key=lambda path: int(path.name[5:]))


def prune_checkpoints(run: str | Path, keep: int) -> None:
    """Delete the checkpoints of a run folder except the newest `keep`, and what killed writers left."""
    for old in list_checkpoints(run)[:-keep]:
        os.rename(old, old.with_name(f".{old.name}.replaced"))  # no longer a checkpoint before its first file is gone
    for rest in Path(run).glob("checkpoints/.step_*"):
        shutil.rmtree(rest, ignore_errors=True)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint at `path`: the folder itself, or the newest one of a run folder.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: give a checkpoint folder or the folder of a training run")
    if (path / MANIFEST).is_file():
        return path
    if not (found := list_checkpoints(path)):
        raise UserError(
            f"{path} holds no complete checkpoint (a folder with {MANIFEST}, or checkpoints/step_*/{MANIFEST} in it):"
            " give a checkpoint folder or the folder of a training run"
        )
    return found[-1]


def read_checkpoint(folder: str | Path, names: Iterable[str] | None = None) -> Checkpoint:
    """Read a checkpoint folder, after its files were compared with its manifest.

    Args:
        folder: the folder, see `find_checkpoint`.
        names: the groups of tensors to read; None reads all.

    Raises:
        UserError: a file is missing, truncated or altered, the format is not ours, or the configuration is not valid.
    """
    folder = Path(folder)
    files = _read_manifest(folder)
    groups = list_groups(folder)
    wanted = groups if names is None else list(names)
    for name in ["config.json", "state.json"]:
        _verify(folder / name, files.get(name))
    tensors = {group: read_group(folder, group) for group in wanted}
    config = config_from_json(_read_json(folder / "config.json"), folder / "config.json")
    return Checkpoint(config, tensors, _read_json(folder / "state.json"), groups)


def list_groups(folder: Path) -> tuple[str, ...]:
    """The groups of tensors that a checkpoint has, read or not, from its manifest.

    Raises:
        UserError: the manifest is missing, damaged or of another format.
    """
    names = [name for name in _read_manifest(folder) if name.endswith(SUFFIX)]
    return tuple(dict.fromkeys(name.split("/")[0].removesuffix(SUFFIX) for name in names))


def read_group(
    folder: Path, group: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """One group of a checkpoint, whole, after its files were compared with the manifest.

    Memory holds the group in the wanted precision and one tensor more.

    Args:
        folder: the checkpoint.
        group: which.
        device: where the tensors go.
        dtype: their precision; None is that of the file.

    Raises:
        UserError: a file is missing, truncated or altered.
    """
    for path, entry in _group_files(folder, group).items():
        _verify(path, entry)
    # Into memory of torch's own: files are not aligned like it, and sums of unaligned data may round differently.
    return {name: stored.read().to(device, dtype) for name, stored in stored_tensors(folder, group).items()}


def stored_tensors(folder: Path, group: str) -> dict[str, Stored]:
    """Every tensor of a group by name, unread and not compared with the manifest; none if there is no such group.

    Raises:
        UserError: a file is missing or damaged.
    """
    pieces: dict[str, list[tuple[str, Piece]]] = {}
    for path in _group_files(folder, group):
        try:
            with safe_open(path, framework="pt") as file:  # compares the header with the size of the file
                begins = json.loads((file.metadata() or {}).get(OFFSETS, "{}"))
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is missing, truncated or damaged ({error}): {REMEDY}") from error
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            shape, start = tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
            offsets = tuple(begins[name]["saved_offsets"]) if name in begins else (0,) * len(shape)
            pieces.setdefault(name, []).append((entry["dtype"], Piece(path, start, shape, offsets)))
    tensors: dict[str, Stored] = {}
    for name, parts in pieces.items():
        ends = [[o + n for o, n in zip(p.offsets, p.shape, strict=True)] for _, p in parts]
        shape = tuple(max(along) for along in zip(*ends, strict=True))
        if sum(math.prod(p.shape) for _, p in parts) != math.prod(shape):
            raise UserError(f"{folder / group} has not all of {name}: {REMEDY}")
        tensors[name] = Stored(shape, parts[0][0], tuple(p for _, p in parts))
    return tensors


def fill_group(folder: Path, group: str, tensors: Mapping[str, Tensor], what: str) -> None:
    """Fill tensors from one group, after its files were compared with the manifest: all of them, and from no others.

    Where a process group is, all its processes call this: of a DTensor each reads the part that it has, whatever parts
    there were when it was written. The tensors keep their precision and device.

    Args:
        folder: the checkpoint.
        group: which.
        tensors: what to fill, in place, for example the state dictionary of a module.
        what: what an error calls it.

    Raises:
        UserError: a file is missing, truncated or altered, or tensors are missing, unexpected, of another shape or not
            finite; all of them are listed. Then all processes raise.
    """
    files = list(_group_files(folder, group).items())

    def verify() -> None:
        for path, entry in files[_rank() :: _num_processes()]:
            _verify(path, entry)

    def check() -> None:
        stored = stored_tensors(folder, group)
        _require_none(_misfits({name: s.shape for name, s in stored.items()}, tensors), what)

    def read() -> None:
        for name, stored in stored_tensors(folder, group).items():
            tensors[name].copy_(stored.read())

    def finite() -> None:
        local = {name: getattr(t, "_local_tensor", t) for name, t in tensors.items()}
        _require_none([f"not finite: {name}" for name, t in local.items() if not torch.isfinite(t).all()], what)

    with torch.no_grad():
        _together(verify)
        _together(check)
        if _is_spread(tensors):
            _read_shards(folder, group, tensors)
        else:
            _together(read)
        _together(finite)


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Give a module its tensors (the module may be on the meta device): all of them, and no others.

    The module takes over the tensors' precision and device.

    Args:
        module: what to fill.
        tensors: its state dictionary.
        what: what an error calls it.

    Raises:
        UserError: tensors are missing, unexpected, of another shape or not finite; all of them are listed.
    """
    expected = module.state_dict()
    problems = _misfits({name: tuple(t.shape) for name, t in tensors.items()}, expected)
    problems += [f"not finite: {name}" for name, t in tensors.items() if not torch.isfinite(t).all()]
    _require_none(problems, what)
    module.load_state_dict(dict(tensors), assign=True)


def config_from_json(value: Any, where: str | Path) -> Config:
    """A configuration from what `json.loads(json.dumps(dataclasses.asdict(config)))` gives; nothing is filled in.

    Raises:
        UserError: a field is missing, unknown or of another type.
    """
    return _parse(Config, value, f"{where}: config")


def _parse(kind: Any, value: Any, at: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{at} should be an object, not {value!r}")
        hints = typing.get_type_hints(kind)
        if value.keys() != hints.keys():
            missing, unknown = sorted(hints.keys() - value.keys()), sorted(value.keys() - hints.keys())
            raise UserError(f"{at} has missing fields {missing} and unknown fields {unknown}: use the version it is of")
        return kind(**{name: _parse(hint, value[name], f"{at}.{name}") for name, hint in hints.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType and isinstance(value, dict):  # told apart by their fields
        matching = [k for k in arguments if {field.name for field in dataclasses.fields(k)} == value.keys()]
        return _parse(matching[0] if matching else arguments[0], value, at)
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(_parse(k, v, f"{at}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    elif origin is typing.Literal and value in arguments:
        return value
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:  # not isinstance: a bool is no int here
        return value
    raise UserError(f"{at} is {value!r}, which is not {getattr(kind, '__name__', kind)}")


def _misfits(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with tensors that should be filled into others."""
    problems = [f"missing: {name}" for name in expected if name not in found]
    problems += [f"unexpected: {name}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        if found[name] != (wanted := tuple(expected[name].shape)):
            problems.append(f"of another shape: {name} is {found[name]}, should be {wanted}")
    return problems


def _require_none(problems: list[str], what: str) -> None:
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise UserError(f"the tensors of {what} do not fit; use a checkpoint of this configuration:\n  {listed}")


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _num_processes() > 1 else 0


def _together(work: Callable[[], Any], only_first: bool = False) -> list[Any]:
    """Do something in all processes, or only in process 0, and raise in all of them what any of them raised.

    Returns:
        What each process returned.
    """
    value, error = None, None
    try:
        value = work() if not only_first or _rank() == 0 else None
    except (OSError, RuntimeError, UserError, SafetensorError) as caught:
        error = caught
    if _num_processes() == 1:
        if error is not None:
            raise error
        return [value]
    # As text: not every error survives the way to another process.
    told = None if error is None else (isinstance(error, UserError), str(error))
    everyone: list[Any] = [None] * _num_processes()
    dist.all_gather_object(everyone, (value, told))
    for rank, (_, told) in enumerate(everyone):
        if told is not None:
            of_user, message = told
            raise everywhere(UserError(message) if of_user else OSError(f"process {rank}: {message}")) from error
    return [value for value, _ in everyone]


def _is_spread(group: Mapping[str, Tensor]) -> bool:
    """Whether tensors are spread over processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return False  # and torch's module for it, which takes a second to load, is not needed
    from torch.distributed.tensor import DTensor

    return any(isinstance(tensor, DTensor) for tensor in group.values())


def _write_shards(folder: Path, group: Mapping[str, Tensor]) -> None:
    """Write a file with the own part of each tensor; what several processes have, one of them writes.

    Raises:
        OSError: a process cannot write; all processes raise.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(dict(group), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # is no Exception, and its text is a traceback
        rank, (cause, _) = min(error.failures.items())
        raise everywhere(OSError(f"process {rank}: {cause}")) from error


def _read_shards(folder: Path, group: str, tensors: Mapping[str, Tensor]) -> None:
    """Read the own part of each tensor.

    Raises:
        OSError: a process cannot read; all processes raise.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystem
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    files = [str(path) for path in _group_files(folder, group)]

    class Files(FileSystem):
        def ls(self, path: str | os.PathLike) -> list[str]:  # of all that is in a folder, this group's
            return files

    reader = HuggingFaceStorageReader(str(folder))
    reader.fs = Files()
    try:
        load(dict(tensors), storage_reader=reader)
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        raise everywhere(OSError(f"process {rank}: {cause}")) from error


def _own_shards(folder: Path, groups: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The manifest's entries of the files that this process wrote."""
    paths = [path for group in groups for path in (folder / group).glob(f"shard-{_rank() + 1:05}-*{SUFFIX}")]
    return {path.relative_to(folder).as_posix(): _entry(path) for path in paths}


def _group_files(folder: Path, group: str) -> dict[Path, dict[str, Any] | None]:
    """The files of a group as the manifest knows them, with its entries; the one file, if it knows none."""
    files = _read_manifest(folder)
    found = {
        folder / name: entry for name, entry in files.items() if re.fullmatch(rf"{group}/[^/]+\.safetensors", name)
    }
    one = f"{group}{SUFFIX}"
    return found or {folder / one: files.get(one)}


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Size and hash of each file of a checkpoint."""
    manifest = _read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST} is not of checkpoint format {FORMAT}: use the version that wrote it")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(entry, dict) and entry.keys() == {"size", "sha256"} for entry in files.values()
    ):
        raise UserError(f"{folder / MANIFEST} is damaged: {REMEDY}")
    return files


def _verify(path: Path, entry: dict[str, Any] | None) -> None:
    if entry is None or not path.is_file():
        raise UserError(f"{path} is missing: {REMEDY}")
    if path.stat().st_size != entry["size"]:
        raise UserError(f"{path} has {path.stat().st_size} bytes instead of {entry['size']}, it is truncated: {REMEDY}")
    if _sha256(path) != entry["sha256"]:
        raise UserError(f"{path} was altered, its SHA-256 is not the manifest's: {REMEDY}")


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {REMEDY}") from error


def _flush(path: Path) -> None:
    """Make the kernel put a file or a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
