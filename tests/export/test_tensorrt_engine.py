"""An engine finds what it needs, refuses what does not fit, and keeps its buffers in order.

There is no GPU here. CUDA and TensorRT are stand-ins that keep the libraries' rules (an address must be allocated, a
shape must be in the profile, what is recorded does not run, a refit needs the engine's types); that their calls are
calls of the real libraries is a test of its own.
"""

import ctypes
import inspect
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cosmos_export import nvidia
from cosmos_export.errors import BundleError, EngineFailure
from cosmos_export.nvidia import Cuda, Gpu, NotInstalled
from cosmos_export.plans import FOLDER, Plan, card_of, read_plan
from cosmos_export.tensorrt_engine import TensorRTEngine, open_plan, read_safetensors
from safetensors.numpy import save_file

L4 = Gpu("NVIDIA L4", "8.9", 24 * 2**30)


class FakeCuda:
    """Memory as numbers to arrays; a stream that runs at once, or records."""

    def __init__(self, gpu=L4, room=10**6):
        self.card, self.room, self.memory, self.next = gpu, room, {}, 1000
        self.recording, self.recorded, self.replays = None, 0, 0

    def gpu(self):
        return self.card

    def stream(self):
        return 7

    def wait(self, stream):
        assert stream == 7 and self.recording is None, "a stream that records cannot be waited for"

    def allocate(self, size):
        if sum(held.nbytes for held in self.memory.values()) + size > self.room:
            raise EngineFailure("cudaMalloc: cudaErrorMemoryAllocation, out of memory")
        self.next += 1
        self.memory[self.next] = np.zeros(size, np.uint8)
        return self.next

    def free(self, address):
        del self.memory[address]

    def upload(self, array, address, stream):
        assert self.recording is None and array.flags.c_contiguous
        self.memory[address][: array.nbytes] = array.reshape(-1).view(np.uint8)

    def download(self, address, array, stream):
        array.reshape(-1).view(np.uint8)[:] = self.memory[address][: array.nbytes]

    def begin_recording(self, stream):
        self.recording = []

    def end_recording(self, stream):
        work, self.recording = self.recording, None
        self.recorded += 1
        return work

    def replay(self, recording, stream):
        self.replays += 1
        for run in recording:
            run()

    def drop(self, recording):
        recording.clear()


class Context:
    """y = weight * x + sigma of every sample."""

    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.runs = engine, {}, {}, 0

    def set_input_shape(self, name, shape):
        low, high = self.engine.limits[name]
        fits = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        self.shapes |= {name: tuple(shape)} if fits else {}
        return fits

    def infer_shapes(self):
        return sorted(set(self.engine.limits) - set(self.shapes))

    def get_tensor_shape(self, name):
        return list(self.shapes["x" if name == "y" else name])

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        if self.engine.broken:
            self.engine.logger.log(2, self.engine.broken)
            return False
        cuda, places = self.engine.cuda, dict(self.addresses)
        shape, weight = self.shapes["x"], dict(self.engine.weights)

        def run():
            x, sigma = (cuda.memory[places[name]].view(np.float32) for name in ("x", "sigma"))
            x, sigma = x[: np.prod(shape)].reshape(shape), sigma[: shape[0]].reshape(-1, 1)
            cuda.memory[places["y"]][: x.nbytes] = (weight["network.scale"] * x + sigma).reshape(-1).view(np.uint8)
            self.runs += 1

        (run() if cuda.recording is None else cuda.recording.append(run))
        return True


class Engine:
    streamable_weights_size = 100
    weight_streaming_budget_v2 = None
    device_memory_size_v2 = 3 * 2**30

    def __init__(self, cuda, logger, short=False):
        self.cuda, self.logger, self.short, self.broken = cuda, logger, short, ""
        self.limits = {"x": ((1, 2), (4, 8)), "sigma": ((1,), (4,))}
        self.weights = {"network.scale": np.float32(2)}

    def create_execution_context(self, config=None):
        self.config, self.context = config, None if self.short else Context(self)
        return self.context

    def get_weight_streaming_automatic_budget(self):
        return 40


