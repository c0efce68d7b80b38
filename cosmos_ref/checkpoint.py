"""Checkpoints: a folder of safetensors and JSON that is there whole or not at all. Nothing is ever unpickled."""

import dataclasses
import hashlib
import json
import os
import shutil
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cosmos_ref.config import Config
from cosmos_ref.errors import UserError

FORMAT = 2
MANIFEST = "manifest.json"
REMEDY = "copy the checkpoint again, or delete its folder and use an earlier one"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: the configuration, named groups of named tensors, and the state of the training."""

    config: Config
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    groups: tuple[str, ...] = ()
    """All groups that the folder has, read or not."""


def save_checkpoint(
    folder: str | Path, config: Config, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write a checkpoint folder; it appears whole or not at all, whenever the process is killed.

    Args:
        folder: where; an older checkpoint there is replaced, its parent is made.
        config: the whole configuration.
        tensors: groups of tensors, each a file: `model`, `ema`, `uncertainty`, `tokenizer`, `optimizer`.
        state: what else the training needs, as JSON values.

    Raises:
        UserError: the folder exists and is no checkpoint.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} exists and is no checkpoint: give another folder, or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Hidden and with a fixed name: never taken for a checkpoint, and a killed writer's rest is swept by the next one.
    partial, replaced = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "replaced"))
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    partial.mkdir()
    for name, group in tensors.items():
        save_file({key: t.detach().cpu().contiguous() for key, t in group.items()}, partial / f"{name}.safetensors")
    seal_checkpoint(partial, config, state)
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(partial, folder)
    _flush(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return folder


def seal_checkpoint(folder: Path, config: Config, state: Mapping[str, Any]) -> None:
    """Make a checkpoint of a folder of safetensors: add configuration, state and manifest, and flush it to the disk."""
    _write_json(folder / "config.json", dataclasses.asdict(config))
    _write_json(folder / "state.json", dict(state))
    files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    _write_json(folder / MANIFEST, {"format": FORMAT, "files": files})
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
    groups = [name.removesuffix(".safetensors") for name in files if name.endswith(".safetensors")]
    wanted = groups if names is None else list(names)
    for name in ["config.json", "state.json"]:
        _verify(folder / name, files.get(name))
    tensors = {group: read_group(folder, group) for group in wanted}
    config = config_from_json(_read_json(folder / "config.json"), folder / "config.json")
    return Checkpoint(config, tensors, _read_json(folder / "state.json"), tuple(groups))


def read_group(
    folder: Path, group: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """One group of a checkpoint, after its file was compared with the manifest.

    Memory holds the group in the wanted precision and one tensor more.

    Args:
        folder: the checkpoint.
        group: which.
        device: where the tensors go.
        dtype: their precision; None is that of the file.

    Raises:
        UserError: the file is missing, truncated or altered.
    """
    path = folder / f"{group}.safetensors"
    _verify(path, _read_manifest(folder).get(path.name))
    try:
        # Copied, because files are not aligned like torch's memory, and sums of unaligned data may round differently.
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).to(device, dtype, copy=True) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): {REMEDY}") from error


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
    problems = [f"missing: {name}" for name in expected if name not in tensors]
    problems += [f"unexpected: {name}" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
        if found != wanted:
            problems.append(f"of another shape: {name} is {found}, should be {wanted}")
        elif not torch.isfinite(tensors[name]).all():
            problems.append(f"not finite: {name}")
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise UserError(f"the tensors of {what} do not fit; use a checkpoint of this configuration:\n  {listed}")
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
