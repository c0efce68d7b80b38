"""What a GPU makes of an exported denoiser: parity of precisions and engines, and seconds a call. Needs no network.

    python benchmarks/export_on_gpu.py export tiny bf16 --out graphs       # what the others do where it is not done
    python benchmarks/export_on_gpu.py packages tiny slice --out packages  # AOTInductor: minutes of compiling
    python benchmarks/export_on_gpu.py parity --weights run                # PyTorch, ONNX Runtime; fp32, fp16, bf16
    python benchmarks/export_on_gpu.py speed slice --packages packages     # every engine beside PyTorch's eager mode
    python benchmarks/export_on_gpu.py rtx                                 # TensorRT for RTX: build, run if it can

Each prints JSON with machine, versions and date, and keeps it with `--write FILE` after every result: an engine that
hangs loses its own row only. `tiny` is the preset at its clip; `slice` is 7B with two blocks at 121 frames of 720p,
56,320 tokens. Random weights are nowhere zero or one, as those before training are, which hide what they multiply. On a
CPU the same lines run in a small size: `--device cpu` with the model `micro`.
"""

import json
import math
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import torch
import tyro
from cosmos_export.compare import call_inputs
from cosmos_export.ports import denoiser_graph
from cosmos_export.solvers import integrate, karras_sigmas, noise_from_seed
from cosmos_export.tracing import attach_safetensors, to_proto
from full_scale import matrix_peak
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor

from cosmos_ref.blocks.attention import RMSNorm
from cosmos_ref.blocks.modulation import AdaLNLoRA
from cosmos_ref.config import Config, latent_shape, preset
from cosmos_ref.demo.machine import describe_machine, versions
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import build_denoiser, new_model
from cosmos_ref.model.sizes import flops, token_count

