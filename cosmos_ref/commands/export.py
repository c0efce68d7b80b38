"""cosmos-ref export: a trained model becomes a folder that runs without PyTorch."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cosmos_ref.config import Config
from cosmos_ref.config import preset as preset_called
from cosmos_ref.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from cosmos_ref.interop.sources import Source
    from cosmos_ref.model.denoiser import Denoiser

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1, "cpu": 0, "cpu-int8": 1}
"""Of a weight in every variant's own file, about."""
SHORT = {"onnxruntime": "ORT", "tensorrt": "TRT"}
GIB = 2**30


def export(
    weights: Path,
    out: Path,
    variants: tuple[str, ...] = ("fp32", "cpu"),
    verify: bool = True,
    preset: str | None = None,
    tokenizer: Path | None = None,
    allow_torchscript: bool = False,
) -> None:
    """Write denoiser and tokenizer as ONNX, each variant compared with PyTorch: call by call and over a whole sampling.

    Args:
        weights: folder of a checkpoint or of a training run; with --preset, a release of NVIDIA's or diffusers'.
        out: folder of the bundle.
        variants: forms of the graphs: fp32, fp16, bf16, int8, fp8 for engines, cpu and cpu-int8 for ONNX Runtime.
        verify: compare with PyTorch. A model that does not fit the memory is exported without, and says so.
        preset: what a release is: 7b, 7b-video2world, 14b or 14b-video2world.
        tokenizer: folder of a release's tokenizer, where it is not with the weights.
        allow_torchscript: open a tokenizer that came as TorchScript, which may run code: only from a trusted source.
    """
    try:
        from cosmos_export.errors import BundleError
        from cosmos_export.to_onnx import check_place, check_variants, export_bundle
    except ImportError as error:
        raise UserError(
            f"exporting needs another package ({error}): pip install 'cosmos-ref[export]' ./export"
        ) from None
    console, started = Console(), time.perf_counter()
    check_place(out)
    asked = check_variants(variants)
    if preset is None and (tokenizer is not None or allow_torchscript):
        raise UserError("--tokenizer and --allow-torchscript are for a release: name what it is by --preset")
    config, sources, load_denoiser, load_tokenizer = (
        checkpoint(weights) if preset is None else release(weights, preset, tokenizer, allow_torchscript)
    )
    check_room(out, sum(prod(source.shape) for source in sources.values()), asked, verify)

    def say(line: str) -> None:
        console.print(f"[dim]{time.perf_counter() - started:6.1f} s[/]  {line}", highlight=False)

    say(f"reading {weights}")
    denoiser, tokenizer_module = load_denoiser(verify), load_tokenizer()
    try:
        unread = None if verify else sources
        export_bundle(config, denoiser, tokenizer_module, out, variants=asked, verify=verify, weights=unread, say=say)
    except BundleError as error:  # ONNX Runtime cannot be used here
        raise UserError(str(error)) from error
    say("done")
    console.print(summary(json.loads((out / "manifest.json").read_text()), out))
    console.print(f"{out}: run it without PyTorch by `python -m cosmos_export.runtime {out} --help`", soft_wrap=True)


def checkpoint(weights: Path) -> tuple[Config, Mapping[str, "Source"], Any, Any]:
    """Configuration of a checkpoint of ours, its network's tensors unread, and what loads network and tokenizer.

    Raises:
        UserError: if it has adapters that are not merged, or a part is missing.
    """
    import torch

    from cosmos_ref.adapter import require_merged
    from cosmos_ref.checkpoint import find_checkpoint, list_groups, read_checkpoint
    from cosmos_ref.interop.sources import checkpoint_sources
    from cosmos_ref.model.initialization import build_denoiser
    from cosmos_ref.pipelines.world_model import checkpoint_parts, require_parts

    folder = find_checkpoint(weights)
    config = read_checkpoint(folder, names=()).config
    require_merged(config, weights, "a bundle")
    wide = replace(config, sample=replace(config.sample, precision="fp32"))
    load, _ = checkpoint_parts(folder, wide, torch.device("cpu"), None)
    require_parts(load, folder)
    sources = checkpoint_sources(folder, "ema" if "ema" in list_groups(folder) else "model")
    empty = build_denoiser(config)
    if {name: source.shape for name, source in sources.items()} != _shapes(empty):
        raise UserError(f"the tensors of the network in {folder} do not fit its configuration: use another checkpoint")
    return config, sources, lambda values: load["denoiser"]() if values else empty, load["tokenizer"]


def release(
    weights: Path, preset: str, tokenizer: Path | None, allow_torchscript: bool
) -> tuple[Config, Mapping[str, "Source"], Any, Any]:
    """The same of a release of NVIDIA's or diffusers'.

    Raises:
        UserError: if a part is not there, cannot be read, or does not fit the preset.
    """
    import torch

    from cosmos_ref.interop.released import open_release
    from cosmos_ref.model.initialization import build_denoiser

    config = preset_called(preset)
    found = open_release(
        weights,
        config,
        tokenizer=tokenizer,
        precision=torch.float32,
        device="cpu",
        allow_torchscript=allow_torchscript,
    )
    sources = found.denoiser_tensors
    return config, sources, lambda v: found.load_denoiser() if v else build_denoiser(config), found.load_tokenizer


def check_room(out: Path, parameters: int, variants: list[str], verify: bool) -> None:
    """Refuse what the disk or the memory cannot hold.

    Raises:
        UserError: saying what is needed, what there is, and what to do.
    """
    from cosmos_ref.doctor import memory

    needed = parameters * sum(BYTES[name] for name in variants) / GIB
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free / GIB
    if needed > free:
        raise UserError(f"the bundle needs {needed:.1f} GiB and {parent} has {free:.1f} GiB: ask for fewer --variants")
    needed, free = parameters * 4 / GIB, memory()[1]
    if verify and free and 2 * needed > free:  # PyTorch's weights, and ONNX Runtime's
        raise UserError(
            f"comparing with PyTorch takes {2 * needed:.1f} GiB of memory, {free:.1f} are free: export with --no-verify"
        )


def summary(manifest: Mapping[str, Any], out: Path) -> "Table":
    """Every variant: where it runs (ONNX Runtime, TensorRT), its size, and how far it is from PyTorch at worst."""
    from rich.table import Table

    title = f"{manifest['preset']}, {manifest['parameters']:,} parameters; in brackets, what is accepted"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("graph", "variant", "runs on", "MB", "worst call", "sampling"):
        table.add_column(heading, justify="right" if heading == "MB" else "left", no_wrap=True)
    for name, graph in manifest["graphs"].items():
        for variant, form in graph["variants"].items():
            files = [form["file"], *([form["weights"]] if form["weights"] else [])]
            size = sum((out / file).stat().st_size for file in files) / 1e6
            calls = [row for row in form["parity"] if row["psnr"] is None]
            whole = [row for row in form["parity"] if row["psnr"] is not None]
            table.add_row(
                name.removeprefix("tokenizer_"),
                variant,
                ", ".join(SHORT[engine] for engine in form["engines"]),
                f"{size:.1f}",
                _worst(calls) if form["verified"] else "not verified",
                _worst(whole),
            )
    return table


def _worst(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    measure, limit = rows[0]["measure"], rows[0]["limit"]
    value = (max if measure == "relative" else min)(row[measure] for row in rows)
    return {
        "relative": f"{value:.1e} ({limit:.0e})",
        "cosine": f"cosine {value:.5f} ({limit:g})",
        "psnr": f"{value:.0f} dB ({limit:g})",
    }[measure]


def _shapes(module: "Denoiser") -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
