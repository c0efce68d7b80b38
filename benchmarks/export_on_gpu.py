"""What a GPU makes of an exported denoiser: parity of precisions and engines, and seconds a call. Needs no network.

    python benchmarks/export_on_gpu.py export tiny bf16 --graphs graphs      # what the others do where it is not done
    python benchmarks/export_on_gpu.py parity --weights run --graphs graphs  # PyTorch, ONNX Runtime; fp32, fp16, bf16
    python benchmarks/export_on_gpu.py speed slice --graphs graphs           # every engine beside eager mode, in turns
    python benchmarks/export_on_gpu.py rtx                                   # TensorRT for RTX: build, run if it can

Each prints JSON with machine, versions and date, and keeps it with `--write FILE`: an engine that fails or hangs loses
its own row only. `tiny` is the preset at its clip; `slice` is 7B with two blocks at 121 frames of 720p, 56,320 tokens.
Random weights are nowhere zero or one, as those before training are, which hide what they multiply. On a CPU the same
lines run in a small size: `--device cpu` with the model `micro`.

On an H200, on 29 November 2026, an earlier version of this file made `results/export_on_gpu.json`: parity of PyTorch
and of ONNX Runtime on CPU and CUDA, and seconds of eager mode, torch.compile, CUDA graphs, AOTInductor and ONNX Runtime
on CUDA. There one engine ran after the other, and its arrays stayed on the GPU; now they take turns, each in a process
of its own, and what goes to the GPU and back is in a call. Neither this version nor `rtx` was ever run on a GPU:
TensorRT for RTX was not tried, because no device time was left.
"""

import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import torch
import tyro
from cosmos_export.benchmark import open_onnx
from cosmos_export.compare import Parity, call_inputs, compare
from cosmos_export.engines import open_engine, providers_of
from cosmos_export.onnx_graph import attach
from cosmos_export.ports import denoiser_graph
from cosmos_export.sides import open_variant
from cosmos_export.solvers import integrate, karras_sigmas, noise_from_seed
from cosmos_export.speed_table import figures
from cosmos_export.to_onnx import TRACED, export_bundle
from cosmos_export.tracing import recast, save, to_proto
from cosmos_export.turns import Entry, measure, said
from export_on_cpu import any_tokenizer, without_zeros
from onnx import TensorProto, helper
from safetensors.torch import save_file

from cosmos_ref.commands.benchmark import called, load_denoiser, peak_entry, torch_entries
from cosmos_ref.config import Config, latent_shape, preset
from cosmos_ref.demo.machine import describe_machine, versions
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import build_denoiser, new_model
from cosmos_ref.model.sizes import flops, token_count

Model = Literal["micro", "tiny", "slice"]
Precision = Literal["fp32", "fp16", "bf16"]
Call = Callable[[dict[str, np.ndarray]], np.ndarray]


