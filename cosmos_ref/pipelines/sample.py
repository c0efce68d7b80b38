"""The sampling loop: from noise to latents, whatever denoises and whichever solver steps."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.conditioning.condition import Condition, both_branches
from cosmos_ref.config import DiffusionConfig
from cosmos_ref.equations.conditioning import active_frames, replace_frames
from cosmos_ref.equations.guidance import cfg
from cosmos_ref.equations.noise import karras_sigmas
from cosmos_ref.equations.solvers import euler_step, heun_step, res_2ab_step
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.shapes import Latents

Denoise = Callable[[Tensor, float], Tensor]
"""D at a noisy sample and its level: the network with everything else fixed."""
Memory = tuple[Tensor, float] | None
"""Estimate and level of the step before, for solvers that look back."""
Step = Callable[[Denoise, Tensor, float, float, Memory], tuple[Tensor, Memory]]


def euler(denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, memory: Memory) -> tuple[Tensor, Memory]:
    """One evaluation, first order."""
    return euler_step(x, denoise(x, sigma), sigma, sigma_next), None


def heun(denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, memory: Memory) -> tuple[Tensor, Memory]:
    """Two evaluations, second order."""
    return heun_step(denoise, x, sigma, sigma_next), None


def res_2ab(denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, memory: Memory) -> tuple[Tensor, Memory]:
    """One evaluation, second order from the second step on: the original Cosmos-1.0 solver."""
    D = denoise(x, sigma)
    if memory is None:
        return euler_step(x, D, sigma, sigma_next), (D, sigma)
    return res_2ab_step(x, D, memory[0], sigma, sigma_next, memory[1]), (D, sigma)


SOLVERS: dict[str, Step] = {"euler": euler, "heun": heun, "res_2ab": res_2ab}


def sample(
    denoise: Denoise,
    noise: Latents,
    sigmas: Float[Tensor, "N+1"],
    solver: str,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Latents:
    """Clean latents from unit noise.

    Args:
        denoise: D_theta with its condition fixed.
        noise: unit noise; the first sample is this times the first noise level.
        sigmas: falling noise levels, the last one 0.
        solver: a name in `SOLVERS`.
        progress: wraps the steps, to show how far they are.
    """
    levels = sigmas.tolist()
    x, memory = levels[0] * noise, None
    for sigma, sigma_next in progress(list(pairwise(levels))):
        x, memory = SOLVERS[solver](denoise, x, sigma, sigma_next, memory)
    return x


def guided(
    denoiser: Denoiser,
    condition: Condition,
    null_text: Float[Tensor, "B M E"],
    guidance: float,
    x0: Latents | None = None,
) -> Denoise:
    """D_theta with guidance, both branches in one call; where frames of `x0` are given, D holds them as they are.

    Without guidance (g = 0) the second branch is not computed.
    """
    conditions = both_branches(condition, null_text) if guidance else condition

    @torch.no_grad()
    def denoise(x: Tensor, sigma: float) -> Tensor:
        levels = x.new_full((len(x),), sigma)
        if guidance:
            D_text, D_null = denoiser(torch.cat([x, x]), torch.cat([levels, levels]), **conditions).chunk(2)
            D = cfg(D_text, D_null, guidance)
        else:
            D = denoiser(x, levels, **conditions)
        if x0 is not None:
            D = replace_frames(D, x0, active_frames(condition["frame_mask"], levels, condition["augment_sigma"]))
        return D

    return denoise


def schedule(config: DiffusionConfig, num_steps: int) -> Float[Tensor, "N+1"]:
    """The noise levels of a sampler for this diffusion."""
    return karras_sigmas(num_steps, config.sigma_min, config.sigma_max, config.rho)


def noise_from_seed(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Unit noise, the same in PyTorch and without it: numpy's Philox generator, keyed by seed and index."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
