"""A graph, ready to run: one protocol, and ONNX Runtime behind it."""

import contextlib
import ctypes
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np

from cosmos_export.errors import BundleError, EngineFailure

CPU = "CPUExecutionProvider"
PROVIDERS = {
    "cpu": (CPU,),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}
"""ONNX Runtime's names of what runs the operators; the second takes what the first cannot."""
Optimise = Literal["all", "basic", "none"]
"""How far ONNX Runtime rewrites the graph."""
Ports = Sequence[Mapping[str, Any]]
"""Inputs of a graph as in the manifest: `name`, `dims` (a number, or the name of a size that varies), `dtype`."""

_PACKAGES = [
    "onnxruntime",
    *(f"onnxruntime-{kind}" for kind in ("gpu", "directml", "openvino", "qnn", "rocm", "training")),
]
"""All of them bring the same import name, so that the files of one lie over those of another."""
_DTYPES = {"float": "float32", "double": "float64"}
_OUT_OF_MEMORY = re.compile(r"out of memory|bad_alloc|failed to allocate|OUT_OF_MEMORY|cudaErrorMemoryAllocation", re.I)
_WEIGHTY = {"MatMul", "Gemm", "Conv", "Softmax", "Attention", "MultiHeadAttention", "FusedMatMul", "FusedConv"}
"""Operators that must not be left to the CPU; those that only reckon with sizes may."""


class Engine(Protocol):
    """One graph, ready to run: arrays by name in, one array out."""

    name: str
    """Library, version and device."""

    def __call__(self, **inputs: np.ndarray) -> np.ndarray:
        """The graph's output.

        Raises:
            BundleError: if an input is not one that the graph takes.
            EngineFailure: if running failed.
        """
        ...