def parity(
    model: Model = "tiny",
    weights: Path | None = None,
    device: str = "cuda",
    steps: int = 35,
    runtime: Literal["all", "cpu", "cuda"] = "all",
    limit: int = 60,
    graphs: Path | None = None,
    write: Path | None = None,
) -> None:
    """One call at several noise levels, and a whole sampling, against PyTorch in float32 on the device.

    Args:
        model: which.
        weights: a checkpoint of that preset, instead of random numbers.
        device: where PyTorch runs.
        steps: of the sampling.
        runtime: ONNX Runtime's providers to measure, of those that are there.
        limit: seconds that an engine may take in all.
        graphs: folder of ONNX graphs, which are exported where they are not there.
        write: JSON file to keep the result in.
    """
    config, graphs = named(model), graphs or Path(tempfile.mkdtemp())
    diffusion = config.diffusion
    results: dict[str, Any] = {"model": model, "weights": str(weights or "random"), "calls": {}, "sampling": {}}
    levels = [diffusion.sigma_min, 0.02, 0.1, 0.5, 2.0, 10.0, diffusion.sigma_max, 80.0]
    cases = [numpy_inputs(config, batch=2, sigma=sigma, seed=n) for n, sigma in enumerate(levels)]
    sigmas = karras_sigmas(steps, diffusion.sigma_min, diffusion.sigma_max, diffusion.rho).tolist()
    noise = noise_from_seed(0, 0, cases[0]["x"].shape)

    def sampled(call: Call) -> np.ndarray:
        return integrate(
            lambda x, sigma: call(cases[0] | {"x": x, "sigma": np.full(2, sigma, np.float32)}), noise, sigmas, "res_2ab"
        )

    def in_torch(precision: Precision, place: str) -> Call:
        denoiser = given(model, weights, precision, place)
        return lambda case: np.asarray(called(denoiser, case, place)[1]())

    def in_onnx(precision: Precision, provider: str) -> Call:
        engine = open_engine(written(model, precision, weights, graphs), providers_of(provider))
        return lambda case: engine(**case)

    places: list[tuple[Precision, str]] = [("fp32", "cpu"), ("bf16", device), ("fp16", device)]
    engines: dict[str, Callable[[], Call]] = {f"torch {p}, {place}": partial(in_torch, p, place) for p, place in places}
    offered: dict[str, list[Precision]] = {"cpu": ["fp32", "fp16"], "cuda": ["fp32", "fp16", "bf16"]}
    for provider, precisions in offered.items():
        if providers_of(provider)[0] in ort.get_available_providers() and runtime in ("all", provider):
            engines |= {f"ONNX Runtime {p}, {provider}": partial(in_onnx, p, provider) for p in precisions}
    if runtime != "cuda":  # ONNX Runtime has no bf16 on a CPU
        engines["ONNX Runtime bf16, emulated"] = lambda: open_variant(written(model, "bf16", weights, graphs), "bf16")
    reference = in_torch("fp32", device)
    expected, trajectory = [reference(case) for case in cases], sampled(reference)
    for name, make in engines.items():
        with guarded(name, limit, results):
            call = make()
            rows = [compared(D, call(case)) for case, D in zip(cases, expected, strict=True)]
            results["calls"][name] = [{"sigma": s, **asdict(row)} for s, row in zip(levels, rows, strict=True)]
            row = compared(trajectory, sampled(call))
            results["sampling"][name] = asdict(row)
            print(f"{name}: relative {max(row.relative for row in rows):.1e}", end=", ")
            print(
                f"cosine {min(row.cosine for row in rows):.6f}; {steps} steps: relative {row.relative:.1e}", flush=True
            )
        report("parity", results, write, show=False)
    report("parity", results, write)


def export(
    model: tyro.conf.Positional[Model],
    precision: tyro.conf.Positional[Precision],
    graphs: Path,
    weights: Path | None = None,
) -> None:
    """Export a denoiser for the other commands.

    Args:
        model: which.
        precision: of the network.
        graphs: folder for the graph and its weights.
        weights: a checkpoint of that preset, instead of random numbers.
    """
    written(model, precision, weights, graphs)