Model = Literal["micro", "tiny", "slice"]
Precision = Literal["fp32", "fp16", "bf16"]
Run = Callable[[], object]
"""One call of an engine on inputs that are where it wants them."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OPSETS = {"fp32": 22, "fp16": 23, "bf16": 23}
"""With 23 comes one Attention operator, which engines have for 16 bits only."""
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


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
    config = named(model)
    exact = given(weights, config, "fp32", "cpu")
    results: dict[str, Any] = {"model": model, "weights": str(weights or "random"), "calls": {}, "sampling": {}}
    levels = [config.diffusion.sigma_min, 0.02, 0.1, 0.5, 2.0, 10.0, config.diffusion.sigma_max, 80.0]
    channels, *size = latent_shape(config, config.clip)
    sizes = dict(zip(("frames", "height", "width"), size, strict=True), batch=2, text_length=config.text.length)
    cases = [call_inputs(config, **sizes, sigma=sigma, seed=n) for n, sigma in enumerate(levels)]
    graphs = graphs or Path(tempfile.mkdtemp())
    reference = torch_call(cast(exact, "fp32"), device)
    expected = [reference(case) for case in cases]
    sigmas = karras_sigmas(steps, config.diffusion.sigma_min, config.diffusion.sigma_max, config.diffusion.rho).tolist()
    noise = noise_from_seed(0, 0, (2, channels, *size))
    rest = {name: value for name, value in cases[0].items() if name not in ("x", "sigma")}

    def sampled(call: Callable) -> np.ndarray:
        return integrate(
            lambda x, sigma: call({"x": x, "sigma": np.full(2, sigma, np.float32)} | rest), noise, sigmas, "res_2ab"
        )

    trajectory = sampled(reference)
    places: list[tuple[Precision, str]] = [("fp32", "cpu"), ("bf16", device), ("fp16", device)]
    engines: dict[str, Callable[[], Callable]] = {
        f"torch {precision}, {place}": lambda p=precision, d=place: torch_call(cast(exact, p), d)
        for precision, place in places
    }
    precisions: dict[str, list[Precision]] = {CPU: ["fp32", "fp16"], CUDA: ["fp32", "fp16", "bf16"]}
    for provider in (CPU, CUDA):
        if provider in ort.get_available_providers() and runtime in ("all", "cuda" if provider == CUDA else "cpu"):
            for precision in precisions[provider]:
                engines[f"ONNX Runtime {precision}, {provider}"] = lambda p=precision, e=provider: session_call(
                    written(cast(exact, p).to(device), config, p, graphs), e
                )
    if runtime != "cuda":  # ONNX Runtime has no bf16 on a CPU; this follows the graph operator by operator
        engines["ONNX reference bf16"] = lambda: reference_call(
            written(cast(exact, "bf16").to(device), config, "bf16", graphs)
        )
    for name, make in engines.items():
        with guarded(name, limit, results):
            call = make()
            rows = [
                {"sigma": sigma, **distance(call(case), D)}
                for sigma, case, D in zip(levels, cases, expected, strict=True)
            ]
            results["calls"][name] = rows
            print(f"{name}: relative {max(row['relative'] for row in rows):.1e}", end=", ", flush=True)
            print(f"cosine {min(row['cosine'] for row in rows):.6f}", end=", ", flush=True)
            results["sampling"][name] = row = distance(sampled(call), trajectory)
            print(f"{steps} steps: relative {row['relative']:.1e}, PSNR {row['psnr']:.1f} dB", flush=True)
        report("parity", results, write, show=False)
    report("parity", results, write)


def export(
    model: tyro.conf.Positional[Model],
    precision: tyro.conf.Positional[Precision],
    out: Path,
    weights: Path | None = None,
    device: str = "cuda",
) -> None:
    """Export a denoiser from the device, for the other commands.

    Args:
        model: which.
        precision: of the network.
        out: folder for the graph and its weights.
        weights: a checkpoint of that preset, instead of random numbers.
        device: where the weights are.
    """
    out.mkdir(parents=True, exist_ok=True)
    config = named(model)
    written(given(weights, config, precision, device), config, precision, out)


def packages(models: tyro.conf.Positional[tuple[Model, ...]], out: Path, device: str = "cuda") -> None:
    """Compile models ahead of time (AOTInductor), in bf16, with sizes that vary; where that fails, with fixed ones.

    Args:
        models: which.
        out: folder for the packages.
        device: where they are to run.
    """
    out.mkdir(parents=True, exist_ok=True)
    for model in models:
        for dynamic in (True, False):
            started = time.perf_counter()
            try:
                compile_ahead(model, out / f"{model}.pt2", device, dynamic)
            except Exception as error:  # of the compiler: the next attempt, and a report
                print(f"{model}, {'dynamic' if dynamic else 'fixed'} sizes: {said(error)}", flush=True)
                continue
            notes = {"compile_seconds": time.perf_counter() - started, "dynamic": dynamic}
            notes["size_mib"] = (out / f"{model}.pt2").stat().st_size / 2**20
            (out / f"{model}.json").write_text(json.dumps(notes))
            print(f"{model}: {notes}", flush=True)
            break


@torch.no_grad()
def compile_ahead(model: Model, path: Path, device: str, dynamic: bool) -> None:
    """A package without weights: they are handed over when it is loaded, as it is with the ONNX graph."""
    config = named(model)
    graph = denoiser_graph(config)
    example = graph.example if dynamic else numpy_inputs(config)
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(
            random_denoiser(config, "bf16", device),
            (),
            {name: torch.as_tensor(value).to(device) for name, value in example.items()},
            dynamic_shapes=graph.dynamic_shapes() if dynamic else None,
        )
    torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(path),
        inductor_configs={"aot_inductor.package_constants_in_so": False},
    )


def speed(
    model: tyro.conf.Positional[Model],
    engines: tuple[str, ...] = ("eager", "aoti", "compile", "graphs", "ort", "ort-mha", "ort-graphs"),
    packages: Path = Path("packages"),
    device: str = "cuda",
    limit: int = 60,
    graphs: Path | None = None,
    write: Path | None = None,
) -> None:
    """Seconds a call at the model's clip, of every engine, weights in bf16 (ONNX Runtime: fp16).

    Args:
        model: which.
        engines: of them.
        packages: folder that the command of that name wrote.
        device: where.
        limit: seconds that an engine may take in all.
        graphs: folder of ONNX graphs, which are exported where they are not there.
        write: JSON file to keep the result in.
    """
    config, own = named(model), torch.device(device)
    work, tokens = sum(flops(config, config.clip).values()), token_count(config, config.clip)
    peak = matrix_peak(own, 8192 if own.type == "cuda" else 1024)
    graphs = graphs or Path(tempfile.mkdtemp())
    results: dict[str, Any] = {"model": model, "tokens": tokens, "flop": work, "matrix_peak": peak, "engines": {}}
    print(f"{model}: {tokens} tokens, {work / 1e12:.3g} TFLOP a call, peak {peak / 1e12:.0f} TFLOP/s", flush=True)
    for engine in engines:
        with guarded(engine, limit, results):
            started = time.perf_counter()
            run, notes = prepared(engine, model, config, own, packages, graphs)
            run()
            synchronize(own)
            notes["first_call_seconds"] = time.perf_counter() - started
            if own.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = measured(run, own)
            memory = torch.cuda.max_memory_allocated() / 2**30 if own.type == "cuda" else None
            results["engines"][engine] = row = {
                "seconds": seconds,
                "ratio_to_eager": seconds / results["engines"].get("eager", {"seconds": seconds})["seconds"],
                "tokens_per_second": tokens / seconds,
                "teraflops": work / seconds / 1e12,
                "share_of_peak": work / seconds / peak,
                "torch_memory_gib": memory,
                **notes,
            }
            print(f"{engine}: {row}", flush=True)
            del run
        release(own)
        report("speed", results, write, show=False)
    report("speed", results, write)


def prepared(
    engine: str, model: Model, config: Config, device: torch.device, packages: Path, graphs: Path
) -> tuple[Run, dict[str, Any]]:
    """An engine ready to run, and what there is to say of it."""
    inputs = {name: torch.from_numpy(value).to(device) for name, value in numpy_inputs(config).items()}
    if engine.startswith("ort"):
        precision: Precision = "fp32"
        if device.type == "cuda":
            find_cuda()
            precision = "fp16"
        if not (path := graphs / f"{precision}.onnx").exists():
            written(random_denoiser(config, precision, device), config, precision, graphs)
            release(device)
        if engine == "ort-mha":
            path = with_multi_head_attention(path, config.model.num_heads)
        return bound(path, inputs, fixed_sizes(config), device, replay=engine == "ort-graphs")
    network = random_denoiser(config, "bf16", device)
    if engine == "aoti":
        notes = json.loads((packages / f"{model}.json").read_text())
        package = torch._inductor.aoti_load_package(str(packages / f"{model}.pt2"))
        weights = network.state_dict()
        package.load_constants(weights, check_full_update=True, user_managed=True)

        def run() -> Tensor:
            assert weights  # which the package has addresses of
            return package(**inputs)

        return without_gradients(run), notes
    if engine == "compile":
        network.compile(dynamic=False)
    elif engine == "graphs":
        network.compile(dynamic=False, mode="reduce-overhead")
    elif engine != "eager":
        raise ValueError(f"no engine is called {engine!r}")
    return without_gradients(lambda: network(**inputs)), {}


def bound(
    path: Path, inputs: Mapping[str, Tensor], sizes: Mapping[str, int], device: torch.device, replay: bool
) -> tuple[Run, dict[str, Any]]:
    """ONNX Runtime on inputs and an output that stay on the device."""
    notes: dict[str, Any] = {}
    providers: list[Any] = [(CUDA, {"enable_cuda_graph": "1"} if replay else {})] if device.type == "cuda" else [CPU]
    try:
        session = open_session(path, providers, sizes, alone=True)
        notes["operators on the CPU"] = False
    except Exception as error:
        notes["operators on the CPU"] = said(error)
        session = open_session(path, providers, sizes)
    binding, out = session.io_binding(), torch.empty_like(inputs["x"])
    for name, tensor in inputs.items():
        binding.bind_input(name, device.type, 0, np.float32, tuple(tensor.shape), tensor.data_ptr())
    binding.bind_output("denoised", device.type, 0, np.float32, tuple(out.shape), out.data_ptr())

    def run() -> Tensor:
        assert inputs  # which the binding has addresses of
        session.run_with_iobinding(binding)
        return out

    return run, notes | {"providers": session.get_providers(), "onnxruntime": ort.__version__}


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
    model: Model = "tiny",
    precision: Precision = "bf16",
    weights: Path | None = None,
    device: str = "cuda",
    graphs: Path | None = None,
    write: Path | None = None,
) -> None:
    """Build an engine with TensorRT for RTX, for every GPU it knows and for this one, and run it where that works.

    Args:
        model: which.
        precision: of the network.
        weights: a checkpoint of that preset, instead of random numbers.
        device: where the weights come from, and the engine runs.
        graphs: folder of ONNX graphs, which are exported where they are not there.
        write: JSON file to keep the result in.
    """
    trt: Any = import_module("tensorrt_rtx")
    config, results = named(model), {"tensorrt_rtx": trt.__version__, "builds": {}}
    network = given(weights, config, precision, device)
    path = written(network, config, precision, graphs or Path(tempfile.mkdtemp()))
    inputs = {name: torch.from_numpy(value).to(device) for name, value in numpy_inputs(config).items()}
    known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM") or name == "CURRENT"]
    results["capabilities"] = known
    for name in [name for name in ("CURRENT", "SM90", "SM80") if name in known]:
        messages: list[str] = []
        with guarded(name, 60, results):
            started = time.perf_counter()
            plan = build_rtx(trt, path, inputs, getattr(trt.ComputeCapability, name), messages)
            results["builds"][name] = row = {"seconds": time.perf_counter() - started, "bytes": len(plan)}
            print(f"{name}: {row}", flush=True)
            if device != "cpu":
                with torch.no_grad():
                    expected = network(**inputs).float().cpu().numpy()
                row |= run_rtx(trt, plan, inputs, expected, messages)
                print(f"{name}: {row}", flush=True)
        if messages:
            results.setdefault("messages", {})[name] = messages[-8:]
            print("\n".join(messages[-8:]), flush=True)
        report("rtx", results, write, show=False)
    report("rtx", results, write)


def build_rtx(trt: Any, path: Path, inputs: Mapping[str, Tensor], capability: Any, messages: list[str]) -> bytes:
    """A plan for inputs of exactly these sizes."""
    logger = rtx_logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise RuntimeError("; ".join(str(parser.get_error(n)) for n in range(parser.num_errors)))
    settings, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name, tensor in inputs.items():
        profile.set_shape(name, *[tuple(tensor.shape)] * 3)
    settings.add_optimization_profile(profile)
    settings.num_compute_capabilities = 1
    settings.set_compute_capability(capability, 0)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise RuntimeError("the builder made no plan")
    return bytes(plan)


def run_rtx(
    trt: Any, plan: bytes, inputs: Mapping[str, Tensor], expected: np.ndarray, messages: list[str]
) -> dict[str, Any]:
    """Seconds a call, and the distance to PyTorch."""
    runtime = trt.Runtime(rtx_logger(trt, messages))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return {"ran": "the runtime refused the plan"}
    context, out = engine.create_execution_context(), torch.empty_like(inputs["x"])
    for name, tensor in {**inputs, "denoised": out}.items():
        if name != "denoised":
            context.set_input_shape(name, tuple(tensor.shape))
        context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.Stream()

    def run() -> None:
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("the engine did not run")
        stream.synchronize()

    run()
    return {"seconds_a_call": measured(run, out.device), **distance(out.cpu().numpy(), expected)}


def rtx_logger(trt: Any, messages: list[str]) -> Any:
    """Keeps warnings and errors."""

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                messages.append(message)

    return Logger()


def named(model: Model) -> Config:
    """The model's numbers."""
    if model != "slice":
        return preset(model)
    config = preset("7b")
    return replace(config, model=replace(config.model, depth=2))


