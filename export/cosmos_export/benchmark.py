"""How fast a bundle's denoiser is here and what memory it takes: one table, measured in one run. PyTorch is not needed.

    python -m cosmos_export.benchmark BUNDLE --sizes 9x32x32 --rounds 20

A call takes arrays and gives an array, so that what goes to a GPU and back is part of it. Ratios are between rows of
one run, whose calls took turns.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cosmos_export.bundle import Bundle
from cosmos_export.compare import call_inputs
from cosmos_export.engines import open_engine, providers_of
from cosmos_export.errors import BundleError
from cosmos_export.manifest import check_files, read_manifest
from cosmos_export.plans import FOLDER
from cosmos_export.sampling import sample
from cosmos_export.speed_table import failures, figures, text, write_json
from cosmos_export.turns import Entry, Measured, Run, measure

DEVICES = {"cpu": ("cpu",), "cuda": ("cuda", "tensorrt")}
"""Where to run, and ONNX Runtime's providers there."""
PEAK_SIZE = 1024
"""Side of the matrices whose product is the peak on a CPU."""


@dataclass(frozen=True)
class Request:
    """What is to be measured."""

    bundle: Path
    variants: Sequence[str] = ()
    """Of the denoiser; all that run on the device, if none is named."""
    sizes: Sequence[str] = ()
    """Clips as FRAMESxHEIGHTxWIDTH; the preset's, if none is given."""
    batch: int | None = None
    """Samples of a call; else as many as one clip takes: 2 with guidance."""
    device: str = "cpu"
    rounds: int = 10
    threads: int = 0
    """0 is OMP_NUM_THREADS where that is set, else one per core."""
    limit: float = 600
    """Seconds that a first call, or a later one, may take."""
    sampling: bool = False
    """Whether to measure whole samplings too."""


@dataclass(frozen=True)
class Case:
    """One size."""

    clip: tuple[int, int, int]
    """Frames, height and width."""
    inputs: dict[str, np.ndarray]
    tokens: int
    operations: int
    """Of a call, in its matrix products."""


