"""What a run was made on and with."""

import platform
import sys

import torch

from cosmos_ref import doctor


def describe_machine() -> dict[str, str | int | float]:
    """Processor, threads used, memory in GiB, and system."""
    return {
        "cpu": doctor.cpu_name(),
        "cpu_cores": torch.get_num_threads(),
        "memory_gib": doctor.memory()[0],
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Python and the packages that matter, as far as they are installed."""
    found = {name: doctor.installed(name) for name in doctor.PACKAGES}
    return {"Python": platform.python_version()} | {name: text for name, text in found.items() if text != "-"}


def peak_memory_gib() -> float:
    """The most memory this process has held."""
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, kibibytes elsewhere
