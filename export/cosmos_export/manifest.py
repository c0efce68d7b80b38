"""What a bundle says of itself, held against a schema, and its files against their hashes."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from cosmos_export.errors import BundleError

BUNDLE_FORMAT = 2
"""Version of the manifest; another one is refused."""
GRAPHS = ("denoiser", "tokenizer_encoder", "tokenizer_decoder")
LARGE = 2**30
"""Bytes to be checked from which on it is told how far that is."""

_NUMBER = (int, float)
_RANGE = {"min": int, "max": (int, type(None)), "multiple_of": int, "plus": int, "meaning": str}
_GRAPH = {
    "inputs": [{"name": str, "dims": list, "dtype": str}],
    "variants": {"*": {"file": str, "weights": (str, type(None)), "engines": list}},
}
_SCHEMA = {
    "preset": str,
    "config": {
        "model": {"channels": int, "patch_size": list, "max_tokens": list, "video2world": bool},
        "diffusion": {"sigma_min": _NUMBER, "sigma_max": _NUMBER, "rho": _NUMBER, "sigma_data": _NUMBER},
        "text": {"encoder": str, "length": int, "width": int},
        "clip": {"frames": int, "height": int, "width": int, "fps": _NUMBER},
        "sample": {"solver": str, "num_steps": int, "guidance": _NUMBER, "augment_sigma": _NUMBER, "seed": int},
        "train": {"given_latents": list},
    },
    "temporal_factor": int,
    "spatial_factor": int,
    "dims": {"*": _RANGE},
    "profiles": {"*": {which: {"*": int} for which in ("min", "opt", "max")}},
    "graphs": dict.fromkeys(GRAPHS, _GRAPH),
    "default": dict.fromkeys(GRAPHS, str),
    "files": {"*": str},
}


def read_manifest(path: Path, files: Iterable[str] | None = None) -> dict[str, Any]:
    """The manifest of a bundle, and its files as they were written: those named, else all.

    Raises:
        BundleError: if the folder is no bundle, or not as it was written.
    """
    file = path / "manifest.json"
    if not path.is_dir():
        raise BundleError(f"{path} is not a bundle: there is no such folder")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path} is not a bundle: it has no manifest.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file} cannot be read ({error}): copy it again") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != BUNDLE_FORMAT:
        newer = isinstance(version, int) and version > BUNDLE_FORMAT
        remedy = "update cosmos-export" if newer else "export it again"
        raise BundleError(f"{path} has format {version}; this runtime reads {BUNDLE_FORMAT}: {remedy}")
    _check(manifest, _SCHEMA, str(file))
    forms = [form for graph in manifest["graphs"].values() for form in graph["variants"].values()]
    for name in [*manifest["files"], *(form[key] for form in forms for key in ("file", "weights") if form[key])]:
        if name in ("", "..") or name != PurePosixPath(name).name or name != PureWindowsPath(name).name:
            raise BundleError(f"{file} names the file {name!r}: a bundle's files lie in its folder. Do not trust it")
    check_files(path, manifest["files"], manifest["files"] if files is None else files)
    return manifest


def check_files(
    path: Path,
    hashes: Mapping[str, str],
    names: Iterable[str],
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Hold files against their hashes in the manifest.

    Raises:
        BundleError: if one is not in the manifest, missing or altered.
    """
    names = list(names)
    for name in names:
        if name not in hashes:
            raise BundleError(f"{path / 'manifest.json'} has no hash of {name}: export it again")
        if not (path / name).is_file():
            raise BundleError(f"{path / name} is missing: copy the whole folder, or export it again")
    total, done = sum((path / name).stat().st_size for name in names), 0
    for name in names:
        digest = hashlib.sha256()
        try:
            with (path / name).open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
                    done += len(block)
                    if total >= LARGE:
                        say(f"checking {name}, {done / max(total, 1):.0%}")
        except OSError as error:
            raise BundleError(f"{path / name} cannot be read: {error}") from error
        if digest.hexdigest() != hashes[name]:
            raise BundleError(f"{path / name} is not the file that was exported: copy it again")


def _check(value: Any, schema: Any, where: str) -> None:
    """Hold a value of the manifest against its kind; `*` stands for any key."""
    if isinstance(schema, dict):
        _check(value, dict, where)
        for key in value if "*" in schema else schema:
            if key not in value:
                raise BundleError(f"{where} has no {key!r}: export it again")
            _check(value[key], schema.get(key, schema.get("*")), f"{where}: {key}")
    elif isinstance(schema, list):
        _check(value, list, where)
        for item in value:
            _check(item, schema[0], where)
    elif not isinstance(value, schema):
        raise BundleError(f"{where} is {value!r:.60}, which this runtime does not understand: export it again")
