"""An engine says what it cannot do before it does something else."""

import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest
from cosmos_export.compare import CALL_LIMIT, call_inputs, compare
from cosmos_export.engines import (
    PROVIDERS,
    check_inputs,
    failure,
    left_to_the_cpu,
    onnx_runtime,
    open_engine,
    providers_of,
)
from cosmos_export.errors import BundleError, EngineFailure

SIZE = dict(batch=2, frames=3, height=4, width=6, text_length=5)


@pytest.fixture
def graph(exported):
    return exported.path / "denoiser.onnx"


def inputs_of(exported, seed=0, **size):
    return call_inputs(exported.config, **SIZE | size, sigma=1.0, seed=seed)


def test_an_engine_names_its_library_and_what_it_runs_on(graph):
    assert open_engine(graph, threads=1).name == f"ONNX Runtime {ort.__version__}, CPUExecutionProvider"


@pytest.mark.parametrize("sizes", [True, SIZE], ids=["of the first call", "by name"])
def test_fixed_shapes_give_what_free_ones_give(exported, graph, sizes):
    free, fixed = open_engine(graph, threads=1), open_engine(graph, threads=1, fixed_shapes=sizes)
    given = [inputs_of(exported, seed) for seed in range(3)]
    kept = [(free(**inputs), fixed(**inputs)) for inputs in given]
    for seed, (ours, theirs) in enumerate(
        kept
    ):  # at the end: no call has written over what an earlier one took or gave
        assert compare("call", ours, theirs, CALL_LIMIT).ok
        assert all((given[seed][name] == array).all() for name, array in inputs_of(exported, seed).items())
    assert not compare("seeds", kept[0][0], kept[1][0], CALL_LIMIT).ok


@pytest.mark.parametrize("sizes", [True, SIZE], ids=["of the first call", "by name"])
def test_another_shape_is_refused_where_shapes_are_fixed(exported, graph, sizes):
    engine = open_engine(graph, threads=1, fixed_shapes=sizes)
    engine(**inputs_of(exported))
    with pytest.raises(BundleError, match=r"denoiser: input 'x' has the shape \(1, 16, 3, 4, 6\)"):
        engine(**inputs_of(exported, batch=1))


@pytest.mark.parametrize("optimise", ["basic", "none"])
def test_how_far_a_graph_is_rewritten_does_not_change_what_it_says(exported, graph, optimise):
    inputs = inputs_of(exported)
    ours = open_engine(graph, threads=1, optimise=optimise)(**inputs)
    assert compare("call", open_engine(graph, threads=1)(**inputs), ours, CALL_LIMIT).ok


WRONG_INPUTS = {
    "type": ({"x": np.float64}, r"denoiser: input 'x' is float64; accepted: an array of float32"),
    "rank": ({"fps": (2, 1)}, r"denoiser: input 'fps' has the shape \(2, 1\); accepted: batch"),
    "width": (
        {"text_embeddings": (2, 5, 17)},
        r"input 'text_embeddings' has the shape \(2, 5, 17\); accepted: batch x text_length x 16",
    ),
    "batch": ({"sigma": (3,)}, r"input 'sigma' has the shape \(3,\); accepted: batch, and batch is 2 in the inputs"),
    "no array": ({"sigma": float}, r"input 'sigma' is float; accepted: an array of float32"),
    "missing": ({"sigma": None}, r"denoiser takes the inputs x, sigma, .*; it was given x, text_embeddings"),
}


@pytest.mark.parametrize("change, message", WRONG_INPUTS.values(), ids=WRONG_INPUTS.keys())
def test_an_input_that_the_graph_does_not_take_is_named_with_what_it_takes(exported, graph, change, message):
    inputs = inputs_of(exported)
    for name, to in change.items():
        if to is None:
            del inputs[name]
        elif to is float:
            inputs[name] = 1.0
        else:
            inputs[name] = inputs[name].astype(to) if isinstance(to, type) else np.ones(to, np.float32)
    with pytest.raises(BundleError, match=message):
        open_engine(graph, threads=1)(**inputs)