def speed(
    model: tyro.conf.Positional[Model],
    engines: tuple[str, ...] = ("eager", "compile", "CUDA graphs", "aoti", "ort", "ort-mha", "ort-graphs"),
    device: str = "cuda",
    rounds: int = 20,
    limit: float = 300,
    graphs: Path | None = None,
    write: Path | None = None,
) -> None:
    """Seconds a call at the model's clip, of every engine, weights in bf16 (ONNX Runtime: fp16; on a CPU fp32).

    Args:
        model: which.
        engines: of them.
        device: where.
        rounds: turns of each.
        limit: seconds that a first call, with compiling, or a later one may take.
        graphs: folder of ONNX graphs and AOTInductor's packages, which are made where they are not there.
        write: JSON file to keep the result in.
    """
    config, graphs = named(model), graphs or Path(tempfile.mkdtemp())
    graphs.mkdir(parents=True, exist_ok=True)
    inputs, load = numpy_inputs(config), partial(given, model, None, "bf16", device)
    package = graphs / f"{model}.pt2" if "aoti" in engines else None
    modes: list[Any] = [name for name in engines if name in ("eager", "compile", "CUDA graphs")]
    entries = torch_entries(load, config, inputs, device, "bf16", modes, package)
    precision: Precision = "fp16" if device == "cuda" else "fp32"
    for name in [name for name in engines if name.startswith("ort")]:
        path = written(model, precision, None, graphs)
        if name == "ort-mha":
            path = with_multi_head_attention(path, config.model.num_heads)
        call = partial(open_onnx, path, inputs, providers_of(device), 0, name == "ort-graphs")
        entries.append(Entry(f"{name} {precision}", call))
    peak, peak_operations = peak_entry(device)
    *rows, product = measure([*entries, peak], rounds, limit=limit, gpu=device == "cuda", say=print)
    work, tokens = sum(flops(config, config.clip).values()), token_count(config, config.clip)
    rate = peak_operations / product.seconds if product.seconds else None
    results = {"model": model, "tokens": tokens, "flop": work, "matrix_peak": rate}
    report("speed", results | {"engines": figures(rows, tokens, work, rate)}, write)


def with_multi_head_attention(path: Path, heads: int) -> Path:
    """The graph with every Attention as com.microsoft.MultiHeadAttention on three axes, which has a flash kernel."""
    proto = onnx.load(path, load_external_data=False)
    shapes = {"heads_together": [0, 0, -1], "heads_apart": [0, 0, heads, -1]}
    for name, shape in shapes.items():
        proto.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(shape)], shape))
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for node in nodes:
        if node.op_type != "Attention":
            proto.graph.node.append(node)
            continue
        out, together = node.output[0], []
        for source, letter in zip(node.input[:3], "qkv", strict=True):
            name = f"{out}_{letter}"
            proto.graph.node.append(helper.make_node("Transpose", [source], [f"{name}_t"], perm=[0, 2, 1, 3]))
            proto.graph.node.append(helper.make_node("Reshape", [f"{name}_t", "heads_together"], [name]))
            together.append(name)
        scale = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name == "scale"}
        proto.graph.node.extend(
            [
                helper.make_node(
                    "MultiHeadAttention", together, [f"{out}_m"], domain="com.microsoft", num_heads=heads, **scale
                ),
                helper.make_node("Reshape", [f"{out}_m", "heads_apart"], [f"{out}_s"]),
                helper.make_node("Transpose", [f"{out}_s"], [out], perm=[0, 2, 1, 3]),
            ]
        )
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    path = path.with_suffix(".mha.onnx")
    path.write_bytes(proto.SerializeToString())
    return path


def rtx(
    model: Literal["micro", "tiny"] = "tiny",
    precision: Precision = "bf16",
    weights: Path | None = None,
    device: str = "cuda",
    write: Path | None = None,
) -> None:
    """Build an engine with TensorRT for RTX, for this GPU and for others, and run it where that works.

    Args:
        model: which.
        precision: of the network.
        weights: a checkpoint of that preset, instead of random numbers.
        device: where the engine runs; on the CPU it is only built.
        write: JSON file to keep the result in.
    """
    from cosmos_export.builder import build_engine, capabilities
    from cosmos_export.nvidia import load_tensorrt
    from cosmos_export.tensorrt_engine import TensorRTEngine

    trt, config = load_tensorrt("tensorrt_rtx"), named(model)
    results: dict[str, Any] = {"tensorrt_rtx": trt.__version__, "capabilities": capabilities(trt), "builds": {}}
    network, inputs = given(model, weights, "fp32", "cpu"), numpy_inputs(config, batch=2)
    bundle = Path(tempfile.mkdtemp()) / "bundle"
    export_bundle(config, network, any_tokenizer(config), bundle, variants=[precision], verify=False, say=print)
    for capability in ([None] if device == "cuda" else []) + [c for c in ("9.0", "8.0") if c in capabilities(trt)]:
        with guarded(str(capability), 60, results):
            plan = build_engine(bundle, "denoiser", precision, "native", trt, capability=capability)
            results["builds"][str(capability)] = row = {"bytes": plan.stat().st_size}
            if device == "cuda":
                found = TensorRTEngine(plan)(**inputs)
                row |= asdict(compared(np.asarray(called(network, inputs, "cpu")[1]()), found))
            print(f"{capability}: {row}", flush=True)
        report("rtx", results, write, show=False)
    report("rtx", results, write)


