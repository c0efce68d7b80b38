"""From a denoiser and its tokenizer to a bundle: a folder that runs without PyTorch.

The graph is D_theta with its preconditioning, so a deployer's sampler holds no scientific constant but the schedule. We
call `torch.export.export` ourselves: `torch.onnx.export` would answer a dynamic dimension that the model violates by
fixing it in silence. What that cannot see (a branch on a size that happened to go the same way) the parity check finds.
"""

import hashlib
import json
import logging
import os
import shutil
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import jaxtyping
import numpy as np
import onnx
import onnx_ir
import onnxscript
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.optimizer import optimize_ir
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch.fx.experimental import _config as symbolic_shapes

from cosmos_export.bundle import BUNDLE_FORMAT, open_session, run_session
from cosmos_export.compare import CALL_LIMIT, Parity, call_inputs, compare, torch_call
from cosmos_ref.config import Config
from cosmos_ref.errors import UserError
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.tokenizer import VideoTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer

CONTROL_FLOW = {"If", "Loop", "Scan", "NonZero"}
"""Operators whose course or size depends on data; engines refuse or slow down on them. Sequences are refused too."""


class ExportError(RuntimeError):
    """The model cannot become a graph that is right at every size in range."""


@dataclass(frozen=True)
class Port:
    """An input or output of a graph: its name, its dims (a number, or the name of one that varies) and its meaning."""

    name: str
    dims: tuple[str | int, ...]
    meaning: str


@dataclass(frozen=True)
class Graph:
    """What one ONNX file of the bundle takes and gives, and the example that it is traced with."""

    name: str
    inputs: tuple[Port, ...]
    output: Port
    dims: Mapping[str, torch.export.Dim]
    """A dimension of the tracer for every name in the inputs' dims."""
    example: Mapping[str, Tensor]


