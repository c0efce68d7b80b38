"""One training loss with all its gradients, in one process and in a layout of many."""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosmos_ref.config import PRESETS, Config, LoRAConfig, ParallelConfig
from cosmos_ref.distributed.layout import ManyProcesses
from cosmos_ref.model.initialization import build_denoiser, build_uncertainty
from cosmos_ref.training.step import training_loss
from tests.blocks.filled import filled
from tests.strategies import normal

CPU = torch.device("cpu")
SIZES = {
    "even": (3, 8, 8),  # 48 tokens
    "odd": (3, 2, 6),  # 9
    "image": (1, 6, 6),  # 9, one frame
    "few": (1, 2, 6),  # 3: fewer than 4 processes
}
"""Latents (t, h, w); a token is 1 x 2 x 2 of them."""
SAMPLES = 4


class Case(NamedTuple):
    """A layout and a clip."""

    replicate: int = 1
    cp: int = 1
    ulysses: int = 0
    heads: int = 4
    size: str = "even"
    recompute: bool = False
    video2world: bool = True
    compile: bool = False
    lora_rank: int = 0
    depth: int = 2
    images: bool = False
    """Whether every process takes its own clips."""


def model_of(case: Case) -> Config:
    """A network of some ten thousand weights with so many heads of sixteen channels."""
    micro = PRESETS["micro"]
    model = replace(
        micro.model,
        width=16 * case.heads,
        num_heads=case.heads,
        depth=case.depth,
        video2world=case.video2world,
        max_tokens=(4, 5, 5),
    )
    return replace(micro, model=model, lora=LoRAConfig(rank=case.lora_rank))


def modules_of(config: Config, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Denoiser and u(sigma), every weight of which is drawn."""
    found = {"denoiser": build_denoiser(config), "uncertainty": build_uncertainty(config)}
    for module in found.values():
        module.to_empty(device=CPU)
        filled(module)
        for i, buffer in enumerate(module.buffers()):
            buffer.copy_(normal(100 + i, *buffer.shape))
        module.to(dtype)
    return found


def placed(config: Config, values: dict[str, nn.Module], layout: ManyProcesses) -> dict[str, nn.Module]:
    """The same modules in a layout."""
    found = {"denoiser": build_denoiser(config), "uncertainty": build_uncertainty(config)}
    for name, module in found.items():
        module.to(next(values[name].parameters()).dtype)
        layout.place(module)
        module.to_empty(device=CPU)
        for key, tensor in module.state_dict().items():
            layout.write(tensor, values[name].state_dict()[key])
    return found


def samples_of(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything that the loss is made of, for all samples."""
    t, h, w = SIZES[case.size]
    latents = SAMPLES, 16, t, h, w
    found = {
        "x0": normal(1, *latents),
        "noise": normal(2, *latents),
        "sigma": normal(3, SAMPLES).exp(),
        "text_embeddings": normal(4, SAMPLES, 5, 16),
        "fps": torch.tensor([24.0, 30.0, 12.0, 24.0]),
        "padding_mask": (normal(5, SAMPLES, 1, h, w) > 1).double(),
    }
    if case.video2world:
        given = torch.arange(t)[None] < torch.tensor([0, 1, 2, 1])[:, None]
        found["frame_mask"] = (given & (torch.arange(t) < max(1, t - 1))).double().reshape(SAMPLES, 1, t, 1, 1)
        if t == 1:
            found["frame_mask"].zero_()
        found["given_latents"] = normal(6, *latents)
        found["augment_sigma"] = (normal(7, SAMPLES) - 3).exp()
    return {name: value.to(dtype) for name, value in found.items()}


def loss_of(modules: dict[str, nn.Module], samples: dict[str, Tensor]) -> Tensor:
    """The training loss, after its backward pass."""
    rest = dict(samples)
    x0, noise, sigma = (rest.pop(name) for name in ("x0", "noise", "sigma"))
    loss, _ = training_loss(modules["denoiser"], modules["uncertainty"], x0, rest, noise, sigma, 0.5)
    loss.backward()
    return loss.detach()


def gradients_of(modules: dict[str, nn.Module], layout: ManyProcesses | None = None) -> dict[str, Tensor]:
    """Every gradient, whole."""
    named = {f"{of}.{name}": p for of, module in modules.items() for name, p in module.named_parameters()}
    named = {name: p for name, p in named.items() if p.requires_grad}
    assert all(p.grad is not None for p in named.values())
    return {name: layout.whole(p.grad) if layout else p.grad for name, p in named.items()}


def layout_of(case: Case, precision: str = "fp32", spread_weights: bool = True) -> ManyProcesses:
    """The layout of a case, among the processes that have joined."""
    parallel = ParallelConfig(
        replicate=case.replicate, cp=case.cp, ulysses=case.ulysses, recompute=case.recompute, compile=case.compile
    )
    return ManyProcesses(parallel, case.heads, CPU, precision, spread_weights)


def my_share(samples: dict[str, Tensor], layout: ManyProcesses) -> dict[str, Tensor]:
    """This process's samples."""
    return {name: value[layout.data_rank :: layout.data_size] for name, value in samples.items()}


def difference(case: Case, dtype: torch.dtype, precision: str = "fp32") -> tuple[float, dict[str, float]]:
    """How far loss and gradients of a layout are from those of one process.

    Gradients are measured in units of the largest of their tensor.
    """
    config, samples = model_of(case), samples_of(case, dtype)
    alone = modules_of(config, dtype)
    expected = loss_of(alone, samples)
    layout = layout_of(case, precision)
    spread = placed(config, alone, layout)
    if case.images:
        with layout.images():
            loss = layout.mean(loss_of(spread, my_share(samples, layout)))
    else:
        loss = layout.mean(loss_of(spread, my_share(samples, layout)))
    theirs, mine = gradients_of(alone), gradients_of(spread, layout)
    assert theirs.keys() == mine.keys()
    errors = {name: ((mine[name] - g).abs().max() / g.abs().max().clamp(min=1e-3)).item() for name, g in theirs.items()}
    return (loss - expected).abs().item(), errors


def check(cases: list[Case], dtype: torch.dtype, limit: float, precision: str = "fp32") -> None:
    """Compare every case with one process.

    Raises:
        AssertionError: naming the case and what differs.
    """
    for case in cases:
        off, errors = difference(case, dtype, precision)
        worst = max(errors, key=errors.__getitem__)
        message = (
            f"{case} on {dist.get_world_size()}: loss off by {off:.1e}, gradient of {worst} by {errors[worst]:.1e}"
        )
        assert off < limit and errors[worst] < limit, message