def named(model: Model) -> Config:
    """The model's numbers."""
    if model != "slice":
        return preset(model)
    config = preset("7b")
    return replace(config, model=replace(config.model, depth=2))


@torch.no_grad()
def given(model: Model, weights: Path | None, precision: Precision, device: str) -> Denoiser:
    """The denoiser of a checkpoint, or a random one, whose large weights are drawn where they are."""
    config, (dtype, _) = named(model), TRACED[precision]
    if weights is not None:
        denoiser = load_denoiser(weights, "fp32", device)
    elif model != "slice":
        denoiser, _ = new_model(config, torch.Generator().manual_seed(0))
        without_zeros(denoiser, torch.Generator().manual_seed(0))
    else:
        generator = torch.Generator(device).manual_seed(0)
        denoiser = build_denoiser(config).to(dtype).to_empty(device=device)
        for weight in denoiser.parameters():
            weight.normal_(std=0.5 * weight.shape[-1] ** -0.5 if weight.ndim > 1 else 1.0, generator=generator)
    return denoiser.to(device, dtype).eval().requires_grad_(False)


def numpy_inputs(config: Config, batch: int = 1, sigma: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs at the preset's clip."""
    _, *size = latent_shape(config, config.clip)
    sizes = dict(zip(("frames", "height", "width"), size, strict=True), batch=batch, text_length=config.text.length)
    return call_inputs(config, **sizes, sigma=sigma, seed=seed)


def written(model: Model, precision: Precision, weights: Path | None, folder: Path) -> Path:
    """The denoiser as an ONNX file whose weights are a safetensors file beside it."""
    path = folder / f"{model}.{precision}.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    denoiser, (dtype, opset) = given(model, weights, precision, place), TRACED[precision]
    values = denoiser.state_dict()
    proto = to_proto(recast(denoiser, dtype, "meta"), denoiser_graph(named(model)), list(values), opset)
    store = path.with_suffix(".safetensors")
    save_file({name: tensor.contiguous() for name, tensor in values.items()}, store)
    attach(proto, store)
    save(proto, path)  # last: where it is, the rest is too
    return path


def compared(expected: np.ndarray, found: np.ndarray) -> Parity:
    """How far two arrays are apart; nothing is refused."""
    return compare("", expected, found, float("inf"))


@contextmanager
def guarded(what: str, limit: int, results: dict[str, Any]) -> Iterator[None]:
    """An engine that fails, or takes too long, is reported with its reason; the others go on."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {limit} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        yield
    except Exception as error:  # engines have many kinds of failure, and each is a result
        results.setdefault("failed", {})[what] = said(error)
        print(f"{what}: FAILED, {said(error)}", flush=True)
    finally:
        signal.alarm(0)


def report(name: str, results: dict[str, Any], write: Path | None, show: bool = True) -> None:
    """Print what was found, with machine, versions and date, and keep it."""
    machine = describe_machine() | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})
    date = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({name: results, "date": date, "machine": machine, "versions": versions()}, indent=1)
    if show:
        print(text)
    if write:
        write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"export": export, "parity": parity, "speed": speed, "rtx": rtx})