def check_inputs(graph: str, ports: Ports, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The sizes of every dimension that varies, after checking names, types and shapes.

    Raises:
        BundleError: naming the input, what it is and what is accepted.
    """
    names = [port["name"] for port in ports]
    if set(inputs) != set(names):
        raise BundleError(f"{graph} takes the inputs {', '.join(names)}; it was given {', '.join(inputs) or 'none'}")
    sizes: dict[Any, int] = {}
    for port in ports:
        name, dims, array = port["name"], port["dims"], inputs[port["name"]]
        if not isinstance(array, np.ndarray) or array.dtype != port["dtype"]:
            found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise BundleError(f"{graph}: input {name!r} is {found}; accepted: an array of {port['dtype']}")
        shape = f"{graph}: input {name!r} has the shape {array.shape}; accepted: {' x '.join(map(str, dims))}"
        if array.ndim != len(dims):
            raise BundleError(shape)
        for dim, size in zip(dims, array.shape, strict=True):
            if isinstance(dim, int) and size != dim:
                raise BundleError(shape)
            if size != sizes.setdefault(dim, size):
                raise BundleError(f"{shape}, and {dim} is {sizes[dim]} in the inputs before it")
    return {dim: size for dim, size in sizes.items() if isinstance(dim, str)}


def failure(graph: str, engine: str, inputs: Mapping[str, np.ndarray], error: BaseException) -> EngineFailure:
    """What a library said when it failed, in words that say what to do."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if is_out_of_memory(error):
        shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in inputs.items())
        return EngineFailure(
            f"{graph} ran out of memory on {engine} ({shapes}): lower the number of frames, the height or the width; "
            "guidance 0 halves the batch; a smaller variant (fp16, bf16, int8) needs less for its weights"
        )
    return EngineFailure(f"{graph} failed on {engine}: {lines[0]}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library failed for want of memory; it has no error of its own for that."""
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def onnx_runtime() -> ModuleType:
    """The package, after making sure that there is one of it.

    Raises:
        BundleError: if there is none, or two that overwrite each other's files.
    """
    found = {name: package.version for name in _PACKAGES for package in metadata.distributions(name=name)}
    if len(found) > 1:
        listed = " and ".join(f"{name} {version}" for name, version in sorted(found.items()))
        raise BundleError(
            f"{listed} are both installed, and overwrite each other's files: "
            f"pip uninstall {' '.join(sorted(found))}, then install one of them"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise BundleError(f"ONNX Runtime cannot be loaded ({error}): pip install onnxruntime, or -gpu") from error
    return onnxruntime


def providers_of(name: str) -> tuple[str, ...]:
    """ONNX Runtime's providers for `cpu`, `cuda`, `tensorrt`, or for a name of its own.

    Raises:
        BundleError: if it is none of them.
    """
    if name in PROVIDERS:
        return PROVIDERS[name]
    if name.endswith("ExecutionProvider"):
        return (name,)
    raise BundleError(f"unknown provider {name!r}; accepted: {', '.join(PROVIDERS)}, or ONNX Runtime's own names")


def open_engine(
    path: Path,
    providers: Sequence[str] = (CPU,),
    threads: int = 0,
    *,
    optimise: Optimise = "all",
    fixed_shapes: bool | Mapping[str, int] = False,
    fallback: bool = False,
) -> "OnnxRuntimeEngine":
    """A graph in ONNX Runtime.

    Args:
        path: the .onnx file; its weights are where it says.
        providers: of which the first that can takes each operator.
        threads: of the CPU; 0 is one per core.
        optimise: how far ONNX Runtime rewrites the graph; some quantised graphs bear less than all of it.
        fixed_shapes: all calls have the shapes of the first one: inputs and output keep their place on the device, and
            CUDA providers record the call once and replay it. Sizes by name let them be folded into the graph.
        fallback: let the CPU take over where a provider cannot be had; else that is refused.

    Raises:
        BundleError: if the graph cannot be opened, or a provider is not there, does not load or takes no operator.
        EngineFailure: if memory is short.
    """
    ort = onnx_runtime()
    missing = [name for name in providers if name not in ort.get_available_providers()]
    if missing and not fallback:
        there = ", ".join(ort.get_available_providers())
        raise BundleError(f"ONNX Runtime {ort.__version__} has no {', '.join(missing)}; it has: {there}")
    wanted = [name for name in providers if name not in (*missing, CPU)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.graph_optimization_level = {
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }[optimise]
    if isinstance(fixed_shapes, Mapping):
        for name, size in fixed_shapes.items():
            options.add_free_dimension_override_by_name(name, size)
    if wanted:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    listed = [(name, _provider_options(name, bool(fixed_shapes))) for name in [*wanted, CPU]]
    ort.set_default_logger_severity(4)  # a provider that does not load is told below, in one line
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # and so are libraries
            if wanted and hasattr(ort, "preload_dlls"):
                ort.preload_dlls()  # those that pip installed
            session = ort.InferenceSession(path, options, providers=listed)
    except Exception as error:  # its kinds are not public
        if is_out_of_memory(error):
            raise failure(path.stem, f"ONNX Runtime {ort.__version__}", {}, error) from error
        raise BundleError(f"{path} cannot be opened by ONNX Runtime {ort.__version__}: {error}") from error
    finally:
        ort.set_default_logger_severity(2)  # as it is from the start
    if wanted and not fallback:
        _check_providers(session, wanted, path)
    return OnnxRuntimeEngine(path.stem, session, f"ONNX Runtime {ort.__version__}", bool(fixed_shapes))


def _provider_options(provider: str, graphs: bool) -> dict[str, str]:
    if provider == "CUDAExecutionProvider":
        return {"use_tf32": "0"} | ({"enable_cuda_graph": "1"} if graphs else {})  # float32 is to be float32
    if provider == "TensorrtExecutionProvider":
        return {"trt_cuda_graph_enable": "1"} if graphs else {}
    return {}


def _check_providers(session: Any, wanted: Sequence[str], path: Path) -> None:
    """ONNX Runtime goes on without a provider that does not load, and without a word."""
    for name in wanted:
        if name not in session.get_providers():
            raise BundleError(_not_loaded(name))
    left = left_to_the_cpu(getattr(session, "get_provider_graph_assignment_info", list)())  # since 1.24
    if left:
        raise BundleError(
            f"{wanted[0]} leaves {len(left)} operators of {path.name} to the CPU ({', '.join(left[:3])}): "
            "take another variant, or --fallback to let it"
        )


def _not_loaded(provider: str) -> str:
    """Why a provider that ONNX Runtime was built with is not there, and what to do."""
    import onnxruntime

    kind = provider.removesuffix("ExecutionProvider").lower()
    library = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{kind}.so"
    reason = "no GPU that it can use was found"
    for needed in ("libcuda.so.1", str(library)):
        try:
            ctypes.CDLL(needed)
        except OSError as error:
            reason = str(error)
            break
    return (
        f"{provider} cannot be loaded ({reason}): it needs an NVIDIA driver and pip install "
        f"'onnxruntime-gpu[cuda,cudnn]'{', and the TensorRT libraries' if kind == 'tensorrt' else ''}; "
        "or take --provider cpu, or --fallback"
    )


def left_to_the_cpu(assignments: Iterable[Any]) -> list[str]:
    """Operators with real work in them that ONNX Runtime gave to the CPU."""
    nodes = [node for part in assignments if part.ep_name == CPU for node in part.get_nodes()]
    return [f"{node.op_type} {node.name}" for node in nodes if node.op_type in _WEIGHTY]


class OnnxRuntimeEngine:
    """A session of ONNX Runtime, its inputs checked before and its errors translated."""

    def __init__(self, graph: str, session: Any, library: str, fixed_shapes: bool):
        self.graph = graph
        self.session = session
        self.name = f"{library}, {session.get_providers()[0]}"
        self.ports = [
            {"name": port.name, "dims": tuple(port.shape), "dtype": _dtype(port.type)} for port in session.get_inputs()
        ]
        self._fixed = fixed_shapes
        self._bound: tuple[Any, dict[str, Any], Any] | None = None

    def __call__(self, **inputs: np.ndarray) -> np.ndarray:
        """The graph's output.

        Raises:
            BundleError: if an input is not one that the graph takes, or another shape than the first call's if fixed.
            EngineFailure: if running failed.
        """
        check_inputs(self.graph, self.ports, inputs)
        if self._bound is not None:
            self._check_bound(inputs)
        try:
            return self._replay(inputs) if self._fixed else np.asarray(self.session.run(None, inputs)[0])
        except Exception as error:  # its kinds are not public
            raise failure(self.graph, self.name, inputs, error) from error

    def _replay(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Run with inputs and output where they were at the first call."""
        if self._bound is None:
            return self._bind(inputs)
        binding, places, output = self._bound
        for name, array in inputs.items():
            places[name].update_inplace(np.ascontiguousarray(array))
        self.session.run_with_iobinding(binding)
        return np.array(output.numpy())  # a copy: the next call writes to the same place

    def _bind(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Run once, to learn the output's size; give inputs and output their places."""
        import onnxruntime as ort

        not_recorded = ort.RunOptions()
        not_recorded.add_run_config_entry("gpu_graph_id", "-1")
        first = np.asarray(self.session.run(None, inputs, not_recorded)[0])
        device = "cuda" if self.session.get_providers()[0] in PROVIDERS["tensorrt"] else "cpu"
        places = {name: ort.OrtValue.ortvalue_from_numpy(array.copy(), device, 0) for name, array in inputs.items()}
        output = ort.OrtValue.ortvalue_from_numpy(first.copy(), device, 0)
        binding = self.session.io_binding()
        for name, place in places.items():
            binding.bind_ortvalue_input(name, place)
        binding.bind_ortvalue_output(self.session.get_outputs()[0].name, output)
        self._bound = binding, places, output
        return first

    def _check_bound(self, inputs: Mapping[str, np.ndarray]) -> None:
        assert self._bound is not None
        for name, place in self._bound[1].items():
            first = tuple(place.shape())
            if inputs[name].shape != first:
                raise BundleError(
                    f"{self.graph}: input {name!r} has the shape {inputs[name].shape}, and had {first} in the first "
                    "call; this engine was opened for fixed shapes: open another one"
                )


def _dtype(type_: str) -> str:
    """`float32` of ONNX Runtime's `tensor(float)`."""
    name = type_.removeprefix("tensor(").removesuffix(")")
    return _DTYPES.get(name, name)
