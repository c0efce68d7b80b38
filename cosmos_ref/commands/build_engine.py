"""cosmos-ref build-engine: a bundle's graphs become engines of TensorRT."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from cosmos_ref.errors import UserError


def build_engine(
    bundle: Annotated[Path, tyro.conf.Positional],
    graph: str | None = None,
    variant: str | None = None,
    profile: str = "native",
    rtx: bool = False,
    compute_capability: str | None = None,
    out: Path | None = None,
    weight_streaming: bool = False,
    refittable: bool = False,
    optimization_level: int = 3,
    timing_cache: Path | None = None,
) -> None:
    """Build engines of a bundle's graphs. Building is not running: what is built here is run on its GPU.

    Args:
        bundle: folder written by `cosmos-ref export`.
        graph: denoiser, tokenizer_encoder or tokenizer_decoder; else all three.
        variant: form of the graphs; else the first that TensorRT runs.
        profile: sizes that the engines take, one of the manifest's profiles.
        rtx: build by TensorRT for RTX, which needs no GPU where a compute capability is given.
        compute_capability: GPU to build for, as in 8.9, with --rtx.
        out: folder for the engines; else `engines` in the bundle, where they are looked for.
        weight_streaming: let weights wait in the CPU's memory when the engine runs.
        refittable: let weights be replaced by their names.
        optimization_level: from 0, soon built, to 5.
        timing_cache: file of measured kernels; else one beside the engines.
    """
    try:
        from cosmos_export.build_engine import build_engines
        from cosmos_export.builder import Options
        from cosmos_export.errors import BundleError
    except ImportError as error:
        raise UserError(f"building engines needs another package ({error}): pip install ./export") from None
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:

        def progress(what: str) -> Callable[[str, int, int], None]:
            task = bar.add_task(what)
            return lambda phase, step, steps: bar.update(
                task, description=f"{what}: {phase}", completed=step, total=steps
            )

        try:
            lines = build_engines(
                bundle,
                graph=graph,
                variant=variant,
                profile=profile,
                rtx=rtx,
                capability=compute_capability,
                out=out,
                options=Options(weight_streaming, refittable, optimization_level, timing_cache),
                progress=progress,
            )
        except BundleError as error:
            raise UserError(str(error)) from error
    for line in lines:
        Console().print(line, soft_wrap=True, highlight=False, markup=False)
