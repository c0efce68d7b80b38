"""What this machine can do, and what each preset would need of it."""

import importlib.util
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from cosmos_ref import catalogue
from cosmos_ref.config import PRESETS, Config
from cosmos_ref.equations import costs
from cosmos_ref.pipelines.memory import denoiser_working

PACKAGES = (
    "torch",
    "numpy",
    "av",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "transformers",
)


def examine(console: Console) -> None:
    """Print the machine, what is installed, and what fits."""
    total, available = memory()
    machine = Table(title="machine", title_justify="left", show_header=False)
    machine.add_row("system", platform.platform())
    machine.add_row("Python", sys.version.split()[0])
    machine.add_row("CPU", f"{cpu_name()}, {os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads")
    machine.add_row("memory", f"{total:.1f} GiB, {available:.1f} GiB free" if total else "unknown")
    machine.add_row("GPU", "\n".join(gpus()) or "none that PyTorch can use")
    machine.add_row("ONNX Runtime", ", ".join(onnx_providers()) or "not installed: pip install 'cosmos-ref[export]'")
    machine.add_row("TensorRT", tensorrt())
    console.print(machine)

    packages = Table(title="packages", title_justify="left", show_header=False)
    for name in PACKAGES:
        packages.add_row(name, installed(name))
    if installed("onnxruntime") != "-" and installed("onnxruntime-gpu") != "-":
        packages.add_row(
            "", "[red]both onnxruntime packages are installed and overwrite each other: uninstall one[/red]"
        )
    console.print(packages)

    needs = Table(title="presets", title_justify="left")
    for heading in ("preset", "size", "memory to sample", "memory to train", "here"):
        needs.add_column(heading)
    room = max([int(available * 2**30), *(card.total_memory for card in cards())])
    for config in PRESETS.values():
        needs.add_row(
            config.name,
            catalogue.counted(catalogue.parameter_count(config)),
            catalogue.memory(sampling_bytes(config)),
            catalogue.memory(training_bytes(config)),
            fits(config, room) if total else "unknown",
        )
    console.print(needs)
    console.print(
        "To sample: the denoiser's weights and what it works with, in the preset's precision, while text encoder and "
        "tokenizer wait elsewhere. To train, on one device, at least: 20 bytes a parameter and a batch's activations."
    )


def sampling_bytes(config: Config) -> int:
    """Memory that the denoiser takes at work on the preset's own clip, the other parts out of its way."""
    return catalogue.weight_bytes(config) + denoiser_working(config)


def training_bytes(config: Config) -> int:
    """Memory that a training of the preset takes at least."""
    return costs.training_bytes(catalogue.parameter_count(config)) + catalogue.activation_bytes(config)


def fits(config: Config, room: int) -> str:
    """What so many bytes are enough for."""
    return "trains" if training_bytes(config) <= room else "samples" if sampling_bytes(config) <= room else "no"


def memory() -> tuple[float, float]:
    """Total and available memory in GiB, zeros where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    sizes = {name: int(rest.split()[0]) / 2**20 for name, rest in (line.split(":", 1) for line in lines)}
    return sizes["MemTotal"], sizes["MemAvailable"]


def cpu_name() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def cards() -> list:
    """Properties of the graphics cards that PyTorch can use."""
    return [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]


def gpus() -> list[str]:
    """Graphics cards that PyTorch can use, with their memory."""
    return [f"{card.name}, {card.total_memory / 2**30:.0f} GiB" for card in cards()]


def onnx_providers() -> list[str]:
    """What ONNX Runtime can run on, as far as it is built for it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    import onnxruntime

    return onnxruntime.get_available_providers()


def tensorrt() -> str:
    """Which TensorRT there is, and whether it loads."""
    for module in ("tensorrt", "tensorrt_rtx"):
        if importlib.util.find_spec(module) is not None:
            try:
                return f"{module} {importlib.import_module(module).__version__}"
            except (ImportError, OSError) as error:
                return f"{module} is installed but does not load: {error}"
    return "not installed (it needs an NVIDIA GPU)"


def installed(name: str) -> str:
    """Version of a package, or a dash."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"
