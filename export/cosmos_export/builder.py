"""From a graph of a bundle to an engine, by TensorRT or by TensorRT for RTX, which builds without a GPU too.

Precision is in the graph: engines are strongly typed, and TF32 is off.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cosmos_export.complaints import complain
from cosmos_export.engines import is_out_of_memory
from cosmos_export.errors import BundleError, EngineFailure
from cosmos_export.manifest import check_files, read_manifest
from cosmos_export.nvidia import LIBRARIES, Cuda, Gpu, messages
from cosmos_export.plans import FOLDER, Plan, write_atomically

Progress = Callable[[str, int, int], None]
"""Is told a phase of the build, how many of its steps are done, and of how many."""


@dataclass(frozen=True)
class Options:
    """How an engine is built."""

    weight_streaming: bool = False
    """Let weights wait in the CPU's memory when it runs."""
    refittable: bool = False
    """Let its weights be replaced, by their names."""
    optimization_level: int = 3
    """From 0 (soon built) to 5 (long tried)."""
    timing_cache: Path | None = None
    """File of measured kernels, read and written; else one beside the engines. TensorRT for RTX has none."""


def build_engine(
    bundle: Path,
    graph: str,
    variant: str,
    profile: str,
    trt: ModuleType,
    *,
    out: Path | None = None,
    capability: str | None = None,
    options: Options = Options(),
    gpu: Callable[[], Gpu] = lambda: Cuda().gpu(),
    progress: Progress = lambda phase, step, steps: None,
) -> Path:
    """Build one graph for one profile; the plan lies in `out`, its card beside it.

    Args:
        bundle: the folder.
        graph: denoiser, tokenizer_encoder or tokenizer_decoder.
        variant: form of the graph.
        profile: sizes that the engine takes.
        trt: the module `tensorrt` (10 or 11) or `tensorrt_rtx`.
        out: folder for engines; else that in the bundle.
        capability: compute capability to build for; only TensorRT for RTX does, and needs no GPU then.
        options: how to build.
        gpu: tells the GPU to build for, where no capability is given.
        progress: is told how far the build is.

    Raises:
        BundleError: if something that was asked for cannot be had, or the graph is refused.
        EngineFailure: if the build fails.
    """
    manifest = read_manifest(bundle, files=())
    form = find_form(manifest, bundle, graph, variant, profile)
    entry, model = manifest["graphs"][graph], bundle / form["file"]
    rtx = trt.__name__ == "tensorrt_rtx"
    _check(trt, rtx, capability, options)
    needed = [file for file in (form["file"], form["weights"]) if file]
    check_files(bundle, manifest["files"], needed)
    card = _card(trt, rtx, gpu) if capability is None else None
    out = bundle / FOLDER if out is None else out

    logger = messages(trt)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # a flag in 10, the only way in 11
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):  # from the file, for the weights beside it
        errors = [parser.get_error(n) for n in range(parser.num_errors)]
        told = [dict(node=e.node_name(), operator=e.node_operator(), why=e.desc()) for e in errors]
        raise BundleError(f"{_library(trt)} does not take {model.name}: {complain(model, told)}")
    config = builder.create_builder_config()
    inputs = _set_profile(trt, builder, network, config, manifest, graph, profile)
    plan = Plan(
        graph=graph,
        variant=variant,
        profile=profile,
        library=trt.__name__,
        version=trt.__version__,
        capability=capability or (card.capability if card else ""),
        gpu=None if rtx or card is None else card.name,
        graph_sha256=manifest["files"][form["file"]],
        weights_sha256=manifest["files"][form["weights"]] if form["weights"] else None,
        refittable=options.refittable,
        weight_streaming=options.weight_streaming,
        optimization_level=options.optimization_level,
        inputs=inputs,
        outputs=[{key: port[key] for key in ("name", "dtype", "dims")} for port in entry["outputs"]],
        attentions=_attentions(network),
        kernels=None,
    )
    _set_flags(trt, config, options)
    if rtx:
        config.num_compute_capabilities = 1
        wanted = "CURRENT" if capability is None else f"SM{capability.replace('.', '')}"
        config.set_compute_capability(getattr(trt.ComputeCapability, wanted), 0)
    cache = None if rtx else _TimingCache(config, options.timing_cache or out / f"timing.{plan.target}.cache")
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    made = builder.build_serialized_network(network, config)
    if monitor.stopped is not None:
        raise monitor.stopped
    if made is None:
        raise _failed(trt, model.name, logger.errors)
    if cache is not None:
        cache.save()
    return replace(plan, kernels=logger.kernels).write(memoryview(made), out)


def find_form(manifest: Mapping[str, Any], bundle: Path, graph: str, variant: str, profile: str) -> Mapping[str, Any]:
    """The manifest's entry of a graph's variant that TensorRT takes.

    Raises:
        BundleError: if graph, variant or profile is not there.
    """
    if graph not in manifest["graphs"]:
        raise BundleError(f"{bundle} has no graph {graph!r}; it has: {', '.join(manifest['graphs'])}")
    forms = manifest["graphs"][graph]["variants"]
    able = [name for name, form in forms.items() if "tensorrt" in form["engines"]]
    if variant not in able:
        raise BundleError(f"{bundle} has no {graph} {variant!r} for TensorRT; it has: {', '.join(able) or 'none'}")
    if profile not in manifest["profiles"]:
        raise BundleError(f"{bundle} has no profile {profile!r}; it has: {', '.join(manifest['profiles']) or 'none'}")
    return forms[variant]