class Refitter:
    def __init__(self, engine, logger):
        self.engine, self.given = engine, {}

    def get_all_weights(self):
        return ["network.scale", "val_3"]

    def get_weights_prototype(self, name):
        return SimpleNamespace(dtype="FLOAT", size=1)

    def set_named_weights(self, name, weights):
        self.given[name] = weights
        return True

    def get_missing_weights(self):
        return []

    def refit_cuda_engine(self):
        self.engine.weights |= {
            name: np.float32(ctypes.c_float.from_address(where).value) for name, (_, where, _) in self.given.items()
        }
        return True


class Library:
    """TensorRT with one engine in it. `rtx` adds what only TensorRT for RTX has."""

    def __init__(self, cuda, version="11.4.0", rtx=False, **engine):
        self.__version__ = version
        self.engine = None

        class ILogger:
            ERROR, INTERNAL_ERROR = 2, 1

        def deserialize(logger, plan):
            self.engine = Engine(cuda, logger, **engine) if plan == b"a plan" else None
            return self.engine

        self.ILogger = ILogger
        self.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: deserialize(logger, plan))
        self.Refitter = Refitter
        self.DataType = SimpleNamespace(FLOAT="FLOAT", HALF="HALF", BF16="BF16", FP8="FP8", INT8="INT8")
        self.Weights = lambda kind, address, count: (kind, address, count)
        if rtx:
            self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="capture")
            Engine.create_runtime_config = lambda engine: SimpleNamespace(cuda_graph_strategy=None)


PLAN = Plan(
    graph="denoiser",
    variant="bf16",
    profile="native",
    library="tensorrt",
    version="11.4.0",
    capability="8.9",
    gpu="NVIDIA L4",
    graph_sha256="ab" * 32,
    weights_sha256="cd" * 32,
    refittable=True,
    weight_streaming=False,
    optimization_level=3,
    inputs=[
        dict(name="x", dtype="float32", dims=["batch", "width"], min=[1, 2], opt=[2, 4], max=[4, 8]),
        dict(name="sigma", dtype="float32", dims=["batch"], min=[1], opt=[2], max=[4]),
    ],
    outputs=[dict(name="y", dtype="float32", dims=["batch", "width"])],
    attentions=0,
    kernels=None,
)


@pytest.fixture
def path(tmp_path):
    return PLAN.write(b"a plan", tmp_path)


def opened(path, cuda=None, **options):
    """The engine, its CUDA and its library."""
    cuda = cuda or FakeCuda()
    library = options.pop("library", None) or Library(cuda)
    return TensorRTEngine(path, cuda=lambda: cuda, load=lambda name: library, **options), cuda, library


def inputs(batch=2, width=4, seed=0):
    random = np.random.default_rng(seed)
    return {"x": random.normal(size=(batch, width)).astype("f4"), "sigma": random.normal(size=batch).astype("f4")}


def expected(given, scale=2):
    return np.float32(scale) * given["x"] + given["sigma"][:, None]


def changed(plan, **fields):
    return Plan(**{name: getattr(plan, name) for name in Plan.__dataclass_fields__} | fields)


@pytest.mark.parametrize("rtx", [False, True])
def test_every_call_is_the_graph_of_its_own_inputs_whatever_came_before(path, rtx):
    cuda = FakeCuda()
    engine, cuda, _ = opened(path, cuda, library=Library(cuda, rtx=rtx))
    sizes = [(2, 4)] * 5 + [(1, 2), (4, 8), (4, 8), (2, 4), (2, 4), (2, 4), (2, 4)]
    for seed, (batch, width) in enumerate(sizes):
        given = inputs(batch, width, seed)
        np.testing.assert_array_equal(engine(**given), expected(given))
    assert len(cuda.memory) == 3  # buffers grow, they do not pile up


def test_shapes_that_repeat_are_recorded_once_and_replayed(path):
    engine, cuda, library = opened(path)
    for seed in range(6):
        engine(**inputs(seed=seed))
    assert (cuda.recorded, cuda.replays, library.engine.context.runs) == (1, 4, 6)
    engine(**inputs(batch=1))  # another shape: what was recorded is of no use any more
    assert (cuda.recorded, cuda.replays) == (1, 4)


