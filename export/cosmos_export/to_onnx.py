"""From a denoiser and its tokenizer to a bundle: a folder that runs without PyTorch.

The graph is D_theta with its preconditioning, so a deployer's sampler holds no scientific constant but the schedule.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxscript
import torch
from torch import Tensor, nn

from cosmos_export.calibration import calibration_inputs
from cosmos_export.card import Variant, write_manifest
from cosmos_export.compare import Parity
from cosmos_export.errors import EngineFailure
from cosmos_export.islands import keep_tokens_wide
from cosmos_export.onnx_graph import attach
from cosmos_export.parity import DenoiserParity, TokenizerParity, samples
from cosmos_export.ports import Graph, denoiser_graph, tokenizer_graphs
from cosmos_export.quantize import make_variant
from cosmos_export.sides import open_variant
from cosmos_export.tracing import ExportError, recast, save, to_proto
from cosmos_ref.checkpoint import DTYPES
from cosmos_ref.config import Config, ConvTokenizerConfig
from cosmos_ref.errors import UserError
from cosmos_ref.interop.convert import write_safetensors
from cosmos_ref.interop.sources import Source, held
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.tokenizer import VideoTokenizer
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer

TRACED = {"fp32": (torch.float32, 22), "fp16": (torch.float16, 23), "bf16": (torch.bfloat16, 23)}
"""Variants that are traced: the type of the network, and the version of ONNX's operators. From 23 on attention is one
operator, which TensorRT has for the narrow types only."""
ENGINES = {
    "fp32": ("onnxruntime", "tensorrt"),
    "fp16": ("onnxruntime", "tensorrt"),
    "bf16": ("tensorrt",),
    "int8": ("tensorrt",),
    "fp8": ("tensorrt",),
    "cpu": ("onnxruntime",),
    "cpu-int8": ("onnxruntime",),
}
"""Every variant, and what runs it. Those that are not traced are made of fp32's graph."""
CALIBRATED = ("int8", "fp8")
"""Variants that want to see what the denoiser is given."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Say = Callable[[str], None]
Tokenizer = HaarPCATokenizer | ContinuousTokenizer


def export_bundle(
    config: Config,
    denoiser: Denoiser,
    tokenizer: VideoTokenizer,
    out: Path,
    *,
    variants: Sequence[str] = ("fp32", "cpu"),
    verify: bool = True,
    weights: Mapping[str, Source] | None = None,
    say: Say = lambda line: None,
) -> Path:
    """Write denoiser, tokenizer and manifest to the folder `out`, after proving that they do what the modules do.

    Args:
        config: the preset's numbers.
        denoiser: D_theta, float32 on the CPU; or on the meta device, with `weights`.
        tokenizer: with `encode` and `decode`, float32 on the CPU.
        out: folder of the bundle; an older bundle there is replaced, anything else is left alone.
        variants: forms of the graphs. The tokenizer has those that it can have, and fp32.
        verify: whether to compare the graphs with the modules. The bundle says if they were not.
        weights: of a denoiser that is on the meta device, read one by one as they are written. It cannot be verified.
        say: told what is being done.

    Raises:
        UserError: if `out` cannot be used, a variant is unknown, the tokenizer is discrete or the modules are not
            float32 on the CPU.
        ExportError: if a graph has a dimension that does not vary, holds control flow, or differs from its module.
    """
    out, variants = check_place(Path(out)), check_variants(variants)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"the tokenizer of {config.name} is discrete: the denoiser works on continuous latents")
    stored = [] if weights else [*denoiser.state_dict().values()]
    for tensor in [*stored, *tokenizer.state_dict().values()]:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise UserError(f"the weights are {tensor.dtype} on {tensor.device}: export takes float32 on the CPU")
    if weights and verify:
        raise UserError("a denoiser without values cannot be verified: load its weights, or export with --no-verify")
    if weights is None:
        weights = {name: held(name, value) for name, value in denoiser.state_dict().items()}
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        graphs = [denoiser_graph(config), *tokenizer_graphs(config)]
        made = {graphs[0].name: write_denoiser(config, denoiser, tokenizer, weights, variants, beside, say)}
        made |= write_tokenizer(config, tokenizer, variants, beside, say)
        if verify:
            made = verified(config, denoiser, tokenizer, made, beside, say)
        parameters = sum(weight.numel() for weight in denoiser.parameters())
        versions = {"torch": torch.__version__, "onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
        write_manifest(config, graphs, made, beside, parameters=parameters, versions=versions)
        _put_in_place(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out


def check_variants(variants: Sequence[str]) -> list[str]:
    """The variants to write, fp32 first where others are made of it.

    Raises:
        UserError: if one is unknown, or there is none.
    """
    if unknown := [name for name in variants if name not in ENGINES]:
        raise UserError(f"no variant is called {unknown[0]!r}; there are: {', '.join(ENGINES)}")
    if not variants:
        raise UserError(f"no variant was asked for; there are: {', '.join(ENGINES)}")
    needs = [] if all(name in TRACED for name in variants) else ["fp32"]
    return list(dict.fromkeys([*needs, *variants]))


def write_denoiser(
    config: Config,
    denoiser: Denoiser,
    tokenizer: Tokenizer,
    weights: Mapping[str, Source],
    variants: Sequence[str],
    folder: Path,
    say: Say,
) -> list[Variant]:
    """Write the denoiser's graphs and their weights.

    Raises:
        ExportError: if a graph is not right at every size, or does not use all weights.
    """
    graph, made = denoiser_graph(config), []
    inputs = calibration_inputs(config, tokenizer) if set(variants) & set(CALIBRATED) else []
    for variant in variants:
        say(f"denoiser, {variant}")
        file = file_name(graph, variant)
        if variant in TRACED:
            dtype, opset = TRACED[variant]
            module = recast(denoiser, dtype, "meta")
            if variant != "fp32":
                keep_tokens_wide(module.network)
            proto = to_proto(module, graph, list(weights), opset)
            if missing := weights.keys() - {tensor.name for tensor in proto.graph.initializer}:
                raise ExportError(f"{graph.name} does not use all of its weights: {', '.join(sorted(missing)[:5])}")
            store = write_weights(weights, dtype, folder / f"{file.removesuffix('.onnx')}.safetensors")
            attach(proto, store)
            save(proto, folder / file)
        else:
            make_variant(variant, folder / "denoiser.onnx", inputs, folder)
            own = folder / f"{file.removesuffix('.onnx')}.safetensors"
            store = own if own.exists() else folder / "denoiser.safetensors"
            opset = onnx.load(folder / file, load_external_data=False).opset_import[0].version
        made.append(Variant(variant, file, store.name, opset, ENGINES[variant]))
    return made


class Half(nn.Module):
    """One half of a tokenizer as the `forward` of a module, which is what is traced; video and latents are float32."""

    def __init__(self, tokenizer: Tokenizer, method: str, dtype: torch.dtype):
        super().__init__()
        self.tokenizer, self.method, self.dtype = tokenizer, method, dtype

    def run(self, x: Tensor) -> Tensor:
        """The half, in its own type."""
        return getattr(self.tokenizer, self.method)(x.to(self.dtype)).to(x.dtype)


class Encoder(Half):
    """From video to latents."""

    def forward(self, video: Tensor) -> Tensor:
        """Latents of unit variance."""
        return self.run(video)


class Decoder(Half):
    """From latents to video."""

    def forward(self, latents: Tensor) -> Tensor:
        """Video in [-1, 1]."""
        return self.run(latents)


def write_tokenizer(
    config: Config, tokenizer: Tokenizer, variants: Sequence[str], folder: Path, say: Say
) -> dict[str, list[Variant]]:
    """Write the tokenizer's graphs, and the weights of a convolutional one, which both share.

    Raises:
        ExportError: if a graph is not right at every size.
    """
    state = {name: held(name, value) for name, value in tokenizer.state_dict().items()}
    halves = tokenizer_graphs(config)
    made: dict[str, list[Variant]] = {half.name: [] for half in halves}
    convolutional = isinstance(config.tokenizer, ConvTokenizerConfig)
    forms = [name for name in variants if name in TRACED and name != "fp32"] if convolutional else []
    for variant in ["fp32", *forms]:
        dtype, opset = TRACED[variant]
        store = None
        if convolutional:
            name = "tokenizer.safetensors" if variant == "fp32" else f"tokenizer.{variant}.safetensors"
            narrowed = {name for name, _ in tokenizer.named_parameters()}
            store = write_weights(state, dtype, folder / name, narrowed)
        for half, kind in zip(halves, (Encoder, Decoder), strict=True):
            say(f"{half.name.replace('_', ', ')}, {variant}")
            # with values: causal attention on the meta device asks whether there is one frame
            module = kind(recast(tokenizer, dtype, "cpu"), {Encoder: "encode", Decoder: "decode"}[kind], dtype)
            proto = to_proto(module, half, [f"tokenizer.{name}" for name in state] if convolutional else [], opset)
            if store is not None:
                under_the_checkpoints_names(proto, "tokenizer.")
                attach(proto, store)
            save(proto, folder / file_name(half, variant))
            file, engines = file_name(half, variant), ENGINES[variant]
            made[half.name].append(Variant(variant, file, store and store.name, opset, engines))
    return made


def under_the_checkpoints_names(proto: onnx.ModelProto, prefix: str) -> None:
    """Take a prefix away from the names of weights."""
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.removeprefix(prefix)
    for node in proto.graph.node:
        node.input[:] = [name.removeprefix(prefix) for name in node.input]


def write_weights(
    weights: Mapping[str, Source], dtype: torch.dtype, path: Path, narrowed: set[str] | None = None
) -> Path:
    """Write weights in another type, reading them one by one; those not in `narrowed` keep theirs."""

    def converted(name: str, source: Source) -> Source:
        if narrowed is not None and name not in narrowed:
            return source
        return source._replace(dtype=NAMES[dtype], read=lambda: source.read().to(dtype))

    write_safetensors(path, {name: converted(name, source) for name, source in weights.items()})
    return path


def file_name(graph: Graph, variant: str) -> str:
    """Of a variant's graph."""
    return f"{graph.name}.onnx" if variant == "fp32" else f"{graph.name}.{variant}.onnx"