def export_bundle(config: Config, denoiser: Denoiser, tokenizer: VideoTokenizer, out: Path, *, opset: int = 22) -> Path:
    """Write denoiser, tokenizer and manifest to the folder `out`, after proving that they do what the modules do.

    Args:
        config: the preset's numbers.
        denoiser: D_theta, float32 on the CPU.
        tokenizer: with `encode` and `decode`, float32 on the CPU.
        out: folder of the bundle; an older bundle there is replaced, anything else is left alone.
        opset: version of the ONNX operators.

    Raises:
        UserError: if `out` cannot be used, the tokenizer is a convolutional one or the modules are not float32 on the
            CPU.
        ExportError: if a graph has a dimension that does not vary, holds control flow, or differs from its module.
    """
    out = _check_place(Path(out))
    if not isinstance(tokenizer, HaarPCATokenizer):
        raise UserError(f"{config.name} has a convolutional tokenizer, which cannot be exported yet")
    for tensor in [*denoiser.state_dict().values(), *tokenizer.state_dict().values()]:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise UserError(f"the weights are {tensor.dtype} on {tensor.device}: export takes float32 on the CPU")
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        # A cache of results by size costs the tracer more than it saves where sizes are symbols.
        with torch.no_grad(), _quiet(), _without_shape_checks(), dynamo.patch(fake_tensor_cache_enabled=False):
            graphs = _write_graphs(config, denoiser, tokenizer, beside, opset)
            parity = measure_parity(config, denoiser, tokenizer, beside)
        for row in parity:
            if not row.ok:
                raise ExportError(f"the graph differs from the model: {row}")
        _write_manifest(config, graphs, parity, beside, opset)
        _put_in_place(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out


def denoiser_graph(config: Config) -> Graph:
    """The denoiser's ports. Height and width are multiples of the patch, the grid is bounded by the position tables."""
    model = config.model
    grid = {
        name: _multiple(patch, torch.export.Dim(f"{name}_tokens", min=1, max=most))
        for name, patch, most in zip(("frames", "height", "width"), model.patch_size, model.max_tokens, strict=True)
    }
    latents = ("batch", model.channels, "frames", "height", "width")
    inputs = [
        Port("x", latents, "noisy latents, unscaled: clean latents times sigma_data, plus sigma times unit noise"),
        Port("sigma", ("batch",), "noise level of every sample"),
        Port("text_embeddings", ("batch", "text_length", model.text_width), "prompt; zeros where padded or absent"),
        Port("fps", ("batch",), "frames a second of every clip"),
        Port("padding_mask", ("batch", 1, "height", "width"), "1 where a latent pixel is padding, else 0"),
    ]
    if model.video2world:
        inputs += [
            Port("frame_mask", ("batch", 1, "frames", 1, 1), "1 where a latent frame is given, else 0"),
            Port("given_latents", latents, "given frames, scaled by sigma_data, plus augment_sigma times unit noise"),
            Port("augment_sigma", ("batch",), "noise level of the given frames; they are used while sigma is larger"),
        ]
    sizes = zip((3, 2, 4), model.max_tokens, model.patch_size, strict=True)
    t, h, w = (min(tokens, most) * patch for tokens, most, patch in sizes)
    example = call_inputs(config, batch=2, frames=t, height=h, width=w, text_length=5, sigma=1.0, seed=0)
    dims = grid | {"batch": torch.export.Dim("batch", min=1), "text_length": torch.export.Dim("text_length", min=1)}
    output = Port("denoised", latents, "estimate of the clean latents, scaled by sigma_data")
    return Graph("denoiser", tuple(inputs), output, dims, {name: torch.from_numpy(a) for name, a in example.items()})


def tokenizer_graphs(config: Config) -> tuple[Graph, Graph]:
    """The ports of the tokenizer's encoder and decoder. The latents' sides are those that the denoiser can take."""
    factor, side, C = config.tokenizer.temporal_factor, config.tokenizer.spatial_factor, config.tokenizer.channels
    Dim = torch.export.Dim
    batch = Dim("batch", min=1)
    video_dims = {
        "batch": batch,
        "frames": _multiple(factor, Dim("later_frames", min=0)) + 1,
        "height": _multiple(side, Dim("rows", min=1)),
        "width": _multiple(side, Dim("columns", min=1)),
    }
    latent_dims = {
        "batch": batch,
        "latent_frames": Dim("latent_frames", min=1),
        "latent_height": Dim("latent_height", min=2),
        "latent_width": Dim("latent_width", min=2),
    }
    video = Port("video", ("batch", 3, "frames", "height", "width"), "RGB in [-1, 1], 1 + k * temporal_factor frames")
    latents = Port("latents", ("batch", C, *list(latent_dims)[1:]), "latents of unit variance, before sigma_data")
    examples = torch.zeros(2, 3, 2 * factor + 1, 4 * side, 6 * side), torch.zeros(2, C, 3, 4, 6)
    return (
        Graph("tokenizer_encoder", (video,), latents, video_dims, {"video": examples[0]}),
        Graph("tokenizer_decoder", (latents,), video, latent_dims, {"latents": examples[1]}),
    )


def to_proto(module: nn.Module, graph: Graph, weights: Sequence[str], opset: int) -> onnx.ModelProto:
    """The graph of a module; tensors named in `weights` stay outside, as declared initializers without values.

    Raises:
        ExportError: if a dimension cannot vary as declared, a weight is missing, or control flow is in the graph.
    """
    shapes = {
        port.name: {n: graph.dims[d] for n, d in enumerate(port.dims) if isinstance(d, str)} for port in graph.inputs
    }
    try:
        with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # one is a size like others
            program = torch.export.export(module, (), dict(graph.example), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the tracer has many kinds, none of them public
        raise ExportError(f"{graph.name} cannot be traced with dynamic sizes: {error}") from error
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        output_names=[graph.output.name],
        optimize=False,  # ours follows, which leaves the weights alone
        verbose=False,
    )
    assert exported is not None
    model = exported.model
    for name in weights:  # as inputs, so that the optimiser neither folds nor merges nor renames them
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    optimize_ir(model)
    ClearMetadataAndDocStringPass()(model)
    proto = onnx_ir.to_proto(model)
    found = {node.op_type for node in proto.graph.node}
    if forbidden := found & CONTROL_FLOW | {op for op in found if "Sequence" in op}:
        raise ExportError(f"{graph.name} holds operators that depend on data: {', '.join(sorted(forbidden))}")
    outside = [value for value in proto.graph.input if value.name in weights]
    inside = [value for value in proto.graph.input if value.name not in weights]
    if [value.name for value in inside] != [port.name for port in graph.inputs]:
        raise ExportError(f"{graph.name} does not use all of its inputs: {[value.name for value in inside]}")
    del proto.graph.input[:], proto.graph.value_info[:]  # the exporter's names of sizes mean nothing
    proto.graph.input.extend(inside)
    for value in outside:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        proto.graph.initializer.add(name=value.name, data_type=value.type.tensor_type.elem_type, dims=dims)
    for value, port in zip([*proto.graph.input, *proto.graph.output], [*graph.inputs, graph.output], strict=True):
        for dim, name in zip(value.type.tensor_type.shape.dim, port.dims, strict=True):
            if isinstance(name, str):
                dim.dim_param = name
            elif dim.dim_value != name:
                raise ExportError(f"{graph.name} gives {port.name} the size {dim.dim_value}, not {name}")
    return proto


def attach_safetensors(proto: onnx.ModelProto, path: Path) -> None:
    """Let the initializers without values point into a safetensors file, by name: the weights are stored once."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    for tensor in proto.graph.initializer:
        if tensor.name in header:
            begin, end = header[tensor.name]["data_offsets"]
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", path.name), ("offset", 8 + length + begin), ("length", end - begin)):
                tensor.external_data.add(key=key, value=str(value))


def measure_parity(config: Config, denoiser: Denoiser, tokenizer: HaarPCATokenizer, folder: Path) -> list[Parity]:
    """Module against ONNX Runtime, over sizes that no graph was traced with, and the noise levels of the preset.

    Beyond the highest level that it is sampled at, a trained network magnifies rounding: there float32 alone is 1e-5.
    """
    clip, (pt, ph, pw), spatial = config.clip, config.model.patch_size, config.tokenizer.spatial_factor
    latent_frames = 1 + (clip.frames - 1) // config.tokenizer.temporal_factor
    preset = dict(frames=latent_frames, height=clip.height // spatial, width=clip.width // spatial)
    cases = [
        dict(batch=1, frames=pt, height=ph, width=pw, text_length=1),
        dict(batch=1, **preset, text_length=config.text.length),
        dict(batch=3, frames=2 * pt, height=5 * ph, width=2 * pw, text_length=7),
        dict(batch=2, frames=pt, height=ph, width=3 * pw, text_length=2),
    ]
    session, reference = open_session(folder / "denoiser.onnx"), torch_call(denoiser)
    rows = []
    levels = (config.diffusion.sigma_min, 1.0, config.diffusion.sigma_max, 0.1)
    for seed, (case, sigma) in enumerate(zip(cases, levels, strict=True)):
        inputs = call_inputs(config, **case, sigma=sigma, seed=seed)
        what = "denoiser, " + ", ".join(f"{name} {size}" for name, size in case.items()) + f", sigma {sigma}"
        rows.append(compare(what, reference(inputs), run_session(session, inputs), CALL_LIMIT))
    encoder, decoder = (open_session(folder / f"tokenizer_{half}.onnx") for half in ("encoder", "decoder"))
    random = np.random.Generator(np.random.Philox(key=[0, 0]))
    for batch, (frames, height, width) in ((1, (1, ph, pw)), (1, tuple(preset.values())), (3, (2, ph, 3 * pw))):
        pixels = (1 + (frames - 1) * config.tokenizer.temporal_factor, height * spatial, width * spatial)
        video = random.uniform(-1, 1, (batch, 3, *pixels)).astype(np.float32)
        latents = tokenizer.encode(torch.from_numpy(video))
        size = f"batch {batch}, frames {pixels[0]}, height {pixels[1]}, width {pixels[2]}"
        rows.append(compare(f"encoder, {size}", latents.numpy(), run_session(encoder, {"video": video}), CALL_LIMIT))
        pictures = run_session(decoder, {"latents": latents.numpy()})
        rows.append(compare(f"decoder, {size}", tokenizer.decode(latents).numpy(), pictures, CALL_LIMIT))
    return rows


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
    config: Config, denoiser: Denoiser, tokenizer: HaarPCATokenizer, folder: Path, opset: int
) -> list[Graph]:
    graph, halves = denoiser_graph(config), tokenizer_graphs(config)
    weights = denoiser.state_dict()
    proto = to_proto(denoiser, graph, list(weights), opset)
    save_file({name: t.contiguous() for name, t in weights.items()}, folder / "denoiser.safetensors", {"format": "pt"})
    (folder / "denoiser.safetensors").chmod(0o644)  # it is written for its owner only
    attach_safetensors(proto, folder / "denoiser.safetensors")
    _save(proto, folder / "denoiser.onnx")
    for half, module in zip(halves, (_Encoder(tokenizer), _Decoder(tokenizer)), strict=True):
        _save(to_proto(module, half, [], opset), folder / f"{half.name}.onnx")
    return [graph, *halves]


def _save(proto: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(path, full_check=True)


def _write_manifest(config: Config, graphs: list[Graph], parity: list[Parity], folder: Path, opset: int) -> None:
    manifest = {
        "format": BUNDLE_FORMAT,
        "preset": config.name,
        "config": asdict(config),
        "temporal_factor": config.tokenizer.temporal_factor,
        "spatial_factor": config.tokenizer.spatial_factor,
        "opset": opset,
        "graphs": {
            graph.name: {
                "file": f"{graph.name}.onnx",
                "inputs": [asdict(port) for port in graph.inputs],
                "outputs": [asdict(graph.output)],
            }
            for graph in graphs
        },
        "parity": [asdict(row) for row in parity],
        "versions": {
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxscript": onnxscript.__version__,
        },
        "files": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _check_place(out: Path) -> Path:
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


def _multiple(factor: int, dim: torch.export.Dim) -> torch.export.Dim:
    return dim if factor == 1 else factor * dim


@contextmanager
def _without_shape_checks() -> Iterator[None]:
    """The tests' checks of annotations look at sizes, which are symbols during tracing."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that it does not need here and of its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
