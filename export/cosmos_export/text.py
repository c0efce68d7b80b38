"""Text embeddings without a text encoder: words by their hash, or a file that holds them."""

import hashlib
import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cosmos_export.errors import BundleError

_NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def words_embedding(prompts: Sequence[str | None], length: int, width: int) -> np.ndarray:
    """Text embeddings `B M E` of the words encoder: a fixed random vector per word, plus its place; None is zeros.

    Raises:
        BundleError: if a prompt holds no word, or more than `length`.
    """
    rows = np.zeros((len(prompts), length, width), np.float32)
    for row, prompt in zip(rows, prompts, strict=True):
        if prompt is None:
            continue
        words = re.findall(r"\w+", prompt.lower())
        if not words:
            raise BundleError(f"the prompt {prompt!r} is empty: write what should be seen, or leave the prompt out")
        if len(words) > length:
            raise BundleError(f"the prompt {prompt[:60]!r}... has {len(words)} words; at most {length} are accepted")
        place = np.arange(len(words))[:, None] * 100.0 ** (-2 * np.arange(width // 2) / width)
        row[: len(words)] = np.concatenate([np.sin(place), np.cos(place)], axis=1)
        row[: len(words)] += [_word_vector(word, width) for word in words]
    return rows


def _word_vector(word: str, width: int) -> np.ndarray:
    key = np.frombuffer(hashlib.sha256(word.encode()).digest()[:16], "<u8")
    vector = np.random.Generator(np.random.Philox(key=key)).standard_normal(width, dtype=np.float32)
    return vector / np.sqrt(np.mean(vector**2))


def read_embedding(path: Path, length: int, width: int) -> np.ndarray:
    """One embedding `1 length width` from a .npy file of up to so many rows, zeros behind them.

    Raises:
        BundleError: if the file cannot be read, or does not fit the model.
    """
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path} cannot be read as an array: {error}") from error
    return _padded(str(path), rows, length, width)[None]


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Embeddings by prompt from a safetensors file, as `cosmos-ref encode-text` writes it.

    Raises:
        BundleError: if the file cannot be read.
    """
    try:
        raw = path.read_bytes()
        (begin,) = struct.unpack_from("<Q", raw)
        header = json.loads(raw[8 : 8 + begin])
        header.pop("__metadata__", None)
        return {prompt: _tensor(entry, raw[8 + begin :]) for prompt, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise BundleError(f"{path} is no whole safetensors file ({error}): write the embeddings again") from error


def look_up(
    path: Path, table: Mapping[str, np.ndarray], prompts: Sequence[str | None], length: int, width: int
) -> np.ndarray:
    """The embeddings `B length width` of prompts in a table; None is zeros.

    Raises:
        BundleError: if a prompt is not in the file, or its embedding does not fit the model.
    """
    embeddings = np.zeros((len(prompts), length, width), np.float32)
    for row, prompt in zip(embeddings, prompts, strict=True):
        if prompt is None:
            continue
        if prompt not in table:
            known = ", ".join(repr(known) for known in list(table)[:3])
            raise BundleError(f"{path} has no embedding of {prompt!r}; it has {len(table)}, for example of {known}")
        row[:] = _padded(f"{path}, {prompt!r}", table[prompt], length, width)
    return embeddings


def _tensor(entry: Mapping, data: bytes) -> np.ndarray:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= len(data):
        raise ValueError("truncated")
    values = np.frombuffer(data[begin:end], _NUMBERS[entry["dtype"]]).reshape(entry["shape"])
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _padded(what: str, rows: np.ndarray, length: int, width: int) -> np.ndarray:
    rows = rows[0] if rows.ndim == 3 and len(rows) == 1 else rows
    if rows.ndim != 2 or not 1 <= len(rows) <= length or rows.shape[1] != width:
        raise BundleError(f"{what}: the embedding has the shape {rows.shape}; accepted: up to {length} rows of {width}")
    if rows.dtype.kind != "f" or not np.isfinite(rows).all():
        raise BundleError(f"{what}: the embedding is not made of finite numbers (it is {rows.dtype}): write it again")
    padded = np.zeros((length, width), np.float32)
    padded[: len(rows)] = rows
    return padded