@torch.no_grad()
def random_denoiser(config: Config, precision: Precision, device: str | torch.device) -> Denoiser:
    """A denoiser with weights that are nowhere zero or one; a large one is filled where it is."""
    generator = torch.Generator(device).manual_seed(0)
    if config.model.width <= 256:
        denoiser, _ = new_model(config, torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(0)
        for module in denoiser.modules():
            if isinstance(module, AdaLNLoRA):
                module.up.weight.normal_(std=0.1, generator=generator)
            elif isinstance(module, RMSNorm):
                module.weight.uniform_(0.5, 2, generator=generator)
    else:
        denoiser = build_denoiser(config).to(DTYPES[precision]).to_empty(device=device)
        for weight in denoiser.parameters():
            weight.normal_(std=0.5 * weight.shape[-1] ** -0.5 if weight.ndim > 1 else 1.0, generator=generator)
    return cast(denoiser, precision).to(device)


def given(weights: Path | None, config: Config, precision: Precision, device: str) -> Denoiser:
    """The denoiser of a checkpoint, or a random one."""
    if weights is None:
        return random_denoiser(config, precision, device)
    from cosmos_ref.pipelines.world_model import load_world_model

    return cast(load_world_model(weights).denoiser, precision).to(device)


def cast(denoiser: Denoiser, precision: Precision) -> Denoiser:
    """A copy whose network has this precision; what is outside of it stays in float32."""
    from copy import deepcopy

    return deepcopy(denoiser).to(DTYPES[precision]).eval().requires_grad_(False)


def numpy_inputs(config: Config, batch: int = 1, sigma: float = 1.0) -> dict[str, np.ndarray]:
    """Random inputs at the preset's clip."""
    _, *size = latent_shape(config, config.clip)
    sizes = dict(zip(("frames", "height", "width"), size, strict=True), batch=batch, text_length=config.text.length)
    return call_inputs(config, **sizes, sigma=sigma, seed=0)


def fixed_sizes(config: Config) -> dict[str, int]:
    """What the names in the graph's dims are at the preset's clip."""
    inputs = numpy_inputs(config)
    axes = [(dim, inputs[p.name].shape[n]) for p in denoiser_graph(config).inputs for n, dim in enumerate(p.dims)]
    return {dim: size for dim, size in axes if isinstance(dim, str)}


def written(denoiser: Denoiser, config: Config, precision: Precision, folder: Path) -> Path:
    """The denoiser as an ONNX file whose weights are a safetensors file beside it."""
    path, started = folder / f"{precision}.onnx", time.perf_counter()
    if path.exists():
        return path
    weights, graph = denoiser.state_dict(), denoiser_graph(config)
    for device in dict.fromkeys([str(next(iter(weights.values())).device), "cpu"]):  # if not from there, from here
        example = {name: tensor.to(device) for name, tensor in graph.example.items()}
        try:
            proto = to_proto(denoiser.to(device), replace(graph, example=example), list(weights), OPSETS[precision])
            break
        except TimeoutError:
            raise
        except Exception as error:  # of the tracer
            print(f"export from {device} in {precision}: FAILED, {said(error)}", flush=True)
    else:
        raise RuntimeError(f"no graph in {precision}")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / f"{precision}.safetensors")
    attach_safetensors(proto, folder / f"{precision}.safetensors")
    path.write_bytes(proto.SerializeToString(deterministic=True))  # last: where it is, the rest is too
    print(f"exported from {device} in {precision}: {time.perf_counter() - started:.1f} s", flush=True)
    return path


