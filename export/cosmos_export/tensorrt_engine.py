"""Engines of TensorRT and TensorRT for RTX, ready to run.

Never run by us: no engine of this project has been executed. Building is tested for real, on the CPU; what is here is
tested against a stand-in for the libraries that has their calls and their rules, and the names of their calls against
the libraries themselves.
"""

import contextlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cosmos_export.engines import check_inputs, failure
from cosmos_export.errors import BundleError, EngineFailure
from cosmos_export.manifest import read_manifest
from cosmos_export.nvidia import Cuda, load_tensorrt, messages
from cosmos_export.plans import FOLDER, card_of, plan_of, read_card, read_plan

_DTYPES = {"F32": "FLOAT", "F16": "HALF", "BF16": "BF16", "F8_E4M3": "FP8", "I8": "INT8"}
"""Names of types in a safetensors file and in TensorRT."""


def open_plan(
    folder: Path,
    graph: str,
    variant: str,
    profile: str,
    *,
    cuda: Callable[[], Cuda] = Cuda,
    load: Callable[[str], ModuleType] = load_tensorrt,
) -> "TensorRTEngine":
    """The engine of a bundle's graph that runs here.

    An engine of the same graph with other weights takes those of the bundle, if it was built to be refitted.

    Raises:
        BundleError: if there is none; it says what was found, why that does not run, and how to build one.
        EngineFailure: if memory is short.
    """
    manifest = read_manifest(folder, files=())
    form = manifest["graphs"][graph]["variants"][variant]
    weights = form["weights"]
    build = f"build it by `cosmos-ref build-engine {folder} --graph {graph} --variant {variant} --profile {profile}`"
    cards = sorted((folder / FOLDER).glob(f"{graph}.{variant}.{profile}.*.json"))
    if not cards:
        raise BundleError(f"{folder / FOLDER} has no engine of {graph} {variant} for the profile {profile!r}: {build}")
    device, reasons = cuda(), []
    for card in cards:
        plan = plan_of(read_card(card))
        try:
            found = plan.misfits(load(plan.library).__version__, device.gpu())
        except BundleError as error:
            found = [str(error)]
        if plan.graph_sha256 != manifest["files"][form["file"]]:
            found.append("the graph was exported again since then")
        other_weights = plan.weights_sha256 != (manifest["files"][weights] if weights else None)
        if other_weights and not plan.refittable:
            found.append("it holds other weights, and was not built with --refittable")
        if not found:
            engine = TensorRTEngine(card.with_suffix(".plan"), cuda=lambda: device, load=load)
            if other_weights:
                engine.refit(folder / weights)
            return engine
        reasons.append(f"{card.with_suffix('.plan').name}: {' and '.join(found)}")
    raise BundleError(f"no engine of {graph} {variant} runs here ({'; '.join(reasons)}): {build}")


