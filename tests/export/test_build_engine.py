"""Every graph that we ship is parsed and built by TensorRT for RTX, on the CPU. Nothing of it is run.

Builds are at the lowest optimization level and for one compute capability: what is proven is that the parser and the
compiler take the graph, that attention stays fused, and that the engine's inputs are the manifest's.
"""

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from cosmos_export.build_engine import main
from cosmos_export.builder import Options, build_engine
from cosmos_export.card import Variant, write_manifest
from cosmos_export.complaints import module_of, read_onnx
from cosmos_export.errors import BundleError, EngineFailure
from cosmos_export.nvidia import Gpu
from cosmos_export.plans import plan_of, read_card, read_plan
from cosmos_export.ports import denoiser_graph, tokenizer_graphs
from onnx import TensorProto, helper, numpy_helper

from cosmos_ref.cli import main as cosmos_ref

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has wheels for x86 only")

ENGINES = {
    ("denoiser", "fp32"): "native",
    ("denoiser", "fp16"): "native",
    ("denoiser", "bf16"): "preview",
    ("denoiser", "int8"): "native",
    ("denoiser", "fp8"): "preview",
    ("tokenizer_encoder", "fp32"): "native",
    ("tokenizer_encoder", "fp16"): "native",
    ("tokenizer_encoder", "bf16"): "native",
    ("tokenizer_decoder", "fp32"): "native",
    ("tokenizer_decoder", "fp16"): "native",
    ("tokenizer_decoder", "bf16"): "native",
}
"""All graphs that TensorRT is to take, and the profile that they are built for: `preview` is a wide one."""
HAAR = {("tokenizer_encoder", "fp32"): "preview", ("tokenizer_decoder", "fp32"): "preview"}
"""Those of the tokenizer without weights, of which there is no other form."""
FUSED, EIGHT_BITS = {"fp16", "bf16", "int8", "fp8"}, {"int8", "fp8"}
SOON = Options(optimization_level=0)
TARGET = "8.9"


@pytest.fixture(scope="session")
def shipped(exported, convolutional, tmp_path_factory) -> Path:
    """A bundle of every graph we ship: the exported denoiser, and a convolutional tokenizer in all of its forms."""
    folder = tmp_path_factory.mktemp("shipped")
    for source in (*exported.path.glob("denoiser*"), *convolutional.path.iterdir()):
        shutil.copy(source, folder)
    held = exported.bundle.manifest["graphs"]["denoiser"]["variants"]
    forms = {
        "denoiser": [Variant(v, f["file"], f["weights"], f["opset"], tuple(f["engines"])) for v, f in held.items()]
    }
    for graph in ("tokenizer_encoder", "tokenizer_decoder"):
        files = {path.name.removesuffix(".onnx").partition(".")[2] or "fp32": path for path in folder.glob(f"{graph}*")}
        forms[graph] = [
            Variant(v, p.name, p.with_suffix(".safetensors").name.replace(graph, "tokenizer"), 22, ("tensorrt",))
            for v, p in files.items()
        ]  # fmt: skip
    config = convolutional.config
    write_manifest(
        config, [denoiser_graph(config), *tokenizer_graphs(config)], forms, folder, parameters=0, versions={}
    )
    return folder


def test_every_engine_that_we_ship_is_built_here(exported, shipped):
    def held(folder):
        graphs = json.loads((folder / "manifest.json").read_text())["graphs"]
        forms = [(graph, variant, form) for graph in graphs for variant, form in graphs[graph]["variants"].items()]
        return {(graph, variant) for graph, variant, form in forms if "tensorrt" in form["engines"]}

    assert held(shipped) == set(ENGINES)
    assert {key for key in held(exported.path) if key[0] != "denoiser"} == set(HAAR)


@pytest.mark.slow
@pytest.mark.parametrize("graph, variant", ENGINES, ids=map(" ".join, ENGINES))
def test_a_graph_becomes_an_engine_with_the_manifests_inputs_and_fused_attention(shipped, tmp_path, graph, variant):
    profile, manifest = ENGINES[graph, variant], json.loads((shipped / "manifest.json").read_text())
    path = build_engine(shipped, graph, variant, profile, trt, out=tmp_path, capability=TARGET, options=SOON)
    plan = read_plan(path)
    assert path.stat().st_size > 10_000
    check_inputs(plan, manifest, profile)
    # one kernel for every attention: to itself and to the text in every block; in space and in time in the tokenizer
    depth = manifest["config"]["model"]["depth"]
    attentions = (2 * depth if graph == "denoiser" else 2) if variant in FUSED else 0
    assert plan.kernels and (plan.attentions, plan.kernels["fused_attentions"]) == (attentions, attentions)
    # products of one input are merged; six are left in every block: q k v, out, q, out, and the two of the MLP
    products = plan.kernels["products_in_8_bits"]
    assert products >= 6 * depth if variant in EIGHT_BITS else products == 0


