"""One shard: a WebDataset tar that is there whole or not at all, the same bytes for the same samples."""

import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

Record = dict[str, Any]
"""What is known of a sample besides its tensors, as JSON values."""


class Sample(NamedTuple):
    """What a shard holds under one key: `key.json` and `key.safetensors`."""

    key: str
    record: Record
    tensors: dict[str, Tensor]


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples as they come; the shard gets its name when all are on the disk.

    Raises:
        RuntimeError: they cannot be written.
    """
    from webdataset.writer import TarWriter

    def write(partial: Path) -> None:
        with partial.open("wb") as file, TarWriter(file, user="", group="", mtime=0, encoder=False) as tar:
            for sample in samples:
                tensors = {name: tensor.contiguous() for name, tensor in sample.tensors.items()}
                tar.write({"__key__": sample.key, "json": encode_json(sample.record), "safetensors": save(tensors)})

    write_whole(path, write)


def encode_json(value: Any) -> bytes:
    """JSON in UTF-8, for people too."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write JSON; the file appears whole or not at all."""
    write_whole(path, lambda partial: partial.write_bytes(encode_json(value)))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside `path`, put on the disk, and only then given its name.

    Raises:
        RuntimeError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise RuntimeError(
            f"{path} cannot be written ({error.strerror or error}): make room, and run the same command again; it goes "
            "on where it stopped"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def scan_shard(path: Path) -> Iterable[tuple[Record, dict[str, Tensor]]]:
    """The samples of a shard, each with where its tensors are: `key`, `offset`, `bytes`, `crc32`.

    Raises:
        ValueError: it is truncated or no shard.
    """
    try:
        with path.open("rb") as file:  # Python's reader does not miss the zeros at the end
            size = file.seek(0, io.SEEK_END)
            file.seek(-min(2 * tarfile.BLOCKSIZE, size), io.SEEK_CUR)
            if size % tarfile.RECORDSIZE or file.read().strip(b"\0"):
                raise ValueError("it does not end as a tar does")
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            if len(members) % 2:
                raise ValueError("a sample is not whole")
            for described, encoded in zip(members[::2], members[1::2], strict=True):
                contents = [file.read() for file in map(tar.extractfile, (described, encoded)) if file is not None]
                place = {
                    "key": encoded.name.removesuffix(".safetensors"),
                    "offset": encoded.offset_data,
                    "bytes": encoded.size,
                    "crc32": zlib.crc32(contents[1]),
                }
                yield place | json.loads(contents[0]), load(contents[1])
    except (tarfile.TarError, SafetensorError, IndexError, EOFError) as error:
        raise ValueError(str(error)) from error