class TensorRTEngine:
    """One engine on the current GPU: arrays by name in, one array out.

    Buffers stay on the device and grow with the largest shapes seen. Where the same shapes come again, the work is
    recorded as a CUDA graph and replayed from then on: at the third call with them, the first being the warm-up.

    Args:
        path: the plan; its card lies beside it.
        cuda: CUDA on the current GPU.
        load: the module of a library.
        replay: record and replay where shapes repeat.
        weight_budget: bytes of weights to keep on the device, for an engine that was built with weight streaming; else
            as many as TensorRT sees fit.

    Raises:
        BundleError: if there is no GPU or no TensorRT, or the engine is altered, or of another GPU or version.
        EngineFailure: if memory is short.
    """

    def __init__(
        self,
        path: Path,
        *,
        cuda: Callable[[], Cuda] = Cuda,
        load: Callable[[str], ModuleType] = load_tensorrt,
        replay: bool = True,
        weight_budget: int | None = None,
    ) -> None:
        self.plan = read_plan(path)
        self._trt, self._cuda = load(self.plan.library), cuda()
        gpu = self._cuda.gpu()
        if reasons := self.plan.misfits(self._trt.__version__, gpu):
            raise BundleError(f"{path} does not run here: {' and '.join(reasons)}; build it again by {_rebuild(path)}")
        self.name = f"{self.plan.builder}, {gpu.name}"
        self._logger = messages(self._trt)
        self._runtime = self._trt.Runtime(self._logger)
        self._engine: Any = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise self._failed("loading it", {})
        if self.plan.weight_streaming:
            engine = self._engine
            engine.weight_streaming_budget_v2 = (
                engine.get_weight_streaming_automatic_budget() if weight_budget is None else weight_budget
            )
        elif weight_budget is not None:
            raise BundleError(f"{path} was not built with --weight-streaming: leave weight_budget out, or build it so")
        self._own_graphs = replay and hasattr(self._trt, "CudaGraphStrategy")  # RTX records by itself
        self._replay = replay and not self._own_graphs
        self._context: Any = self._new_context()
        self._stream = self._cuda.stream()
        self._buffers: dict[str, tuple[int, int]] = {}
        """Address and bytes of every input and output."""
        self._shapes: dict[str, tuple[int, ...]] = {}
        """Of the inputs of the last call."""
        self._calls = 0
        """With those shapes, so far."""
        self._recording: Any = None

    def __call__(self, **inputs: np.ndarray) -> np.ndarray:
        """The graph's output.

        Raises:
            BundleError: if an input is not one that the engine takes, or is outside its profile.
            EngineFailure: if running failed.
        """
        sizes = check_inputs(self.plan.graph, self.plan.inputs, inputs)
        self._check_range(sizes)
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        output = self.plan.outputs[0]
        with self._translated(inputs):
            shapes = {name: array.shape for name, array in arrays.items()}
            if shapes != self._shapes:
                self._reshape(arrays)
                self._shapes, self._calls = shapes, 0
            for name, array in arrays.items():
                self._cuda.upload(array, self._buffers[name][0], self._stream)
            self._execute()
            result = np.empty(tuple(self._context.get_tensor_shape(output["name"])), output["dtype"])
            self._cuda.download(self._buffers[output["name"]][0], result, self._stream)
            self._cuda.wait(self._stream)
            self._calls += 1
        return result

    def warm_up(self) -> None:
        """Run at the profile's usual sizes until a call takes as long as any later one."""
        ones = {port["name"]: np.ones(port["opt"], port["dtype"]) for port in self.plan.inputs}
        for _ in range(3 if self._replay else 1):
            self(**ones)

    def refit(self, weights: Path) -> None:
        """Replace the engine's weights by those of a safetensors file, by their names.

        Raises:
            BundleError: if the engine cannot be refitted, or a tensor is missing or another one.
            EngineFailure: if refitting failed.
        """
        if not self.plan.refittable:
            raise BundleError(f"the engine of {self.plan.graph} holds its weights for good: build it with --refittable")
        refitter = self._trt.Refitter(self._engine, self._logger)
        names, given = set(refitter.get_all_weights()), dict(read_safetensors(weights))
        if not names & set(given):
            raise BundleError(f"{weights} has no tensor of the engine: take the weights of a bundle of the same model")
        for name in sorted(names & set(given)):
            dtype, array = given[name]
            if dtype not in _DTYPES:
                raise BundleError(f"{weights}: {name} is {dtype}, which TensorRT does not know")
            kind = getattr(self._trt.DataType, _DTYPES[dtype])
            expected = refitter.get_weights_prototype(name)
            if (kind, array.size) != (expected.dtype, expected.size):
                told = f"{dtype} with {array.size} values"
                raise BundleError(
                    f"{weights}: {name} is {told}, in the engine {expected.dtype} with {expected.size}: "
                    "take the weights of the same variant of the same model"
                )
            if not refitter.set_named_weights(name, self._trt.Weights(kind, array.ctypes.data, array.size)):
                raise BundleError(f"{weights}: TensorRT does not take {name} ({self._last_error()})")
        if missing := refitter.get_missing_weights():
            raise BundleError(f"{weights} lacks {', '.join(sorted(missing)[:3])}: take the weights of the same model")
        self._forget()  # nothing that was recorded with the old weights is replayed
        if not refitter.refit_cuda_engine():
            raise self._failed("refitting it", {})

    def close(self) -> None:
        """Give the device's memory back. The engine cannot be called afterwards."""
        self._forget()
        for address, _ in self._buffers.values():
            self._cuda.free(address)
        self._buffers.clear()
        self._context = self._engine = None

    def _new_context(self) -> Any:
        if self._own_graphs:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            size = getattr(self._engine, "device_memory_size_v2", 0) / 2**30
            raise EngineFailure(
                f"{self.plan.graph} found no room for its {size:.1f} GiB of working memory on {self.name} "
                f"({self._last_error()}): build it for a smaller profile, or with --weight-streaming"
            )
        return context

    def _check_range(self, sizes: Mapping[str, int]) -> None:
        for port in self.plan.inputs:
            for dim, low, high in zip(port["dims"], port["min"], port["max"], strict=True):
                if isinstance(dim, str) and not low <= sizes[dim] <= high:
                    accepted = f"{low} to {high}" if low < high else f"{low}"
                    raise BundleError(
                        f"{self.plan.graph}: {dim} is {sizes[dim]}; the engine of the profile {self.plan.profile!r} "
                        f"takes {accepted}: open one of a profile that holds it, or build one"
                    )

    def _reshape(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Tell the engine its inputs' shapes, and where inputs and output lie."""
        self._forget()
        context = self._context
        for name, array in arrays.items():
            if not context.set_input_shape(name, array.shape):
                raise self._failed("setting its shapes", arrays)
        if unknown := context.infer_shapes():
            raise EngineFailure(f"{self.plan.graph}: the sizes of {', '.join(unknown)} do not follow from its inputs")
        output = self.plan.outputs[0]
        sizes = {name: array.nbytes for name, array in arrays.items()}
        shape = tuple(context.get_tensor_shape(output["name"]))
        sizes[output["name"]] = int(np.prod(shape)) * np.dtype(output["dtype"]).itemsize
        for name, size in sizes.items():
            address, held = self._buffers.get(name, (0, 0))
            if size > held:
                if held:
                    del self._buffers[name]
                    self._cuda.free(address)
                address = self._cuda.allocate(size)
                self._buffers[name] = address, size
            context.set_tensor_address(name, address)

    def _execute(self) -> None:
        if self._replay and self._calls >= 2:
            if self._recording is None:
                self._cuda.begin_recording(self._stream)
                try:
                    self._enqueue()
                finally:
                    self._recording = self._cuda.end_recording(self._stream)
            self._cuda.replay(self._recording, self._stream)
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise RuntimeError(self._last_error())

    def _forget(self) -> None:
        if self._recording is not None:
            self._cuda.drop(self._recording)
            self._recording = None
        self._shapes = {}

    @contextlib.contextmanager
    def _translated(self, inputs: Mapping[str, np.ndarray]) -> Iterator[None]:
        """Errors of the libraries, in words that say what to do. What failed half-way is begun anew."""
        try:
            yield
        except BundleError:
            raise
        except Exception as error:
            self._forget()
            raise failure(self.plan.graph, self.name, inputs, error) from error

    def _failed(self, doing: str, inputs: Mapping[str, np.ndarray]) -> EngineFailure:
        return failure(self.plan.graph, self.name, inputs, RuntimeError(f"{doing}: {self._last_error()}"))

    def _last_error(self) -> str:
        return self._logger.errors[-1] if self._logger.errors else "TensorRT does not say why"


def read_safetensors(path: Path) -> Iterator[tuple[str, tuple[str, np.ndarray]]]:
    """Name, type and values of every tensor of a file, which is mapped, not read; numpy lacks some of the types.

    Raises:
        BundleError: if it is no such file.
    """
    try:
        data = np.memmap(path, np.uint8, "r")
        (length,) = struct.unpack("<Q", data[:8].tobytes())
        header = json.loads(data[8 : 8 + length].tobytes())
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                count = int(np.prod(entry["shape"], dtype=np.int64))
                values = data[begin:end].view(np.dtype(f"V{(end - begin) // max(count, 1) or 1}"))
                yield name, (entry["dtype"], values)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise BundleError(f"{path} is no safetensors file that can be read: {error!r}") from error


def _rebuild(path: Path) -> str:
    plan = plan_of(read_card(card_of(path)))
    rtx = " --rtx" if plan.library == "tensorrt_rtx" else ""
    return (
        f"`cosmos-ref build-engine BUNDLE --graph {plan.graph} --variant {plan.variant} --profile {plan.profile}{rtx}`"
    )