def test_nothing_is_recorded_where_it_is_not_wanted_or_the_library_does_it(path):
    engine, cuda, _ = opened(path, replay=False)
    for _ in range(5):
        engine(**inputs())
    assert cuda.recorded == 0
    cuda = FakeCuda()
    engine, cuda, library = opened(path, cuda, library=Library(cuda, rtx=True))
    for _ in range(5):
        engine(**inputs())
    assert cuda.recorded == 0 and library.engine.config.cuda_graph_strategy == "capture"


def test_after_the_warm_up_the_usual_shapes_are_replayed(path):
    engine, cuda, _ = opened(path)
    engine.warm_up()
    before = cuda.replays
    engine(**inputs())
    assert (cuda.recorded, cuda.replays) == (1, before + 1)


def test_an_array_that_is_not_contiguous_arrives_as_it_reads(path):
    engine, _, _ = opened(path)
    given = inputs(4, 4)
    turned = given | {"x": given["x"].T}
    np.testing.assert_array_equal(engine(**turned), expected(turned))


@pytest.mark.parametrize(
    "given, message",
    [
        (inputs(batch=5), "batch is 5.*'native' takes 1 to 4"),
        (inputs(width=1), "width is 1.*'native' takes 2 to 8"),
        (inputs() | {"x": np.zeros((2, 4))}, "'x' is float64; accepted: an array of float32"),
        ({"x": np.zeros((2, 4), "f4")}, "takes the inputs x, sigma"),
        (inputs() | {"sigma": np.zeros(3, "f4")}, "batch is 2 in the inputs before"),
    ],
    ids=["batch", "width", "dtype", "missing", "disagree"],
)
def test_a_call_that_does_not_fit_is_refused_and_the_next_one_runs(path, given, message):
    engine, _, _ = opened(path)
    with pytest.raises(BundleError, match=message):
        engine(**given)
    np.testing.assert_array_equal(engine(**inputs()), expected(inputs()))


def test_out_of_memory_says_what_to_lower_and_smaller_calls_still_run(path):
    engine, _, _ = opened(path, FakeCuda(room=100))
    np.testing.assert_array_equal(engine(**inputs(1, 2)), expected(inputs(1, 2)))
    with pytest.raises(EngineFailure, match=r"out of memory.*lower the number of frames"):
        engine(**inputs(4, 8))
    np.testing.assert_array_equal(engine(**inputs(1, 2)), expected(inputs(1, 2)))


def test_an_engine_without_room_for_its_work_says_how_much_and_what_to_do(path):
    cuda = FakeCuda()
    with pytest.raises(EngineFailure, match=r"3\.0 GiB.*smaller profile"):
        opened(path, cuda, library=Library(cuda, short=True))


def test_what_tensorrt_says_of_a_failed_call_is_told(path):
    engine, _, library = opened(path)
    library.engine.broken = "Error Code 1: an illegal memory access"
    with pytest.raises(EngineFailure, match="illegal memory access"):
        engine(**inputs())


@pytest.mark.parametrize(
    "plan, gpu, version, message",
    [
        (PLAN, Gpu("NVIDIA H200", "9.0", 1), "11.4.0", "NVIDIA L4, compute capability 8.9, here is NVIDIA H200"),
        (PLAN, Gpu("NVIDIA L40", "8.9", 1), "11.4.0", "built for NVIDIA L4"),
        (PLAN, L4, "10.15.1", "built by TensorRT 11.4.0, here is 10.15.1"),
        (changed(PLAN, gpu=None), Gpu("NVIDIA T4", "7.5", 1), "11.4.0", "built for compute capability 8.9"),
    ],
    ids=["gpu", "model", "version", "capability"],
)
def test_an_engine_of_another_gpu_or_version_is_refused(tmp_path, plan, gpu, version, message):
    path, cuda = plan.write(b"a plan", tmp_path), FakeCuda(gpu)
    with pytest.raises(BundleError, match=message) as refused:
        opened(path, cuda, library=Library(cuda, version))
    assert "build-engine BUNDLE --graph denoiser --variant bf16 --profile native" in str(refused.value)


def test_an_engine_built_for_a_capability_runs_on_any_model_that_has_it(tmp_path):
    path = changed(PLAN, gpu=None).write(b"a plan", tmp_path)
    engine, _, _ = opened(path, FakeCuda(Gpu("NVIDIA L40", "8.9", 1)))
    np.testing.assert_array_equal(engine(**inputs()), expected(inputs()))