@pytest.mark.parametrize("graph, variant", HAAR, ids=map(" ".join, HAAR))
def test_the_tokenizer_without_weights_becomes_an_engine_too(exported, tmp_path, graph, variant):
    profile = HAAR[graph, variant]
    path = build_engine(exported.path, graph, variant, profile, trt, out=tmp_path, capability=TARGET, options=SOON)
    check_inputs(read_plan(path), exported.bundle.manifest, profile)


def check_inputs(plan, manifest, profile):
    """An engine takes what the manifest says, from the profile's smallest to its largest shapes."""
    declared, limits = manifest["graphs"][plan.graph]["inputs"], manifest["profiles"][profile]
    assert [(p["name"], p["dtype"]) for p in plan.inputs] == [(p["name"], p["dtype"]) for p in declared]
    for port, said in zip(plan.inputs, declared, strict=True):
        assert port["dims"] == list(said["dims"])
        for which in ("min", "opt", "max"):
            assert port[which] == [limits[which].get(dim, dim) for dim in said["dims"]]


def with_graph(exported, folder, proto, graph="tokenizer_decoder", ports=None):
    """A bundle in whose place for a graph's fp32 variant there is another one."""
    shutil.copytree(exported.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    form = manifest["graphs"][graph]["variants"]["fp32"]
    (folder / form["file"]).write_bytes(proto.SerializeToString())
    manifest["files"][form["file"]] = hashlib.sha256((folder / form["file"]).read_bytes()).hexdigest()
    if ports is not None:
        manifest["graphs"][graph]["inputs"] = ports
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def attention(dtype):
    """Opset 23's operator, one head of 16, between a float32 input and output."""
    dims = ["clips", 16, "frames", 16]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in ("latents", "video"))
    nodes = [helper.make_node("Cast", ["latents"], ["low"], to=dtype)]
    for name in "qkv":  # three tensors: the compiler crashes where they are one
        nodes += [
            helper.make_node("Cast", [f"{name}.weight"], [f"{name}_low"], to=dtype),
            helper.make_node("MatMul", ["low", f"{name}_low"], [name]),
        ]
    nodes += [
        helper.make_node("Attention", ["q", "k", "v"], ["mixed"]),
        helper.make_node("Cast", ["mixed"], ["video"], to=TensorProto.FLOAT),
    ]
    weights = [numpy_helper.from_array(np.eye(16, dtype="f4") * n, f"{name}.weight") for n, name in enumerate("qkv", 1)]
    graph = helper.make_graph(nodes, "attention", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return model, [{"name": "latents", "dims": dims, "dtype": "float32", "meaning": ""}]


def test_fused_attention_is_refused_in_float32_alone_so_float32_ships_without_it(exported, tmp_path):
    for name, dtype in (("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)):
        model, ports = attention(dtype)
        bundle = with_graph(exported, tmp_path / name, model, ports=ports)
        path = build_engine(bundle, "tokenizer_decoder", "fp32", "native", trt, capability=TARGET, options=SOON)
        plan = read_plan(path)
        assert plan.kernels and plan.attentions == plan.kernels["fused_attentions"] == 1
    model, ports = attention(TensorProto.FLOAT)
    bundle = with_graph(exported, tmp_path / "fp32", model, ports=ports)
    with pytest.raises(EngineFailure, match=r"fused attention is for 16 bits.*opset 22"):
        build_engine(bundle, "tokenizer_decoder", "fp32", "native", trt, capability=TARGET, options=SOON)
    assert not (bundle / "engines").exists()
    for entry in exported.bundle.manifest["graphs"].values():
        assert entry["variants"]["fp32"]["opset"] == 22


@pytest.mark.parametrize(
    "operator, number, module",
    [("Softmax", 2, "network.blocks.1.self_attention"), ("Softmax", 1, "network.blocks.0.cross_attention")],
)
def test_what_the_parser_does_not_take_is_told_by_its_module(exported, tmp_path, operator, number, module):
    model = onnx.load(exported.path / "denoiser.onnx", load_external_data=False)
    node = [node for node in model.graph.node if node.op_type == operator][number]  # two in every block, in this order
    node.op_type = "Frobnicate"
    bundle = with_graph(exported, tmp_path / "bundle", model, "denoiser")
    with pytest.raises(BundleError) as refused:
        build_engine(bundle, "denoiser", "fp32", "native", trt, capability=TARGET, options=SOON)
    assert f"Frobnicate in {module} (node {node.name})" in str(refused.value)


def test_every_weight_is_of_the_module_that_it_is_named_after(exported):
    file = read_onnx(exported.path / "denoiser.onnx")
    products = [node for node in file.nodes if node.operator in ("MatMul", "Gemm")]
    told = {module_of(file, node) for node in products}
    linear = {name.removesuffix(".weight") for name, t in exported.denoiser.state_dict().items() if t.ndim == 2}
    linear = {name for name in linear if name.rpartition(".")[0] and "position" not in name}
    assert linear <= told


@pytest.mark.parametrize(
    "request_, message",
    [
        (dict(graph="vocoder"), "no graph 'vocoder'; it has: denoiser"),
        (dict(variant="int3"), "no tokenizer_encoder 'int3' for TensorRT; it has: fp32"),
        (dict(profile="8k"), "no profile '8k'; it has: preview, native"),
        (dict(capability="9.0"), r"does not build for '9\.0'; accepted: 7\.5.*12\.0"),
        (dict(options=Options(optimization_level=6)), "optimization level 6 .*0 to 5"),
        (dict(options=Options(refittable=True)), "refittable engine on the GPU itself"),
        (dict(options=Options(timing_cache=Path("t"))), "leave the timing cache out"),
        (dict(capability=None), "no NVIDIA GPU; or give --compute-capability.*7.5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_had_is_refused_before_any_work(exported, tmp_path, request_, message):
    def no_gpu():
        raise BundleError("no NVIDIA GPU")

    wanted = dict(graph="tokenizer_encoder", variant="fp32", profile="native", capability=TARGET, gpu=no_gpu)
    with pytest.raises(BundleError, match=message):
        build_engine(exported.path, trt=trt, out=tmp_path / "out", **wanted | request_)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["denoiser.onnx", "denoiser.safetensors"])
def test_an_altered_bundle_is_refused(exported, tmp_path, file):
    bundle = Path(shutil.copytree(exported.path, tmp_path / "bundle"))
    data = bytearray((bundle / file).read_bytes())
    data[-1] ^= 1
    (bundle / file).write_bytes(data)
    with pytest.raises(BundleError, match=f"{file} is not the file that was exported"):
        build_engine(bundle, "denoiser", "fp32", "native", trt, capability=TARGET)


def test_a_graph_with_other_inputs_than_its_manifest_says_is_refused(exported, tmp_path):
    model = onnx.load(exported.path / "tokenizer_decoder.onnx")
    ports = [dict(exported.bundle.manifest["graphs"]["tokenizer_decoder"]["inputs"][0], dtype="float16")]
    bundle = with_graph(exported, tmp_path / "bundle", model, ports=ports)
    with pytest.raises(BundleError, match=r"takes latents float32 .*its manifest says .*float16"):
        build_engine(bundle, "tokenizer_decoder", "fp32", "native", trt, capability=TARGET)


def test_the_build_tells_how_far_it_is_and_stops_when_told(exported, tmp_path):
    told = []

    def progress(phase, step, steps):
        told.append((phase, step, steps))
        if len(told) == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(
            exported.path, "tokenizer_encoder", "fp32", "native", trt,
            out=tmp_path / "out", capability=TARGET, options=SOON, progress=progress,
        )  # fmt: skip
    assert len(told) == 40 and all(1 <= step <= steps for _, step, steps in told)
    assert not (tmp_path / "out").exists()


class Config:
    """A configuration of a builder that keeps what it is told of a timing cache."""

    def __init__(self, real):
        vars(self).update(real=real, stored=[])

    def __getattr__(self, name):
        return getattr(self.real, name)

    def __setattr__(self, name, value):
        setattr(self.real, name, value)

    def create_timing_cache(self, stored):
        self.stored.append(bytes(stored))
        return self.real.create_timing_cache(b"")

    def set_timing_cache(self, cache, ignore_mismatch):
        return self.stored[-1] in (b"", b"measured") and self.real.set_timing_cache(cache, ignore_mismatch)

    def get_timing_cache(self):
        class Cache:
            def serialize(self):
                return b"measured"

        return Cache()


def full_tensorrt(version):
    """TensorRT 10 or 11 for a machine without a GPU: that for RTX under its name, which builds for the GPU it is on."""
    module = ModuleType("tensorrt")
    vars(module).update({name: value for name, value in vars(trt).items() if not name.startswith("__")})
    module.__version__, configs = version, []

    class Builder:
        def __init__(self, logger):
            self.real = trt.Builder(logger)

        def __getattr__(self, name):
            return getattr(self.real, name)

        def create_builder_config(self):
            configs.append(Config(self.real.create_builder_config()))
            configs[-1].num_compute_capabilities = 1
            configs[-1].set_compute_capability(trt.ComputeCapability.SM89, 0)
            return configs[-1]

        def build_serialized_network(self, network, config):
            return self.real.build_serialized_network(network, config.real)

    module.Builder = Builder
    if version.startswith("11"):  # strongly typed without being told
        module.NetworkDefinitionCreationFlag = type("NetworkDefinitionCreationFlag", (), {})
    return module, configs


@pytest.mark.parametrize("version", ["10.15.1.29", "11.4.0.106"])
@pytest.mark.filterwarnings("ignore:.*Timing cache:DeprecationWarning")
def test_builds_for_one_gpu_share_what_was_measured_and_engines_are_named_after_it(exported, tmp_path, version):
    module, configs = full_tensorrt(version)
    gpu = Gpu("NVIDIA L4", "8.9", 24 * 2**30)
    paths = [
        build_engine(exported.path, graph, "fp32", "native", module, out=tmp_path, options=SOON, gpu=lambda: gpu)
        for graph in ("tokenizer_encoder", "tokenizer_decoder")
    ]
    assert [config.stored for config in configs] == [[b""], [b"measured"]]
    (cache,) = tmp_path.glob("*.cache")
    assert cache.name == f"timing.tensorrt-{version}.sm89-nvidia-l4.cache"
    for path in paths:
        assert f"native.tensorrt-{version}.sm89-nvidia-l4." in path.name
        assert read_plan(path).gpu == "NVIDIA L4"
    cache.write_bytes(b"of another GPU")
    with pytest.raises(BundleError, match=r"timing cache .* another GPU or version"):
        build_engine(
            exported.path, "tokenizer_encoder", "fp32", "native", module, out=tmp_path, options=SOON, gpu=lambda: gpu
        )
    with pytest.raises(BundleError, match="builds for the GPU that it runs on"):
        build_engine(exported.path, "denoiser", "fp32", "native", module, capability="8.9")


@pytest.mark.filterwarnings("ignore:.*Timing cache:DeprecationWarning")
@pytest.mark.parametrize("asked", [False, True])
def test_what_is_asked_for_reaches_the_builder_and_float32_is_never_tf32(exported, tmp_path, asked):
    module, configs = full_tensorrt("11.4.0.106")
    options = Options(refittable=asked, weight_streaming=asked, optimization_level=2 if asked else 0)
    with contextlib.suppress(EngineFailure):  # without a GPU, TensorRT for RTX cannot compile what is to be refitted
        build_engine(
            exported.path, "tokenizer_encoder", "fp32", "native", module,
            out=tmp_path, options=options, gpu=lambda: Gpu("NVIDIA L4", "8.9", 2**34),
        )  # fmt: skip
    (config,), flags = configs, trt.BuilderFlag
    assert not config.get_flag(flags.TF32)
    assert config.get_flag(flags.REFIT) == config.get_flag(flags.WEIGHT_STREAMING) == asked
    assert config.builder_optimization_level == options.optimization_level


def test_both_command_lines_build_an_engine_and_say_that_it_was_not_run(exported, tmp_path, capsys):
    asked = ["--graph", "tokenizer_encoder", "--rtx", "--compute-capability", "8.6", "--optimization-level", "0"]
    assert main([str(exported.path), *asked, "--out", str(tmp_path / "one")]) == 0
    assert "built, not run" in capsys.readouterr().out
    cosmos_ref(["build-engine", str(exported.path), *asked, "--out", str(tmp_path / "two"), "--profile", "preview"])
    assert "built, not run" in capsys.readouterr().out
    for folder, profile in (("one", "native"), ("two", "preview")):
        (card,) = (tmp_path / folder).glob("*.json")
        plan = plan_of(read_card(card))
        assert (plan.graph, plan.profile, plan.capability) == ("tokenizer_encoder", profile, "8.6")


def test_without_tensorrt_the_lines_to_run_elsewhere_are_told(exported, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main([str(exported.path), "--graph", "denoiser", "--variant", "fp32", "--profile", "native"]) == 2
    told = capsys.readouterr().err
    assert exported.bundle.manifest["commands"]["denoiser"]["fp32"]["native"]["trtexec"] in told
    ours = "cosmos_export.build_engine"
    assert f"python -m {ours} {exported.path} --graph denoiser --variant fp32 --profile native" in told
    with pytest.raises(SystemExit) as refused:
        cosmos_ref(["build-engine", str(exported.path)])
    assert refused.value.code == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--graph", "vocoder"], "unknown graph 'vocoder'; accepted: denoiser"),
        (["--variant", "int3"], "no variant 'int3'"),
        (["--compute-capability", "8.9"], "goes with --rtx"),
        (["--profile", "8k"], "no profile '8k'"),
    ],
)
def test_the_command_line_refuses_in_one_line(exported, capsys, arguments, message):
    assert main([str(exported.path), *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and message in told and told.count("\n") == 1


def test_building_and_running_engines_loads_neither_torch_nor_a_library_before_it_is_used():
    code = """
import sys, cosmos_export.build_engine, cosmos_export.tensorrt_engine
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "onnx", "onnxruntime", "tensorrt", "cuda"}))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
