"""Engines of a bundle's graphs, from the command line.

Building is not running: an engine that was built proves that its graph can be parsed and compiled for a GPU, and says
nothing of its speed and nothing of its figures.

    python -m cosmos_export.build_engine BUNDLE --variant bf16 --profile native
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cosmos_export.builder import Options, Progress, build_engine, find_form
from cosmos_export.bundle import choose_variant
from cosmos_export.errors import BundleError
from cosmos_export.manifest import GRAPHS, read_manifest
from cosmos_export.nvidia import NotInstalled, load_tensorrt
from cosmos_export.plans import card_of, plan_of, read_card


def build_engines(
    bundle: Path,
    *,
    graph: str | None,
    variant: str | None,
    profile: str,
    rtx: bool,
    capability: str | None,
    out: Path | None,
    options: Options,
    progress: Callable[[str], Progress],
) -> list[str]:
    """What both command lines do: one graph or all, a line for each engine that was built.

    Raises:
        BundleError: if something that was asked for cannot be had; if the library is missing, with the commands to run
            where it is not.
        EngineFailure: if the build fails.
    """
    if not rtx and capability is not None:
        raise BundleError("--compute-capability goes with --rtx: TensorRT builds for the GPU that it runs on")
    manifest, lines = read_manifest(bundle, files=()), []
    if graph is not None and graph not in GRAPHS:
        raise BundleError(f"unknown graph {graph!r}; accepted: {', '.join(GRAPHS)}")
    graphs = GRAPHS if graph is None else (graph,)
    wanted = {name: choose_variant(manifest, name, variant, "tensorrt", False) for name in graphs}
    for name, form in wanted.items():
        find_form(manifest, bundle, name, form, profile)
    try:
        trt = load_tensorrt("tensorrt_rtx" if rtx else "tensorrt")
    except NotInstalled as error:
        raise BundleError(f"{error}. {_elsewhere(manifest, bundle, wanted, profile, rtx)}") from error
    for name, form in wanted.items():
        try:
            path = build_engine(
                bundle, name, form, profile, trt,
                out=out, capability=capability, options=options, progress=progress(f"{name} {form}"),
            )  # fmt: skip
        except NotInstalled as error:
            raise BundleError(f"{error}. {_elsewhere(manifest, bundle, wanted, profile, rtx)}") from error
        plan = plan_of(read_card(card_of(path)))
        kernels = f", {_listed(plan.kernels)}" if plan.kernels else ""
        lines.append(f"{path}: {path.stat().st_size / 1e6:.0f} MB for {plan.target}{kernels}; built, not run")
    return lines


def _listed(kernels: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in kernels.items())


def _elsewhere(manifest: Mapping[str, Any], bundle: Path, wanted: Mapping[str, str], profile: str, rtx: bool) -> str:
    """What to run on a machine that has the libraries."""
    ours = [
        f"  python -m cosmos_export.build_engine {shlex.quote(str(bundle))} --graph {graph} --variant {variant} "
        f"--profile {profile}{' --rtx' if rtx else ''}"
        for graph, variant in wanted.items()
    ]
    theirs = [] if rtx else [f"  {manifest['commands'][g][v][profile]['trtexec']}" for g, v in wanted.items()]
    other = ["or, in the bundle's folder, without cosmos_export:", *theirs] if theirs else []
    return "\n".join(["Where it is installed, run:", *ours, *other])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 2 if the request cannot be used, 1 if building failed."""
    parser = argparse.ArgumentParser("cosmos_export.build_engine", description="Build engines of a bundle's graphs.")
    add = parser.add_argument
    add("bundle", type=Path, help="folder written by the exporter")
    add("--graph", help=f"{', '.join(GRAPHS)}; else all three")
    add("--variant", help="form of the graphs; else the first that TensorRT runs")
    add("--profile", default="native", help="sizes that the engine takes, one of the manifest's profiles")
    add("--rtx", action="store_true", help="build by TensorRT for RTX")
    add("--compute-capability", help="GPU to build for, as in 8.9, with --rtx; no GPU is needed then")
    add("--out", type=Path, help="folder for engines; else `engines` in the bundle, where the runtime looks for them")
    add("--weight-streaming", action="store_true", help="let weights wait in the CPU's memory when the engine runs")
    add("--refittable", action="store_true", help="let weights be replaced by their names")
    add("--optimization-level", type=int, default=3, help="from 0, soon built, to 5")
    add("--timing-cache", type=Path, help="file of measured kernels; else one beside the engines")
    given = parser.parse_args(argv)
    options = Options(given.weight_streaming, given.refittable, given.optimization_level, given.timing_cache)
    try:
        lines = build_engines(
            given.bundle, graph=given.graph, variant=given.variant, profile=given.profile, rtx=given.rtx,
            capability=given.compute_capability, out=given.out, options=options, progress=_show,
        )  # fmt: skip
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # of TensorRT, CUDA or the file system
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


def _show(what: str) -> Progress:
    def show(phase: str, step: int, steps: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{what}: {phase} {step}/{steps}", end="\r", file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    sys.exit(main())