def _check(trt: ModuleType, rtx: bool, capability: str | None, options: Options) -> None:
    """Refuse what a library cannot do, before any work."""
    if not 0 <= options.optimization_level <= 5:
        raise BundleError(f"optimization level {options.optimization_level} is not accepted: give one from 0 to 5")
    if capability is not None:
        if not rtx:
            raise BundleError(f"{_library(trt)} builds for the GPU that it runs on: leave the compute capability out")
        able = capabilities(trt)
        if capability not in able:
            raise BundleError(f"{_library(trt)} does not build for {capability!r}; accepted: {', '.join(able)}")
        if options.refittable:
            raise BundleError(
                f"{_library(trt)} compiles a refittable engine on the GPU itself: build there, without a compute "
                "capability, or without --refittable"
            )
    if rtx and options.timing_cache is not None:
        raise BundleError(f"{_library(trt)} measures nothing when it builds: leave the timing cache out")


def _card(trt: ModuleType, rtx: bool, gpu: Callable[[], Gpu]) -> Gpu:
    try:
        return gpu()
    except BundleError as error:
        if not rtx:
            raise
        able = ", ".join(capabilities(trt))
        raise BundleError(f"{error}; or give --compute-capability to build for a GPU elsewhere: {able}") from error


def capabilities(trt: ModuleType) -> list[str]:
    """Compute capabilities that TensorRT for RTX builds for without a GPU."""
    names = [name[2:] for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return [f"{name[:-1]}.{name[-1]}" for name in names]


def _set_profile(
    trt: ModuleType, builder: Any, network: Any, config: Any, manifest: Mapping[str, Any], graph: str, profile: str
) -> list[dict[str, Any]]:
    """Bound the sizes of all inputs; they are told as the engine sees them, and must be those of the manifest."""
    ranges, limits = manifest["profiles"][profile], builder.create_optimization_profile()
    declared = {port["name"]: port for port in manifest["graphs"][graph]["inputs"]}
    inputs = []
    for tensor in (network.get_input(n) for n in range(network.num_inputs)):
        dims = [tensor.get_dimension_name(n) if size < 0 else size for n, size in enumerate(tensor.shape)]
        dtype = np.dtype(trt.nptype(tensor.dtype)).name
        port = declared.get(tensor.name)
        if port is None or (dims, dtype) != (list(port["dims"]), port["dtype"]):
            raise BundleError(f"{graph} takes {tensor.name} {dtype} {dims}; its manifest says {port}: export it again")
        shapes = {w: [ranges[w][dim] if isinstance(dim, str) else dim for dim in dims] for w in ("min", "opt", "max")}
        limits.set_shape(tensor.name, *shapes.values())
        inputs.append({"name": tensor.name, "dtype": dtype, "dims": dims} | shapes)
    if missing := set(declared) - {port["name"] for port in inputs}:
        raise BundleError(f"{graph} does not take {', '.join(sorted(missing))}, unlike its manifest: export it again")
    config.add_optimization_profile(limits)
    return inputs


def _set_flags(trt: ModuleType, config: Any, options: Options) -> None:
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layers are told by name
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is to be float32
    if options.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)


def _attentions(network: Any) -> int:
    kinds = [str(network.get_layer(n).type) for n in range(network.num_layers)]
    return sum(kind.endswith("ATTENTION_INPUT") for kind in kinds)


class _TimingCache:
    """What was measured of kernels, in a file; engines of one GPU share it."""

    def __init__(self, config: Any, path: Path) -> None:
        self._config, self._path = config, path
        try:
            stored = path.read_bytes() if path.is_file() else b""
        except OSError as error:
            raise BundleError(f"the timing cache {path} cannot be read: {error}") from error
        cache = config.create_timing_cache(stored)
        if cache is None or not config.set_timing_cache(cache, False):
            raise BundleError(f"the timing cache {path} is of another GPU or version: delete it, or name another one")

    def save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, memoryview(self._config.get_timing_cache().serialize()))


def _monitor(trt: ModuleType, progress: Progress) -> Any:
    """Tells how far a build is. What is raised on the way stops the build, and is kept for its caller."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.stopped: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                progress(phase_name, step + 1, self.steps.get(phase_name, step + 1))
            except BaseException as error:  # Ctrl-C too: it must not pass through a library of C++
                self.stopped = error
            return self.stopped is None

    return Monitor()


def _failed(trt: ModuleType, file: str, errors: Sequence[str]) -> EngineFailure:
    why = errors[0] if errors else "it does not say why"
    advice = ""
    if any(is_out_of_memory(RuntimeError(error)) for error in errors):
        advice = ": take a smaller profile, --weight-streaming or a lower --optimization-level"
    elif "Attention operation was not supported" in why:
        advice = ": fused attention is for 16 bits; a graph in float32 is exported at opset 22, without it"
    return EngineFailure(f"{_library(trt)} cannot build {file}{advice} ({why})")


def _library(trt: ModuleType) -> str:
    return f"{LIBRARIES.get(trt.__name__, trt.__name__)} {trt.__version__}"
