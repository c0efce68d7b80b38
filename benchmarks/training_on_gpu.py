"""What a GPU makes of the training: parity, tokens a second, model FLOPs utilisation. Needs no network, no weights.

    python benchmarks/training_on_gpu.py parity            # NCCL and the fused kernels beside plain torch, one GPU
    python benchmarks/training_on_gpu.py step --peak 989   # a 7B update of few blocks with real shapes
    python benchmarks/training_on_gpu.py recipe            # a leg of nine minutes; again goes on from there

Each prints JSON with machine, versions and date, and keeps it with `--write FILE`. `step` measures two depths: time is
linear in the number of blocks, and what all of them would take is extrapolated and labelled so. On a CPU the same lines
run in a small size (`parity --device cpu`, `step micro --device cpu --depths 1 2`).
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from cosmos_ref.conditioning.condition import give_frames, text_condition
from cosmos_ref.config import Config, ParallelConfig, latent_shape, preset
from cosmos_ref.demo.machine import describe_machine, versions
from cosmos_ref.distributed import context_parallel
from cosmos_ref.distributed.fsdp import recompute_blocks, whole
from cosmos_ref.distributed.layout import ManyProcesses, joined
from cosmos_ref.equations.sharding import block_attention
from cosmos_ref.model.initialization import new_model
from cosmos_ref.model.sizes import flops, token_count
from cosmos_ref.training.optimizer import build_optimizer
from cosmos_ref.training.step import training_loss
from cosmos_ref.training.update import in_bf16


def parity(device: str = "cuda", write: Path | None = None) -> None:
    """One process with NCCL (gloo on a CPU) and sharded weights beside plain torch; the ring's kernels beside formulas.

    Args:
        device: where.
        write: JSON file to keep the result in.
    """
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29517",
    }
    config = preset("micro")
    with joined(device) as own:
        layout = ManyProcesses(ParallelConfig(recompute=True), config.model.num_heads, own)
        generators = (torch.Generator().manual_seed(0) for _ in range(2))
        plain = new_model(config, next(generators), device=own)
        spread = new_model(config, next(generators), layout.place, layout.write, own)
        arguments = example(config, own)
        losses, gradients = [], []
        for denoiser, uncertainty in (plain, spread):
            loss, _ = training_loss(denoiser, uncertainty, *arguments, config.diffusion.sigma_data)
            loss.backward()
            losses.append(loss.item())
            gradients.append([whole(p.grad) for p in denoiser.parameters()])
        worst = max(relative(b, a) for a, b in zip(*gradients, strict=True))
        results: dict[str, Any] = {"loss": losses, "largest relative difference of a gradient": worst}
        if own.type == "cuda":
            results["fused ring kernels, bf16, largest relative difference"] = fused_kernels(own)
    report("parity", results, write)


def fused_kernels(device: torch.device) -> dict[str, float]:
    """The fused kernels of a ring's block beside the written formulas, in the model's own shape of a head."""
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, grad = (torch.randn(1, 8, 512, 128, generator=generator, device=device) for _ in range(4))
    low = [x.bfloat16() for x in (q, k, v, grad)]
    out, lse = block_attention(*(x.double() for x in low[:3]))
    theirs = context_parallel.attend_block(*low[:3])
    differences = {"out": relative(theirs[0], out), "lse": relative(theirs[1], lse)}
    exact = context_parallel.block_gradients(*(x.double() for x in (low[3], *low[:3])), out, lse)
    fused = context_parallel.block_gradients(low[3], *low[:3], out.bfloat16(), lse.float())
    return differences | {name: relative(b, a) for name, a, b in zip(("dq", "dk", "dv"), exact, fused, strict=True)}


def step(
    preset_name: tyro.conf.Positional[str] = "7b",
    depths: tuple[int, int] = (2, 4),
    device: str = "cuda",
    peak: float | None = None,
    updates: int = 5,
    write: Path | None = None,
) -> None:
    """One update of a preset's clip at two depths, with recomputation, and what all blocks would take.

    Args:
        preset_name: the model.
        depths: numbers of blocks.
        device: where.
        peak: TFLOP/s that the device is made for, in the precision of the preset.
        updates: measured, after one that is not.
        write: JSON file to keep the result in.
    """
    config, own = preset(preset_name), torch.device(device)
    rows = []
    for depth in depths:
        shallow = replace(config, model=replace(config.model, depth=depth))
        seconds = statistics.median(seconds_of_updates(shallow, own, updates))
        rows.append({"depth": depth, "seconds": seconds, **rates(shallow, seconds, peak)})
    first, second = rows
    block = (second["seconds"] - first["seconds"]) / (second["depth"] - first["depth"])
    seconds = first["seconds"] + (config.model.depth - first["depth"]) * block
    whole_model = {"depth": config.model.depth, "seconds": seconds, **rates(config, seconds, peak)}
    results = {"preset": preset_name, "tokens": token_count(config, config.clip), "measured": rows}
    report("step", results | {"EXTRAPOLATED to all blocks, linear in depth": whole_model}, write)


def seconds_of_updates(config: Config, device: torch.device, count: int) -> list[float]:
    """Times of `count` updates on random latents, after one that is not measured."""
    denoiser, uncertainty = new_model(config, torch.Generator().manual_seed(0), device=device)
    recompute_blocks(denoiser)
    optimizer = build_optimizer(denoiser, uncertainty, config.train)
    network = in_bf16(denoiser, device) if config.train.precision == "bf16" else denoiser
    arguments, times = example(config, device), []
    for _ in range(count + 1):
        synchronize(device)
        started = time.perf_counter()
        optimizer.zero_grad()
        loss, _ = training_loss(network, uncertainty, *arguments, config.diffusion.sigma_data)
        loss.backward()
        optimizer.step()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return times[1:]


def rates(config: Config, seconds: float, peak: float | None) -> dict[str, float]:
    """Tokens a second, and the model's own arithmetic (three forward passes; recomputing counts as none)."""
    teraflops = 3 * sum(flops(config, config.clip).values()) / seconds / 1e12
    rate = {"tokens_per_second": token_count(config, config.clip) / seconds, "teraflops": teraflops}
    return rate | ({"mfu": teraflops / peak} if peak else {})


