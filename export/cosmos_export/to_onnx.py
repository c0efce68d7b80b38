"""From a denoiser and its tokenizer to a bundle: a folder that runs without PyTorch.

The graph is D_theta with its preconditioning, so a deployer's sampler holds no scientific constant but the schedule.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxscript
import torch
from torch import Tensor, nn

from cosmos_export.bundle import open_session, run_session
from cosmos_export.card import Variant, sizes_of_clip, write_manifest
from cosmos_export.compare import CALL_LIMIT, Parity, call_inputs, compare, torch_call
from cosmos_export.ports import denoiser_graph, tokenizer_graphs
from cosmos_export.tracing import ExportError, attach_safetensors, save, to_proto
from cosmos_ref.config import Config
from cosmos_ref.errors import UserError
from cosmos_ref.interop.convert import write_safetensors
from cosmos_ref.interop.sources import held
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.tokenizer import VideoTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer

OPSET = 22
"""Version of ONNX's operators in float32: from 23 on attention is one operator, which TensorRT has no float32 for."""
VARIANTS = ("fp32",)
"""What can be asked for."""
ENGINES = {"fp32": ("onnxruntime", "tensorrt")}
"""What runs a variant."""


def export_bundle(
    config: Config,
    denoiser: Denoiser,
    tokenizer: VideoTokenizer,
    out: Path,
    *,
    variants: Sequence[str] = ("fp32",),
    verify: bool = True,
) -> Path:
    """Write denoiser, tokenizer and manifest to the folder `out`, after proving that they do what the modules do.

    Args:
        config: the preset's numbers.
        denoiser: D_theta, float32 on the CPU.
        tokenizer: with `encode` and `decode`, float32 on the CPU.
        out: folder of the bundle; an older bundle there is replaced, anything else is left alone.
        variants: forms of the graphs; the first one is what is run unless told otherwise.
        verify: whether to compare the graphs with the modules. The bundle says if they were not.

    Raises:
        UserError: if `out` cannot be used, a variant is unknown, the tokenizer is a convolutional one or the modules
            are not float32 on the CPU.
        ExportError: if a graph has a dimension that does not vary, holds control flow, or differs from its module.
    """
    out = check_place(Path(out))
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise UserError(f"no variant is called {unknown[0]!r}; there are: {', '.join(VARIANTS)}")
    if not isinstance(tokenizer, HaarPCATokenizer):
        raise UserError(f"{config.name} has a convolutional tokenizer, which cannot be exported yet")
    for tensor in [*denoiser.state_dict().values(), *tokenizer.state_dict().values()]:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise UserError(f"the weights are {tensor.dtype} on {tensor.device}: export takes float32 on the CPU")
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        made = _write_graphs(config, denoiser, tokenizer, beside)
        if verify:
            made = {
                graph: [replace(v, parity=tuple(measured[graph]), verified=True) for v in forms]
                for measured in [measure_parity(config, denoiser, tokenizer, beside)]
                for graph, forms in made.items()
            }
        write_samples(config, denoiser, tokenizer, beside)
        write_manifest(
            config,
            [denoiser_graph(config), *tokenizer_graphs(config)],
            made,
            beside,
            parameters=sum(weight.numel() for weight in denoiser.parameters()),
            versions={"torch": torch.__version__, "onnx": onnx.__version__, "onnxscript": onnxscript.__version__},
        )
        _put_in_place(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out


def measure_parity(
    config: Config, denoiser: Denoiser, tokenizer: HaarPCATokenizer, folder: Path
) -> dict[str, list[Parity]]:
    """Module against ONNX Runtime, over sizes that no graph was traced with, and the noise levels of the preset.

    Beyond the highest level that it is sampled at, a trained network magnifies rounding: there float32 alone is 1e-5.

    Raises:
        ExportError: if a graph differs from its module by more than rounding.
    """
    pt, ph, pw = config.model.patch_size
    usual = sizes_of_clip(config, config.clip)
    preset = {name: usual[name] for name in ("frames", "height", "width")}
    cases = [
        dict(batch=1, frames=pt, height=ph, width=pw, text_length=1),
        dict(batch=1, **preset, text_length=config.text.length),
        dict(batch=3, frames=2 * pt, height=5 * ph, width=2 * pw, text_length=7),
        dict(batch=2, frames=pt, height=ph, width=3 * pw, text_length=2),
    ]
    session, reference = open_session(folder / "denoiser.onnx"), torch_call(denoiser)
    rows: dict[str, list[Parity]] = {"denoiser": [], "tokenizer_encoder": [], "tokenizer_decoder": []}
    levels = (config.diffusion.sigma_min, 1.0, config.diffusion.sigma_max, 0.1)
    for seed, (case, sigma) in enumerate(zip(cases, levels, strict=True)):
        inputs = call_inputs(config, **case, sigma=sigma, seed=seed)
        what = "denoiser, " + ", ".join(f"{name} {size}" for name, size in case.items()) + f", sigma {sigma}"
        rows["denoiser"].append(compare(what, reference(inputs), run_session(session, inputs), CALL_LIMIT))
    encoder, decoder = (open_session(folder / f"tokenizer_{half}.onnx") for half in ("encoder", "decoder"))
    random, factor = np.random.Generator(np.random.Philox(key=[0, 0])), config.tokenizer.temporal_factor
    side = config.tokenizer.spatial_factor
    for batch, (frames, height, width) in ((1, (1, ph, pw)), (1, tuple(preset.values())), (3, (2, ph, 3 * pw))):
        pixels = (1 + (frames - 1) * factor, height * side, width * side)
        video = random.uniform(-1, 1, (batch, 3, *pixels)).astype(np.float32)
        latents = tokenizer.encode(torch.from_numpy(video))
        size = f"batch {batch}, frames {pixels[0]}, height {pixels[1]}, width {pixels[2]}"
        answer = run_session(encoder, {"video": video})
        rows["tokenizer_encoder"].append(compare(f"encoder, {size}", latents.numpy(), answer, CALL_LIMIT))
        pictures, answer = tokenizer.decode(latents).numpy(), run_session(decoder, {"latents": latents.numpy()})
        rows["tokenizer_decoder"].append(compare(f"decoder, {size}", pictures, answer, CALL_LIMIT))
    for row in [row for part in rows.values() for row in part]:
        if not row.ok:
            raise ExportError(f"the graph differs from the model: {row}")
    return rows


def write_samples(config: Config, denoiser: Denoiser, tokenizer: HaarPCATokenizer, folder: Path) -> None:
    """Write one example of every input, and what PyTorch makes of it in float32: an engine's first test.

    It has the sizes of the preset's clip, which all profiles take.
    """
    usual = sizes_of_clip(config, config.clip)
    size = {name: usual[name] for name in ("batch", "frames", "height", "width", "text_length")}
    random = np.random.Generator(np.random.Philox(key=[0, 1]))
    inputs = call_inputs(config, **size, sigma=1.0, seed=1)
    pixels = [usual[name] for name in ("video_frames", "video_height", "video_width")]
    video = random.uniform(-1, 1, (usual["clips"], 3, *pixels)).astype(np.float32)
    with torch.no_grad():
        latents = tokenizer.encode(torch.from_numpy(video))
        expected = {
            "denoiser/denoised": torch_call(denoiser)(inputs),
            "tokenizer_encoder/latents": latents.numpy(),
            "tokenizer_decoder/video": tokenizer.decode(latents).numpy(),
        }
    samples = {f"denoiser/{name}": value for name, value in inputs.items()}
    samples |= {"tokenizer_encoder/video": video, "tokenizer_decoder/latents": latents.numpy()}
    np.savez(folder / "sample_inputs.npz", **samples)
    np.savez(folder / "expected.npz", **expected)


class _Encoder(nn.Module):
    """A tokenizer whose `forward` is `encode`: what is traced is a module."""

    def __init__(self, tokenizer: HaarPCATokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, video: Tensor) -> Tensor:
        return self.tokenizer.encode(video)


class _Decoder(nn.Module):
    """A tokenizer whose `forward` is `decode`."""

    def __init__(self, tokenizer: HaarPCATokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, latents: Tensor) -> Tensor:
        return self.tokenizer.decode(latents)


def _write_graphs(
    config: Config, denoiser: Denoiser, tokenizer: HaarPCATokenizer, folder: Path
) -> dict[str, list[Variant]]:
    graph, halves = denoiser_graph(config), tokenizer_graphs(config)
    weights = denoiser.state_dict()
    proto = to_proto(denoiser, graph, list(weights), OPSET)
    write_safetensors(folder / "denoiser.safetensors", {name: held(name, value) for name, value in weights.items()})
    attach_safetensors(proto, folder / "denoiser.safetensors")
    save(proto, folder / "denoiser.onnx")
    for half, module in zip(halves, (_Encoder(tokenizer), _Decoder(tokenizer)), strict=True):
        save(to_proto(module, half, [], OPSET), folder / f"{half.name}.onnx")
    made = {half.name: [Variant("fp32", f"{half.name}.onnx", None, OPSET, ENGINES["fp32"])] for half in halves}
    return {"denoiser": [Variant("fp32", "denoiser.onnx", "denoiser.safetensors", OPSET, ENGINES["fp32"])], **made}


def check_place(out: Path) -> Path:
    """Where a bundle may be written.

    Raises:
        UserError: if something else is there, or it cannot be written.
    """
    if out.exists() and not (out / "manifest.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a bundle: give a new folder")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"cannot write {out}: {parent} is not a writable folder")
    return out


def _put_in_place(beside: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        os.replace(out, old)
    os.replace(beside, out)
    shutil.rmtree(old, ignore_errors=True)
