"""What can be compared: a variant of a bundle on an engine, also those that the engine here was not made for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_export.compare import Call
from cosmos_export.engines import Optimise, open_engine, providers_of
from cosmos_export.errors import BundleError

Inputs = Mapping[str, np.ndarray]
OPTIMISE: dict[str, Optimise] = {"int8": "basic", "fp8": "none"}
"""What ONNX Runtime's CPU provider bears of graphs made for TensorRT; all of it else."""
EMULATED = ("bf16", "fp16")
"""Variants that ONNX Runtime's CPU provider does not run, or only with the range of float32."""
LAYERS = ("patch_embedding", "self_attention.to_out", "cross_attention.to_out", "mlp.layer2", "final_layer.linear")
"""Where a network is looked into: its first and last layer, and what every part of a block adds to the tokens."""


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    name: str
    call: Call
    layers: Callable[[Inputs], dict[str, np.ndarray]] | None
    """What leaves each layer, by its name in the checkpoint; None where an engine does not show it."""


def open_variant(path: Path, variant: str, threads: int = 0) -> Call:
    """A graph on ONNX Runtime's CPU provider, whatever it was made for; bf16 and fp16 are emulated."""
    if variant in EMULATED:
        onnx = _onnx()
        from cosmos_export.emulate import emulate
        from cosmos_export.onnx_graph import open_graph

        session = open_graph(emulate(onnx.load(path, load_external_data=False)), path.parent, threads=threads)
        return lambda inputs: np.asarray(session.run(None, dict(inputs))[0])
    engine = open_engine(path, threads=threads, optimise=OPTIMISE.get(variant, "all"))
    return lambda inputs: engine(**inputs)


def open_layers(path: Path, variant: str, threads: int = 0) -> Callable[[Inputs], dict[str, np.ndarray]]:
    """The same graph, with what leaves each layer as its outputs."""
    onnx = _onnx()
    from cosmos_export.emulate import emulate
    from cosmos_export.onnx_graph import open_graph, outputs_of_layers

    proto = onnx.load(path, load_external_data=False)
    outputs = outputs_of_layers(proto, LAYERS)
    if variant in EMULATED:
        proto = emulate(proto)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs.values())
    session = open_graph(proto, path.parent, optimise=variant not in OPTIMISE, threads=threads)
    return lambda inputs: dict(zip(outputs, session.run(list(outputs.values()), dict(inputs)), strict=True))


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise BundleError(f"bf16, fp16 and layers need the package onnx ({error}): pip install onnx") from error
    return onnx


def bundle_side(
    folder: Path,
    manifest: Mapping[str, Any],
    variant: str,
    *,
    backend: str = "onnxruntime",
    provider: str = "cpu",
    profile: str | None = None,
    threads: int = 0,
) -> Side:
    """A bundle's denoiser.

    Raises:
        BundleError: if there is no such variant, or it cannot be opened.
    """
    forms = manifest["graphs"]["denoiser"]["variants"]
    if variant not in forms:
        raise BundleError(f"{folder} has no variant {variant!r}; it has: {', '.join(forms)}")
    path = folder / forms[variant]["file"]
    if backend == "tensorrt":
        from cosmos_export.tensorrt_engine import open_plan

        engine = open_plan(folder, "denoiser", variant, profile or next(iter(manifest["profiles"])))
    elif provider != "cpu":
        engine = open_engine(path, providers_of(provider), threads)
    else:
        return Side(variant, open_variant(path, variant, threads), lambda i: open_layers(path, variant, threads)(i))
    return Side(f"{variant}, {engine.name}", lambda inputs: engine(**inputs), None)
