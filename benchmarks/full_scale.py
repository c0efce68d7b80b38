"""One call of a released model's network with random bfloat16 weights: time, memory, share of the card's matrix peak.

The peak is measured beside it, on square products of 8192; arithmetic is counted by `costs.flops`. Needs no weights and
no network; diffusers' network is measured in the same run where diffusers is installed: both networks' weights are
then part of either peak of memory.

    python benchmarks/full_scale.py                              # 7B at 121x704x1280, on a GPU
    python benchmarks/full_scale.py --preset tiny --device cpu   # to try it
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from cosmos_ref.catalogue import flops
from cosmos_ref.config import latent_shape, preset
from cosmos_ref.demo.machine import describe_machine, versions
from cosmos_ref.equations.patches import grid_positions
from cosmos_ref.interop.names import diffusers_config
from cosmos_ref.model.dit import CosmosDiT, token_grid

RESULTS = Path(__file__).parent / "results" / "full_scale.json"


def seconds(call: Callable[[], Tensor], device: torch.device, repetitions: int) -> float:
    """Median time of a call, after one to warm up."""
    times = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def filled(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on the device with unit-gain random weights in bfloat16."""
    module = module.to(torch.bfloat16).to_empty(device=device).requires_grad_(False)
    for weight in module.parameters():
        weight.normal_(std=weight.shape[-1] ** -0.5 if weight.ndim > 1 else 1.0)
    return module


def matrix_peak(device: torch.device, size: int) -> float:
    """Operations a second in a square bfloat16 product, a multiply-add as two."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device, 10)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device, config = torch.device(arguments.device), preset(arguments.preset)
    peak = matrix_peak(device, 8192 if device.type == "cuda" else 1024)
    work = sum(flops(config, config.clip).values())
    with torch.device("meta"):
        ours = CosmosDiT(config.model)
    networks = {"ours": filled(ours, device)}
    channels, *size = latent_shape(config, config.clip)
    x = torch.randn(1, config.model.in_channels, *size, device=device, dtype=torch.bfloat16)
    text = torch.randn(1, config.text.length, config.text.width, device=device, dtype=torch.bfloat16)
    c_noise, fps = torch.zeros(1, device=device), torch.full((1,), 24.0, device=device)
    positions = grid_positions(token_grid(x, config.model.patch_size), device)
    calls = {"ours": lambda: networks["ours"](x, c_noise, text, positions, fps)}
    if importlib.util.find_spec("diffusers") and not config.model.video2world:
        import against_diffusers  # stands in for torchvision
        from diffusers import CosmosTransformer3DModel

        assert against_diffusers
        with torch.device("meta"):
            theirs = CosmosTransformer3DModel(
                **{key: value for key, value in diffusers_config(config).items() if key != "_class_name"}
            )
        networks["diffusers"] = filled(theirs, device)
        mask = x.new_zeros(1, 1, *size[1:])
        calls["diffusers"] = lambda: networks["diffusers"](
            x[:, :channels], c_noise.to(x), text, fps=24, padding_mask=mask, return_dict=False
        )[0]
    rows = {}
    for name, call in calls.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = seconds(call, device, arguments.repetitions)
        memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
        rows[name] = {"seconds": took, "share_of_peak": work / took / peak, "peak_memory_gib": memory}
        print(
            f"{name:10} {took:9.4f} s a call, {work / took / peak:6.1%} of {peak / 1e12:.1f} TFLOP/s, memory {memory}"
        )
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    record = {"date": datetime.now(UTC).date().isoformat(), "device": card, "preset": config.name, "flop": work}
    record |= {"matrix_peak": peak, "rows": rows, "machine": describe_machine(), "versions": versions()}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