def torch_call(denoiser: Denoiser, device: str) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """A denoiser as a function of numpy arrays."""
    denoiser = denoiser.to(device)

    def call(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            return (
                denoiser(**{name: torch.from_numpy(a).to(device) for name, a in inputs.items()}).float().cpu().numpy()
            )

    return call


def session_call(path: Path, provider: str) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """A graph as a function of numpy arrays, all of it on one provider if that takes every operator."""
    if provider == CUDA:
        find_cuda()
    session = open_session(path, [(CUDA, {"use_tf32": "0"}) if provider == CUDA else CPU])
    return lambda inputs: np.asarray(session.run(None, dict(inputs))[0])


def reference_call(path: Path) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """A graph as ONNX's own evaluator understands it."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    return lambda inputs: np.asarray(next(iter(evaluator.run(None, dict(inputs)))))


def open_session(
    path: Path, providers: Sequence[Any], sizes: Mapping[str, int] | None = None, alone: bool = False
) -> ort.InferenceSession:
    """A session, for these sizes only if they are given; `alone` refuses operators that fall back to the CPU."""
    options = ort.SessionOptions()
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    options.log_severity_level = 3
    if alone and providers != [CPU]:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(path, options, providers=list(providers))
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted not in session.get_providers():
        raise RuntimeError(f"ONNX Runtime fell back to {session.get_providers()}")
    return session


def find_cuda() -> None:
    """Load CUDA's libraries from where PyTorch's wheels have them."""
    if CUDA not in ort.get_available_providers():
        raise RuntimeError(f"ONNX Runtime has no {CUDA} here; it has: {', '.join(ort.get_available_providers())}")
    ort.preload_dlls()


def distance(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Relative to the norm of what is expected; PSNR over its range."""
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    rms = float(np.sqrt(np.mean((a - b) ** 2)))
    return {
        "relative": float(np.linalg.norm(a - b) / np.linalg.norm(b)),
        "max_relative": float(np.abs(a - b).max() / np.abs(b).max()),
        "cosine": float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))),
        "psnr": 20 * math.log10((b.max() - b.min()) / rms) if rms else math.inf,
    }


def measured(run: Run, device: torch.device) -> float:
    """Median seconds of a call, waited for: over at least 5 of them and 1 s, 200 at most."""
    for _ in range(3):
        run()
    synchronize(device)
    times, begun = [], time.perf_counter()
    while len(times) < 5 or (len(times) < 200 and time.perf_counter() - begun < 1):
        started = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return median(times)


def without_gradients(run: Run) -> Run:
    """The call as samplers make it."""
    return torch.no_grad()(run)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def release(device: torch.device) -> None:
    """Give back what no engine uses any more."""
    import gc

    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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


def said(error: Exception) -> str:
    """An error in a few lines."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) < 700 else f"{text[:450]} ... {text[-250:]}"


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
    commands = {"export": export, "packages": packages, "parity": parity, "speed": speed, "rtx": rtx}
    tyro.extras.subcommand_cli_from_dict(commands)
