"""cosmos-ref benchmark: PyTorch, ONNX Runtime and engines beside each other, in one run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape

from cosmos_ref.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from cosmos_export.benchmark import Case
    from cosmos_export.turns import Entry, Run
    from rich.table import Table

    from cosmos_ref.config import Config
    from cosmos_ref.model.denoiser import Denoiser

Precision = Literal["fp32", "bf16"]
Mode = Literal["eager", "compile", "CUDA graphs"]
"""How PyTorch runs: as it is written, compiled for these sizes, or compiled and recorded."""
Load = Callable[[], "Denoiser"]
"""Gives D_theta on its device; it is sent to a process, so it is a module's function, perhaps with its arguments."""
PEAK_SIZES = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices whose product is the peak."""
WIDTH = 110
"""Columns of text that the table may take, also where the terminal has fewer."""


def benchmark(
    bundle: Annotated[Path, tyro.conf.Positional],
    weights: Path | None = None,
    variants: tuple[str, ...] = (),
    sizes: tuple[str, ...] = (),
    batch: int | None = None,
    device: str = "cpu",
    precision: Precision | None = None,
    rounds: int = 10,
    threads: int = 0,
    limit: float = 600,
    sampling: bool = False,
    compile: bool = False,
    aoti: bool = False,
    json: Path | None = None,
) -> None:
    """Measure a bundle's denoiser: seconds a call, tokens and operations a second, memory. Rows take turns.

    Every row has a process of its own. A call takes numpy arrays and gives one; what goes to a GPU and back is in it.

    Args:
        bundle: folder written by `cosmos-ref export`.
        weights: folder of the checkpoint or training run that it was made from, to measure PyTorch too.
        variants: of the denoiser; all that run on the device, if none is named.
        sizes: clips as FRAMESxHEIGHTxWIDTH; the preset's, if none is given.
        batch: samples of a call; as many as one clip takes, if not given: 2 with guidance.
        device: cpu or cuda. On cuda, engines that `cosmos-ref build-engine` made are measured too.
        precision: of PyTorch's weights: fp32, or bf16; without it fp32 on the CPU, bf16 on a GPU.
        rounds: turns of every row.
        threads: of the CPU; 0 is OMP_NUM_THREADS where that is set, else one per core.
        limit: seconds that a first call, with loading and compiling, or a later one may take.
        sampling: measure whole samplings too.
        compile: measure torch.compile too, which takes a while.
        aoti: measure AOTInductor too, which takes minutes.
        json: file to write everything to.
    """
    try:
        from cosmos_export import benchmark as measuring
        from cosmos_export.errors import BundleError
        from cosmos_export.speed_table import failed, failures, title, write_json
    except ImportError as error:
        raise UserError(f"measuring needs another package ({error}): pip install ./export") from None
    from cosmos_ref.demo.machine import describe_machine, versions
    from cosmos_ref.doctor import gpus
    from cosmos_ref.model.initialization import find_device

    if weights is None and (compile or aoti or precision):
        raise UserError("--compile, --aoti and --precision are for PyTorch, which needs --weights")
    own, console = find_device(device), Console()
    modes: list[Mode] = ["eager", *(["compile"] if compile else [])]
    if compile and own.type == "cuda":
        modes.append("CUDA graphs")
    request = measuring.Request(bundle, variants, sizes, batch, own.type, rounds, threads, limit, sampling)
    try:
        measuring.check_json(json)
        kind: Precision = precision or ("bf16" if own.type == "cuda" else "fp32")
        config = None if weights is None else same_model(weights, measuring.check(request))

        def others(case: "Case") -> list["Entry"]:
            if weights is None or config is None:
                return []
            load = partial(load_denoiser, weights, kind, own.type)
            sample = partial(open_sampling, weights, kind, own.type, case.clip)
            package = Path(folder) / f"{'x'.join(map(str, case.clip))}.pt2" if aoti else None
            return torch_entries(load, config, case.inputs, own.type, kind, modes, package, sample)

        peak, operations = peak_entry(own.type)
        with TemporaryDirectory() as folder, console.status("") as status:
            tables = measuring.benchmark(request, peak, operations, others, lambda line: status.update(escape(line)))
    except BundleError as error:
        raise UserError(str(error)) from error
    for table in tables:
        console.print(title(table), markup=False, highlight=False, soft_wrap=True)
        Console(width=max(console.width, WIDTH)).print(rich_table(table))
        for line in failed(table):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        write_json(json, tables, describe_machine(), versions(), gpus=gpus())
    if failures(tables):
        raise RuntimeError("nothing of it ran")


def same_model(weights: Path, manifest: Mapping[str, Any]) -> "Config":
    """The numbers of a checkpoint, which are the bundle's.

    Raises:
        UserError: if they are not, or it cannot be opened.
    """
    import json
    from dataclasses import asdict

    from cosmos_ref.adapter import require_merged
    from cosmos_ref.checkpoint import find_checkpoint, read_checkpoint

    config = read_checkpoint(find_checkpoint(weights), names=()).config
    require_merged(config, weights, "a benchmark")
    for name, theirs in json.loads(json.dumps(asdict(config.model))).items():
        ours = manifest["config"]["model"].get(name)
        if ours != theirs:
            raise UserError(
                f"{weights} is another model than the bundle: its {name} is {theirs}, the bundle's {ours}; give the "
                "checkpoint that was exported"
            )
    return config


def load_denoiser(weights: Path, precision: Precision, device: str) -> "Denoiser":
    """The network of a checkpoint."""
    return load_parts(weights, precision, device)[1]["denoiser"]()


def load_parts(weights: Path, precision: Precision, device: str) -> tuple["Config", dict[Any, Callable[[], Any]]]:
    """Numbers of a checkpoint with another precision, and what loads each part."""
    from cosmos_ref.checkpoint import find_checkpoint, read_checkpoint
    from cosmos_ref.model.initialization import find_device
    from cosmos_ref.pipelines.world_model import checkpoint_parts, require_parts

    folder = find_checkpoint(weights)
    config = read_checkpoint(folder, names=()).config
    config = replace(config, sample=replace(config.sample, precision=precision))
    load, _ = checkpoint_parts(folder, config, find_device(device), None)
    require_parts(load, folder)
    return config, dict(load)


def torch_entries(
    load: Load,
    config: "Config",
    inputs: Mapping[str, "np.ndarray"],
    device: str,
    precision: str,
    modes: Sequence[Mode] = ("eager",),
    package: Path | None = None,
    sample: Callable[[], tuple[str, "Run"]] | None = None,
) -> list["Entry"]:
    """Rows of PyTorch.

    Args:
        load: gives the network.
        config: its numbers.
        inputs: of a call.
        device: where it is.
        precision: of the network, to be shown.
        modes: how it runs; a row for each.
        package: file of AOTInductor's, which is made where it is not there; None is no such row.
        sample: opens a whole sampling in eager mode.
    """
    from cosmos_export.turns import Entry

    rows = []
    for mode in modes:
        call = partial(open_torch, load, inputs, device, mode)
        rows.append(Entry(f"torch {precision}, {mode}", call, "torch", sample if mode == "eager" else None))
    if package is not None:
        call = partial(open_package, load, config, inputs, device, package)
        rows.append(Entry(f"AOTInductor {precision}", call, "torch"))
    return rows


def open_torch(load: Load, inputs: Mapping[str, "np.ndarray"], device: str, mode: Mode) -> tuple[str, "Run"]:
    """The network, as it is written or compiled for these sizes."""
    denoiser = load()
    if mode != "eager":
        denoiser.compile(dynamic=False, mode="reduce-overhead" if mode == "CUDA graphs" else None)
    return called(denoiser, inputs, device)


def open_package(
    load: Load, config: "Config", inputs: Mapping[str, "np.ndarray"], device: str, package: Path
) -> tuple[str, "Run"]:
    """The network compiled ahead of time for all sizes, without its weights: they are handed over."""
    import warnings

    import torch
    from cosmos_export.ports import denoiser_graph
    from torch.fx.experimental import _config as symbolic_shapes

    warnings.simplefilter("ignore", FutureWarning)  # PyTorch's of itself
    denoiser = load()
    if not package.exists():
        graph = denoiser_graph(config)
        with symbolic_shapes.patch(backed_size_oblivious=True), torch.no_grad():  # type: ignore[attr-defined]
            example = {name: value.to(device) for name, value in graph.example.items()}
            program = torch.export.export(denoiser, (), example, dynamic_shapes=graph.dynamic_shapes())
        settings = {"aot_inductor.package_constants_in_so": False}
        torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=settings)
    compiled = torch._inductor.aoti_load_package(str(package))
    weights = denoiser.state_dict()
    compiled.load_constants(weights, check_full_update=True, user_managed=True)

    def denoise(**tensors: "torch.Tensor") -> Any:
        assert weights  # which the package has addresses of
        return compiled(**tensors)

    return called(denoise, inputs, device)


def called(denoiser: Callable[..., Any], inputs: Mapping[str, "np.ndarray"], device: str) -> tuple[str, "Run"]:
    """A call from numpy's arrays to one of them, as samplers make it."""
    import torch

    @torch.no_grad()
    def run() -> "np.ndarray":
        tensors = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
        return denoiser(**tensors).cpu().numpy()

    return f"torch {torch.__version__}, {device}", run