def recipe(seconds: float = 530, out: Path = Path("runs/toy-gpu"), device: str = "cuda") -> None:
    """A leg of the toy recipe: it is interrupted like a person would, and goes on when it is called again.

    Args:
        seconds: after which it is interrupted.
        out: folder of the recipe.
        device: where.
    """
    command = [sys.executable, "-m", "cosmos_ref.cli", "train", "--recipe", "toy", "--out", str(out)]
    process = subprocess.Popen([*command, "--device", device])
    with suppress(subprocess.TimeoutExpired):
        sys.exit(process.wait(seconds))
    process.send_signal(signal.SIGINT)
    sys.exit(process.wait())


def example(config: Config, device: torch.device) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """Random latents, their condition, noise and its level, for one clip of the preset's size."""
    generator = torch.Generator().manual_seed(1)
    x0, noise, given = (torch.randn(1, *latent_shape(config, config.clip), generator=generator) for _ in range(3))
    text = torch.randn(1, config.text.length, config.text.width, generator=generator)
    x0 = x0 * config.diffusion.sigma_data
    condition = text_condition(text, x0, torch.tensor([config.clip.fps]))
    if config.model.video2world:
        condition = give_frames(condition, x0, torch.tensor([1]), torch.tensor([0.05]), given)
    condition = {name: tensor.to(device) for name, tensor in condition.items()}
    return x0.to(device), condition, noise.to(device), torch.tensor([1.0], device=device)


def relative(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((found.double() - exact.double()).abs().max() / exact.double().abs().max()).item()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def report(name: str, results: dict[str, Any], write: Path | None) -> None:
    """Print what was found, with machine, versions and date, and keep it."""
    machine = describe_machine() | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})
    date = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({name: results, "date": date, "machine": machine, "versions": versions()}, indent=1)
    print(text)
    if write:
        write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"parity": parity, "step": step, "recipe": recipe})