def verified(
    config: Config,
    denoiser: Denoiser,
    tokenizer: Tokenizer,
    made: Mapping[str, list[Variant]],
    folder: Path,
    say: Say,
) -> dict[str, list[Variant]]:
    """The variants with what was measured of them; writes examples beside them.

    Raises:
        ExportError: if a variant breaks its contract.
    """
    sigma_data = config.diffusion.sigma_data

    def decode(x0: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return tokenizer.decode(torch.from_numpy(x0 / np.float32(sigma_data))).numpy()

    clips = calibration_inputs(config, tokenizer, clips=2, seed=2)
    condition = {name: np.concatenate([clip[name] for clip in clips]) for name in clips[0]}
    denoisers = DenoiserParity(config, denoiser, clips[0], decode)
    inputs, expected = samples(config, condition, denoisers.call, tokenizer)
    np.savez(folder / "sample_inputs.npz", **inputs)  # type: ignore[arg-type]
    np.savez(folder / "expected.npz", **expected)  # type: ignore[arg-type]
    tokenizers = TokenizerParity(config, tokenizer)
    result: dict[str, list[Variant]] = {}
    for graph, forms in made.items():
        result[graph] = []
        for form in forms:
            say(f"{graph.replace('_', ', ')}, {form.name}: comparing with PyTorch")
            rows: list[Parity]
            try:
                candidate = open_variant(folder / form.file, form.name, torch.get_num_threads())
                if graph == "denoiser":
                    rows = denoisers.measure(form.name, candidate)
                else:
                    rows = tokenizers.measure(graph, form.name, candidate)
            except EngineFailure as error:
                raise ExportError(f"{graph}, {form.name} does not run at all sizes: {error}") from error
            if wrong := [row for row in rows if not row.ok]:
                raise ExportError(f"{form.file} differs from the model: {wrong[0]}")
            result[graph].append(replace(form, parity=tuple(rows), verified=True))
    return result


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