def open_sampling(weights: Path, precision: Precision, device: str, clip: tuple[int, int, int]) -> tuple[str, "Run"]:
    """A whole sampling as the preset says, decoding included."""
    import torch

    from cosmos_ref.pipelines.text2world import text2world
    from cosmos_ref.pipelines.world_model import WorldModel

    config, load = load_parts(weights, precision, device)
    model, (frames, height, width) = WorldModel(config, load, device), clip
    wanted = replace(config.clip, frames=frames, height=height, width=width)
    return f"torch {torch.__version__}, {device}", lambda: text2world(model, [None], wanted, config.sample).video.cpu()


def peak_entry(device: str) -> tuple["Entry", int]:
    """The product of square matrices that rates are held against, and its operations."""
    from cosmos_export.turns import Entry

    size = PEAK_SIZES[device]
    kind = "bf16" if device == "cuda" else "fp32"
    return Entry(f"product of {size}, {kind}", partial(open_peak, device, kind, size), "torch"), 2 * size**3


def open_peak(device: str, precision: Precision, size: int) -> tuple[str, "Run"]:
    """That product."""
    import torch

    from cosmos_ref.pipelines.world_model import DTYPES

    a, b = torch.randn(2, size, size, device=device, dtype=DTYPES[precision])

    def run() -> None:
        torch.matmul(a, b)
        if device == "cuda":
            torch.cuda.synchronize()

    return f"torch {torch.__version__}, {device}", run


def rich_table(table: Mapping[str, Any]) -> "Table":
    """What ran of one size."""
    from cosmos_export.speed_table import columns
    from rich.table import Table

    headings, *rows = columns(table)
    shown = Table(box=None)
    for n, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if n else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown
