"""What NVIDIA's libraries are asked for: TensorRT as a module, and the few calls to CUDA that running an engine takes.

All that needs a GPU goes through here, so that tests can put something else in its place.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from cosmos_export.errors import BundleError, EngineFailure

LIBRARIES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
"""Modules that build and run engines, and their names."""


class NotInstalled(BundleError):
    """A library that is not there, or does not load."""


@dataclass(frozen=True)
class Gpu:
    """A card: its name, its compute capability and its memory in bytes."""

    name: str
    capability: str
    memory: int

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def load_tensorrt(library: str) -> ModuleType:
    """The module `tensorrt` or `tensorrt_rtx`.

    Raises:
        NotInstalled: if it is not there, or its libraries are not: the package `tensorrt` alone does not bring them.
    """
    try:
        return importlib.import_module(library)
    except (ImportError, OSError) as error:
        extra = "rtx" if library == "tensorrt_rtx" else "tensorrt"
        raise NotInstalled(
            f"{LIBRARIES[library]} cannot be loaded here ({error}): pip install 'cosmos-export[{extra}]'"
        ) from error


def messages(trt: ModuleType) -> Any:
    """A logger of TensorRT that prints nothing: `errors` are kept, and the `kernels` of the engine that was built."""

    class Messages(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.kernels: dict[str, int] | None = None

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(msg)
            elif msg.startswith("Layers:"):
                self.kernels = count_kernels(msg.splitlines())

    return Messages()


def count_kernels(layers: Sequence[str]) -> dict[str, int]:
    """Kernels that matter, of the layers as TensorRT lists them when it has built an engine."""
    products = [line for line in layers if "LayerType: gemm," in line]
    inputs = [line.partition("Outputs:")[0] for line in products]
    return {
        "fused_attentions": sum("mha" in line.partition(",")[0] for line in layers),
        "products": len(products),
        "products_in_8_bits": sum("Datatype: Int8" in line or "Datatype: FP8" in line for line in inputs),
    }


class Cuda:
    """CUDA's runtime on the current GPU. Arrays of numpy, addresses and streams as numbers.

    Raises:
        NotInstalled: if the package is not there.
        BundleError: if there is no GPU, or no driver.
    """

    def __init__(self) -> None:
        try:
            self._runtime: Any = importlib.import_module("cuda.bindings.runtime")
        except (ImportError, OSError) as error:
            raise NotInstalled(
                f"running an engine needs CUDA for Python ({error}): pip install cuda-bindings"
            ) from error
        try:
            self._device = self._call("cudaGetDevice") if self._call("cudaGetDeviceCount") else None
        except EngineFailure as error:
            raise BundleError(
                f"no NVIDIA GPU can be used here ({error}): run this where nvidia-smi lists one"
            ) from error
        if self._device is None:
            raise BundleError("no NVIDIA GPU was found here: run this where nvidia-smi lists one")

    def _call(self, function: str, *arguments: Any) -> Any:
        """A call of CUDA, without its status.

        Raises:
            EngineFailure: if the status is an error.
        """
        status, *values = getattr(self._runtime, function)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            _, words = self._runtime.cudaGetErrorString(status)
            raise EngineFailure(f"{function}: {status.name}, {words.decode()}")
        return values[0] if values else None

    def gpu(self) -> Gpu:
        """The card in use."""
        card = self._call("cudaGetDeviceProperties", self._device)
        name = card.name.decode() if isinstance(card.name, bytes) else card.name
        return Gpu(name.rstrip("\0"), f"{card.major}.{card.minor}", card.totalGlobalMem)

    def stream(self) -> int:
        """A queue of work."""
        return int(self._call("cudaStreamCreate"))

    def wait(self, stream: int) -> None:
        """Wait until all work of a stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def allocate(self, size: int) -> int:
        """Bytes on the device."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give bytes back."""
        self._call("cudaFree", address)

    def upload(self, array: np.ndarray, address: int, stream: int) -> None:
        """Copy an array, contiguous, to the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def download(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy from the device into an array, contiguous."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def begin_recording(self, stream: int) -> None:
        """From now on, what is put into the stream is recorded, not run."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_recording(self, stream: int) -> Any:
        """What was recorded, ready to be replayed."""
        graph = self._call("cudaStreamEndCapture", stream)
        recording = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return recording

    def replay(self, recording: Any, stream: int) -> None:
        """Run a recording."""
        self._call("cudaGraphLaunch", recording, stream)

    def drop(self, recording: Any) -> None:
        """Free a recording."""
        self._call("cudaGraphExecDestroy", recording)
