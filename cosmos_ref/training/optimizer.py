"""AdamW, which weights it decays, and the learning rate over training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_ref.config import TrainConfig
from cosmos_ref.equations.schedules import cooling_down, warmup
from cosmos_ref.errors import UserError

WARMUP_START = 1e-6
"""Factor of the learning rate in the very first update."""


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of update number `step`, counted from 0: warm-up, then constant, then down to zero."""
    factor = warmup(step, config.warmup_steps, WARMUP_START)
    if config.cooling_steps:
        factor *= cooling_down(step, max(0, config.num_steps - config.cooling_steps), config.num_steps)
    return config.learning_rate * factor


def build_optimizer(denoiser: nn.Module, uncertainty: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over both modules.

    Only the matrices of the denoiser's linear layers decay. Norms and position tables do not: zero is no natural value
    for a scale, and positions are normalised anyway. Nor does u(sigma), whose size is its meaning. Nor do adapters: few
    as their numbers are, the rank limits them; so in a training of adapters nothing decays.
    """
    trained = [p for p in [*denoiser.parameters(), *uncertainty.parameters()] if p.requires_grad]
    matrices = {id(module.weight) for module in denoiser.modules() if isinstance(module, nn.Linear)}
    decayed = [parameter for parameter in trained if id(parameter) in matrices]
    others = [parameter for parameter in trained if id(parameter) not in matrices]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale all gradients down together so that their norm is at most `max_norm`; gives the norm they had.

    Gradients that are sharded over processes are measured whole. Nothing is scaled if the norm is not finite.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = []
    for sharded in (False, True):  # told apart without loading torch.distributed.tensor
        total: Any = torch.nn.utils.get_total_norm([g for g in gradients if hasattr(g, "full_tensor") == sharded])
        norms.append((total.full_tensor() if hasattr(total, "full_tensor") else total).item())
    norm = math.hypot(*norms)
    if max_norm < norm < math.inf:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm


def optimizer_tensors(optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The optimizer's moments by name: `exp_avg.denoiser.network...`; none before the first update."""
    return {
        f"{key}.{name}": value
        for name, parameter in _named(modules).items()
        for key, value in optimizer.state[parameter].items()
    }


def begin_moments(optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module]) -> None:
    """Give the optimizer moments to fill, as it has them after its first update; AdamW makes its own only then."""
    for parameter in _named(modules).values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }


def load_optimizer(
    optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer its moments back: undoes `optimizer_tensors` of an optimizer that has made an update.

    Raises:
        UserError: moments are missing, unexpected or of another shape: AdamW would start them again in silence.
    """
    names = _named(modules)
    expected = {f"step.{name}": torch.Size([]) for name in names}
    expected |= {f"{key}.{name}": p.shape for name, p in names.items() for key in ("exp_avg", "exp_avg_sq")}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if wrong := sorted(name for name, _ in expected.items() ^ found.items()):
        listed = "\n  ".join(wrong)
        raise UserError(f"the moments of the optimizer do not fit; use a checkpoint of this training:\n  {listed}")
    for full_name, tensor in tensors.items():
        key, name = full_name.split(".", 1)
        parameter = names[name]
        optimizer.state[parameter][key] = tensor.to(parameter.device)


def _named(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {
        f"{of}.{name}": p for of, module in modules.items() for name, p in module.named_parameters() if p.requires_grad
    }