def test_the_sizes_that_vary_are_read_off_the_inputs(exported):
    ports = exported.bundle.manifest["graphs"]["denoiser"]["inputs"]
    assert check_inputs("denoiser", ports, inputs_of(exported)) == SIZE


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    (tmp_path / "denoiser.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"denoiser.onnx cannot be opened by ONNX Runtime"):
        open_engine(tmp_path / "denoiser.onnx")


def test_a_provider_has_a_short_name_and_another_is_refused():
    assert {name: providers_of(name)[0] for name in PROVIDERS} == {
        "cpu": "CPUExecutionProvider",
        "cuda": "CUDAExecutionProvider",
        "tensorrt": "TensorrtExecutionProvider",
    }
    assert providers_of("CoreMLExecutionProvider") == ("CoreMLExecutionProvider",)
    with pytest.raises(BundleError, match=r"unknown provider 'gpu'; accepted: cpu, cuda, tensorrt"):
        providers_of("gpu")


def test_a_provider_that_is_not_there_is_refused_with_those_that_are(graph):
    with pytest.raises(BundleError, match=r"has no NoSuchExecutionProvider; it has: .*CPUExecutionProvider"):
        open_engine(graph, ("NoSuchExecutionProvider",))
    assert open_engine(graph, ("NoSuchExecutionProvider",), fallback=True).name.endswith("CPUExecutionProvider")


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_provider_that_does_not_load_is_refused_with_the_reason_and_replaced_only_when_asked(graph, name, capfd):
    """ONNX Runtime would go on with the CPU, after some lines that a log swallows."""
    if PROVIDERS[name][0] not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime was built without it: refused by the test above")
    try:
        open_engine(graph, providers_of(name))
    except BundleError as error:
        assert f"{PROVIDERS[name][0]} cannot be loaded (lib" in str(error)
        assert "--provider cpu, or --fallback" in str(error)
    else:
        pytest.skip("this machine has a GPU")
    assert open_engine(graph, providers_of(name), fallback=True).name.endswith("CPUExecutionProvider")
    assert capfd.readouterr() == ("", "")  # nothing but our own message


def test_work_that_is_left_to_the_cpu_is_seen(graph):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not tell: it is older than 1.24")
    left = left_to_the_cpu(session.get_provider_graph_assignment_info())
    assert any(node.startswith("MatMul") for node in left)
    assert not any(node.startswith("Shape") for node in left)  # what only reckons with sizes may stay there


def fake_package(folder, name, version="1.0"):
    (folder / f"{name.replace('-', '_')}-{version}.dist-info").mkdir(parents=True)
    record = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    record.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_two_onnx_runtimes_are_refused_and_both_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for package in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-extensions"):  # the last one is something else
        fake_package(tmp_path, package)
    with pytest.raises(BundleError, match=r"onnxruntime 1.0 and onnxruntime-gpu 1.0 are both .*: pip uninstall onnx"):
        onnx_runtime()


def test_no_onnx_runtime_is_said_with_how_to_get_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BundleError, match=r"ONNX Runtime cannot be loaded .*: pip install onnxruntime"):
        onnx_runtime()


OUT_OF_MEMORY = [
    RuntimeError("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 68719476736"),
    RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:16])
def test_want_of_memory_says_for_what_and_what_to_lower(error):
    told = str(failure("denoiser", "ONNX Runtime 9", {"x": np.zeros((2, 16, 3, 4, 6))}, error))
    assert told.startswith("denoiser ran out of memory on ONNX Runtime 9 (x 2x16x3x4x6): lower the number of frames")


def test_another_failure_is_one_line():
    assert str(failure("denoiser", "E", {}, RuntimeError("node 3\nat x.cc"))) == "denoiser failed on E: node 3"


SHORT_OF_MEMORY = """
import resource, sys
import numpy as np
from pathlib import Path
from cosmos_export.engines import EngineFailure, open_engine
engine = open_engine(Path(sys.argv[1]), threads=1)
video = np.zeros((1, 3, 1601, 64, 64), np.float32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, used + 2**24))
try:
    engine(video=video)
except EngineFailure as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and measures memory as Linux does")
def test_a_graph_that_does_not_fit_into_memory_says_what_to_lower(exported):
    command = [sys.executable, "-c", SHORT_OF_MEMORY, exported.path / "tokenizer_encoder.onnx"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "tokenizer_encoder ran out of memory on ONNX Runtime" in run.stdout, run.stderr
    assert "(video 1x3x1601x64x64): lower the number of frames" in run.stdout


def test_a_failure_while_running_is_an_engine_failure(exported, graph, monkeypatch):
    engine = open_engine(graph, threads=1)

    class Broken:
        def run(self, names, inputs):
            raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine, "session", Broken())
    with pytest.raises(EngineFailure, match=r"denoiser failed on ONNX Runtime .*: the device is gone"):
        engine(**inputs_of(exported))