def test_the_name_tells_all_that_makes_it_another_engine():
    for field, value in dict(
        graph="other", variant="fp16", profile="720p", library="tensorrt_rtx", version="10", capability="9.0",
        gpu="NVIDIA L40", graph_sha256="ef" * 32,
    ).items():  # fmt: skip
        assert changed(PLAN, **{field: value}).stem != PLAN.stem
    assert re.fullmatch(r"[A-Za-z0-9._-]+", PLAN.stem)


@pytest.mark.parametrize("damage", ["plan", "no plan", "no card", "card", "field"])
def test_an_altered_engine_is_refused(path, damage):
    card = card_of(path)
    if damage == "plan":
        path.write_bytes(b"a plan of somebody else")
    elif damage == "card":
        card.write_text("{")
    elif damage == "field":
        card.write_text(json.dumps({k: v for k, v in json.loads(card.read_text()).items() if k != "capability"}))
    else:
        (path if damage == "no plan" else card).unlink()
    with pytest.raises(BundleError, match="build"):
        read_plan(path)


def test_an_engine_takes_other_weights_by_their_names(path, tmp_path):
    engine, _, _ = opened(path)
    for _ in range(4):
        engine(**inputs())
    save_file({"network.scale": np.full(1, 5, "f4"), "network.unknown": np.zeros(3, "f4")}, tmp_path / "w.safetensors")
    engine.refit(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(engine(**inputs()), expected(inputs(), scale=5))


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"network.scale": np.zeros(2, "f4")}, "network.scale is F32 with 2 values"),
        ({"network.scale": np.zeros(1, "f2")}, "network.scale is F16"),
        ({"network.scale": np.zeros(1, "i8")}, "network.scale is I64, which TensorRT does not know"),
        ({"decoder.scale": np.zeros(1, "f4")}, "no tensor of the engine"),
    ],
    ids=["size", "type", "unknown type", "another model"],
)
def test_weights_that_are_not_the_engines_are_refused(path, tmp_path, tensors, message):
    engine, _, _ = opened(path)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(BundleError, match=message):
        engine.refit(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(engine(**inputs()), expected(inputs()))


def test_an_engine_that_was_not_built_for_it_is_not_refitted(tmp_path):
    engine, _, _ = opened(changed(PLAN, refittable=False).write(b"a plan", tmp_path))
    with pytest.raises(BundleError, match="--refittable"):
        engine.refit(tmp_path / "w.safetensors")


@pytest.mark.parametrize("content", [b"", b"12345678", b"\x02\0\0\0\0\0\0\0{]", b'\x10\0\0\0\0\0\0\0{"a":{"dtype":1}}'])
def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"w\.safetensors"):
        dict(read_safetensors(tmp_path / "w.safetensors"))


def test_weights_stream_within_a_budget_where_they_were_built_to(tmp_path, path):
    streaming = changed(PLAN, weight_streaming=True, variant="fp16").write(b"a plan", tmp_path)
    assert opened(streaming)[2].engine.weight_streaming_budget_v2 == 40
    assert opened(streaming, weight_budget=10)[2].engine.weight_streaming_budget_v2 == 10
    with pytest.raises(BundleError, match="--weight-streaming"):
        opened(path, weight_budget=10)


@pytest.fixture
def bundle(exported, tmp_path):
    """The bundle's manifest, and in its engines one that fits it."""
    (tmp_path / "manifest.json").write_text((exported.path / "manifest.json").read_text())
    form = exported.bundle.manifest["graphs"]["denoiser"]["variants"]["fp32"]
    files = exported.bundle.manifest["files"]
    plan = changed(
        PLAN, variant="fp32", graph_sha256=files[form["file"]], weights_sha256=files[form["weights"]], refittable=False
    )
    plan.write(b"a plan", tmp_path / FOLDER)
    return tmp_path, plan


def open_in(folder, cuda=None, library=None):
    cuda = cuda or FakeCuda()
    library = library or Library(cuda)
    return open_plan(folder, "denoiser", "fp32", "native", cuda=lambda: cuda, load=lambda name: library)