def benchmark(
    request: Request,
    peak: Entry,
    peak_operations: int,
    others: Callable[[Case], Sequence[Entry]] = lambda case: (),
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Measure every size; a table for each, as it goes into JSON.

    Args:
        request: what is to be measured.
        peak: the matrix product that rates are held against.
        peak_operations: of that product.
        others: rows that stand before the bundle's.
        say: is told how far it is.

    Raises:
        BundleError: if something cannot be used. An engine that fails is a row.
    """
    manifest = check(request)
    threads = request.threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
    gpu, tables = request.device != "cpu", []
    for case in cases(request, manifest):
        entries = [*others(case), *bundle_entries(request, manifest, case, threads)]
        size = "x".join(map(str, case.clip))
        common: dict[str, Any] = dict(threads=threads, limit=request.limit, gpu=gpu)
        *rows, product = measure(
            [*entries, peak], request.rounds, say=lambda line, size=size: say(f"{size}, {line}"), **common
        )
        whole: dict[str, Measured] = {}
        if request.sampling:
            can = [Entry(e.name, e.sample, e.library) for e in entries if e.sample is not None]
            found = measure(can, 1, warm=0, say=lambda line, size=size: say(f"{size}, sampling, {line}"), **common)
            whole = {row.name: row for row in found}
        rate = peak_operations / product.seconds if product.seconds else None
        tables.append(
            {
                "clip": list(case.clip),
                "batch": len(case.inputs["x"]),
                "tokens": case.tokens,
                "operations": case.operations,
                "peak": rate,
                "peak_of": f"{peak.name}, {product.failure or product.engine}",
                "rows": figures(rows, case.tokens, case.operations, rate, whole),
            }
        )
    return tables


def check(request: Request) -> dict[str, Any]:
    """The manifest, after holding the request and the files it needs against it.

    Raises:
        BundleError: naming the first thing that cannot be used.
    """
    manifest = read_manifest(request.bundle, files=())
    if request.device not in DEVICES:
        raise BundleError(f"no device is called {request.device!r}; accepted: {', '.join(DEVICES)}")
    for name in ("rounds", "limit", "batch"):
        value = getattr(request, name)
        if value is not None and not value > 0:
            raise BundleError(f"--{name} is {value:g}; it must be above 0")
    if request.threads < 0:
        raise BundleError(f"--threads {request.threads} is not accepted: give a number, 0 is one per core")
    there = list(dict.fromkeys([*onnx_variants(request, manifest), *(v for v, _ in built(request))]))
    for variant in request.variants or [""] * (not there):
        if variant not in there:
            what = f"variant {variant!r}" if variant else "variant"
            listed = ", ".join(there) or "none"
            raise BundleError(f"{request.bundle} has no {what} that runs on {request.device} here; it has: {listed}")
    cases(request, manifest)
    forms = manifest["graphs"]["denoiser"]["variants"]
    used = [forms[name] for name in onnx_variants(request, manifest) if name in (request.variants or forms)]
    needed = dict.fromkeys(file for form in used for file in (form["file"], form["weights"]) if file)
    check_files(request.bundle, manifest["files"], needed)
    return manifest


def cases(request: Request, manifest: Mapping[str, Any]) -> list[Case]:
    """The sizes, with inputs and what they cost.

    Raises:
        BundleError: if one is not understood or not accepted.
    """
    config, none = manifest["config"], None
    sizes_of = Bundle(manifest, none, none, none)  # type: ignore[arg-type]  # only asked for sizes
    clip, made = config["clip"], []
    numbers = json.loads(json.dumps(config), object_hook=lambda entries: SimpleNamespace(**entries))
    batch = request.batch or (2 if config["sample"]["guidance"] else 1)
    for size in request.sizes or [f"{clip['frames']}x{clip['height']}x{clip['width']}"]:
        sides = size.lower().split("x")
        if len(sides) != 3 or not all(side.isascii() and side.isdigit() for side in sides):
            raise BundleError(f"--sizes {size!r} is not understood: give FRAMESxHEIGHTxWIDTH, for example 9x32x32")
        frames, height, width = map(int, sides)
        _, t, h, w = sizes_of.latent_shape(frames, height, width)
        shape = {"frames": t, "height": h, "width": w, "text_length": config["text"]["length"]}
        tokens = prod(side // patch for side, patch in zip((t, h, w), config["model"]["patch_size"], strict=True))
        inputs = call_inputs(numbers, batch=batch, **shape, sigma=1.0, seed=0)
        made.append(Case((frames, height, width), inputs, batch * tokens, batch * operations(config, tokens)))
    return made


def operations(config: Mapping[str, Any], tokens: int) -> int:
    """Of all matrix products in a call for one clip, a multiply-add as two: `costs.flops`, without that package."""
    model, M, E = config["model"], config["text"]["length"], config["model"]["text_width"]
    L, D, R = tokens, model["width"], model["adaln_lora_dim"]
    patch = prod(model["patch_size"]) * (2 * model["channels"] + model["video2world"] + 1)
    attention = 8 * L * D**2 + 4 * L**2 * D + 4 * L * D**2 + 4 * L * M * D + 4 * M * E * D
    block = attention + 4 * L * D * int(model["mlp_ratio"] * D) + 24 * R * D
    return model["depth"] * block + 2 * L * patch * D + 8 * D**2 + 6 * R * D


def onnx_variants(request: Request, manifest: Mapping[str, Any]) -> list[str]:
    """Variants that ONNX Runtime runs on the device."""
    forms, on_cpu = manifest["graphs"]["denoiser"]["variants"], request.device == "cpu"
    able = [name for name, form in forms.items() if "onnxruntime" in form["engines"]]
    return [name for name in able if on_cpu or not name.startswith("cpu")]


def built(request: Request) -> list[tuple[str, str]]:
    """Variant and profile of every engine that was built for a GPU, where there is to be one."""
    cards = sorted((request.bundle / FOLDER).glob("denoiser.*.*.*.json")) if request.device != "cpu" else []
    return list(dict.fromkeys((card.name.split(".")[1], card.name.split(".")[2]) for card in cards))


def bundle_entries(request: Request, manifest: Mapping[str, Any], case: Case, threads: int) -> list[Entry]:
    """A row for every variant and provider of ONNX Runtime, and for every engine that was built."""
    bundle, forms, made = request.bundle, manifest["graphs"]["denoiser"]["variants"], []
    for variant in onnx_variants(request, manifest):
        if variant not in (request.variants or forms):
            continue
        path = bundle / forms[variant]["file"]
        for provider in DEVICES[request.device]:
            providers = providers_of(provider)
            name = f"ONNX Runtime {variant}" + ("" if provider == "cpu" else f", {provider}")
            call = partial(open_onnx, path, case.inputs, providers, threads)
            where = dict(variant=variant, providers=providers, threads=threads)
            whole = partial(open_sampling, bundle, case.clip, **where)
            made.append(Entry(name, call, sample=whole))
            if provider == "cuda":
                made.append(Entry(f"{name}, CUDA graph", partial(call, fixed_shapes=True)))
    for variant, profile in built(request):
        if variant in (request.variants or forms):
            whole = partial(open_sampling, bundle, case.clip, variant=variant, backend="tensorrt", profile=profile)
            engine = partial(open_tensorrt, bundle, variant, profile, case.inputs)
            made.append(Entry(f"TensorRT {variant}, {profile}", engine, "numpy", whole))
    return made


def open_onnx(
    path: Path,
    inputs: Mapping[str, np.ndarray],
    providers: Sequence[str],
    threads: int,
    fixed_shapes: bool = False,
) -> tuple[str, Run]:
    """A graph in ONNX Runtime."""
    engine = open_engine(path, providers, threads, fixed_shapes=fixed_shapes)
    return engine.name, partial(engine, **inputs)


def open_tensorrt(bundle: Path, variant: str, profile: str, inputs: Mapping[str, np.ndarray]) -> tuple[str, Run]:
    """An engine that was built before."""
    from cosmos_export.tensorrt_engine import open_plan

    engine = open_plan(bundle, "denoiser", variant, profile)
    return engine.name, partial(engine, **inputs)


def open_sampling(bundle: Path, clip: tuple[int, int, int], **how: Any) -> tuple[str, Run]:
    """A whole sampling as the preset says, decoding included."""
    loaded = Bundle.load(bundle, **how)
    frames, height, width = clip
    return loaded.denoiser.name, partial(sample, loaded, frames=frames, height=height, width=width)


def open_peak(size: int = PEAK_SIZE) -> tuple[str, Run]:
    """A square product in float32 on the CPU."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    return f"numpy {np.__version__}", lambda: a @ b


def check_json(path: Path | None) -> None:
    """Refuse a file that could not be written, before anything is measured.

    Raises:
        BundleError: if its folder is not there.
    """
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise BundleError(f"--json {path} cannot be written: give a file in a folder that is there")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 2 if the request cannot be used, 1 if nothing ran, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser("python -m cosmos_export.benchmark", description="Measure a bundle's denoiser.")
    add = parser.add_argument
    add("bundle", type=Path, help="folder written by the exporter")
    add("--variants", nargs="*", default=(), help="of the denoiser; else all that run on the device")
    add("--sizes", nargs="*", default=(), help="clips as FRAMESxHEIGHTxWIDTH; else the preset's")
    add("--batch", type=int, help="samples of a call; else 2 where the preset has guidance")
    add("--device", default="cpu", help="cpu or cuda")
    add("--rounds", type=int, default=Request.rounds, help="turns of every row")
    add("--threads", type=int, default=0, help="0 is OMP_NUM_THREADS where that is set, else one per core")
    add("--limit", type=float, default=Request.limit, help="seconds that a call may take")
    add("--sampling", action="store_true", help="measure whole samplings too")
    add("--json", type=Path, help="file to write everything to")
    arguments = vars(parser.parse_args(argv))
    out = arguments.pop("json")
    try:
        check_json(out)
        peak = Entry("float32 product", open_peak, "numpy")
        tables = benchmark(Request(**arguments), peak, 2 * PEAK_SIZE**3, say=show)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    show("")
    print("\n\n".join(map(text, tables)))
    if out is not None:
        packages = {name: metadata.version(name) for name in ("numpy", "cosmos-export")}
        machine = {"system": platform.platform(), "cpu_cores": os.cpu_count()}
        write_json(out, tables, machine, {"Python": platform.python_version()} | packages)
    return int(failures(tables))


def show(line: str) -> None:
    """Progress, on a line that the next one replaces."""
    print(f"\r{line:<100}", end="" if line else "\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