def test_a_bundle_finds_the_engine_that_runs_here(bundle):
    folder, plan = bundle
    changed(plan, gpu="NVIDIA H200", capability="9.0").write(b"another plan", folder / FOLDER)
    assert open_in(folder).name == "TensorRT 11.4.0, NVIDIA L4"


def test_an_engine_of_another_graph_or_other_weights_is_refused(bundle):
    folder, plan = bundle
    for other, why in (
        (changed(plan, graph_sha256="12" * 32), "exported again"),
        (changed(plan, weights_sha256="12" * 32), "other weights"),
    ):
        for file in (folder / FOLDER).iterdir():
            file.unlink()
        other.write(b"a plan", folder / FOLDER)
        with pytest.raises(BundleError, match=why) as refused:
            open_in(folder)
        assert f"cosmos-ref build-engine {folder} --graph denoiser --variant fp32" in str(refused.value)


def test_without_an_engine_the_command_that_builds_one_is_told(bundle):
    folder, _ = bundle
    for profile in ("preview", "native"):
        for file in (folder / FOLDER).glob("*"):
            file.unlink()
        with pytest.raises(BundleError, match=f"profile '{profile}': build it by `cosmos-ref build-engine"):
            open_plan(folder, "denoiser", "fp32", profile, cuda=FakeCuda)


def test_an_engine_that_may_be_refitted_takes_the_bundles_weights(bundle):
    folder, plan = bundle
    changed(plan, weights_sha256="12" * 32, refittable=True).write(b"a plan", folder / FOLDER)
    save_file({"network.scale": np.full(1, 5, "f4")}, folder / "denoiser.safetensors")
    np.testing.assert_array_equal(open_in(folder)(**inputs()), expected(inputs(), scale=5))


def test_without_a_gpu_that_is_said():
    pytest.importorskip("cuda.bindings.runtime")
    try:
        gpu = Cuda().gpu()
    except BundleError as error:
        assert "no NVIDIA GPU" in str(error) and "nvidia-smi" in str(error)
    else:
        assert re.fullmatch(r"\d+\.\d", gpu.capability)


def test_without_cuda_for_python_or_tensorrt_that_is_said(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(NotInstalled, match="pip install cuda-bindings"):
        Cuda()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(NotInstalled, match=r"TensorRT cannot be loaded here.*pip install"):
        TensorRTEngine(path, cuda=FakeCuda)


def test_the_stand_ins_have_only_calls_that_the_libraries_have():
    trt = pytest.importorskip("tensorrt_rtx")
    for ours, theirs in ((Context, trt.IExecutionContext), (Engine, trt.ICudaEngine), (Refitter, trt.Refitter)):
        public = {name for name in vars(ours) if not name.startswith("_")}
        assert public and public <= set(dir(theirs)), ours
    assert hasattr(trt.Runtime, "deserialize_cuda_engine") and hasattr(trt.IRuntimeConfig, "cuda_graph_strategy")
    assert hasattr(trt.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE")
    assert {"FLOAT", "HALF", "BF16", "FP8", "INT8"} <= set(trt.DataType.__members__)


def test_the_calls_of_cuda_are_calls_that_it_has():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    source = inspect.getsource(nvidia)
    called = set(re.findall(r'"(cuda[A-Z]\w+)"', source))
    assert len(called) > 10 and all(hasattr(runtime, name) for name in called)
    assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")


def test_without_a_driver_every_call_of_cuda_fails_in_cudas_words_so_its_arguments_were_taken():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("with a driver, these addresses would be read")
    cuda = Cuda.__new__(Cuda)
    cuda._runtime, cuda._device = runtime, 0
    array, nothing = np.zeros(3, "f4"), runtime.cudaGraphExec_t()
    for call in (
        cuda.gpu, cuda.stream, lambda: cuda.wait(7), lambda: cuda.allocate(8), lambda: cuda.free(8),
        lambda: cuda.upload(array, 8, 7), lambda: cuda.download(8, array, 7), lambda: cuda.begin_recording(7),
        lambda: cuda.end_recording(7), lambda: cuda.replay(nothing, 7), lambda: cuda.drop(nothing),
    ):  # fmt: skip
        with pytest.raises(EngineFailure, match="cudaErrorInsufficientDriver"):
            call()
