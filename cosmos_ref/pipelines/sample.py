"""The sampling loop: from noise to latents, whatever denoises and whichever solver steps."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.conditioning.condition import Condition, both_branches
from cosmos_ref.config import DiffusionConfig, SampleConfig
from cosmos_ref.equations.conditioning import active_frames, replace_frames
from cosmos_ref.equations.guidance import cfg
from cosmos_ref.equations.noise import karras_sigmas
from cosmos_ref.equations.solvers import euler_step, heun_step, initial_std, res_2ab_step
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
    settings: SampleConfig,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Latents:
    """Clean latents from unit noise.

    Args:
        denoise: D_theta with its condition fixed.
        noise: unit noise, which the first noise level multiplies.
        sigmas: falling noise levels; where the last two are the same, nothing is left to do.
        settings: solver, size of the first sample, and precision that samples are rounded to.
        progress: wraps the steps, to show how far they are.
    """
    precision = torch.bfloat16 if settings.state == "bf16" else noise.dtype
    levels = sigmas.tolist()
    size = initial_std(levels[0], 0.0 if settings.initial_noise == "sigma_max" else 1.0)
    x, memory = (size * noise).to(precision).to(noise), None
    for sigma, sigma_next in progress(list(pairwise(levels))):
        if sigma_next < sigma:
            x, memory = SOLVERS[settings.solver](denoise, x, sigma, sigma_next, memory)
            x = x.to(precision).to(noise)
    return x


def guided(
    denoiser: Denoiser,
    noise: Latents,
    sigmas: Float[Tensor, "N+1"],
    condition: Condition,
    null_text: Float[Tensor, "B M E"],
    guidance: float,
    x0: Latents | None = None,
    draw_given: Callable[[], Latents] | None = None,
) -> Denoise:
    """D_theta with guidance, both branches in one call; where frames of `x0` are given, D holds them as they are.

    What no step changes is computed here, once: text, positions, and what each noise level says to the blocks.
    Without guidance (g = 0) the second branch is not computed.

    Args:
        denoiser: D_theta.
        noise: lends size, precision and device.
        sigmas: the noise levels that D will be asked at.
        condition: what the denoiser is told.
        null_text: what guidance leads away from.
        guidance: g.
        x0: clean latents with the given frames in them.
        draw_given: `given_latents` with new noise, called for each branch at each call; without it theirs is fixed.
    """
    rest = dict(both_branches(condition, null_text) if guidance else condition)
    text_embeddings, fps = rest.pop("text_embeddings"), rest.pop("fps")
    branches = 2 if guidance else 1
    levels = [sigma for sigma in sigmas.tolist() if sigma > 0]
    with torch.no_grad():
        prepared = denoiser.prepare(noise, text_embeddings, fps)
        modulations = denoiser.modulations(noise.new_tensor(levels))

    @torch.no_grad()
    def denoise(x: Tensor, sigma: float) -> Tensor:
        each = x.new_full((branches * len(x),), sigma)
        fresh = {"given_latents": torch.cat([draw_given() for _ in range(branches)])} if draw_given else {}
        level = modulations.at(levels.index(sigma))
        D = denoiser.run(torch.cat([x] * branches), each, level, prepared, **rest | fresh)
        if guidance:
            D_text, D_null = D.chunk(2)
            D = cfg(D_text, D_null, guidance)
        if x0 is not None:
            active = active_frames(condition["frame_mask"], each[: len(x)], condition["augment_sigma"])
            D = replace_frames(D, x0, active)
        return D

    return denoise


def schedule(config: DiffusionConfig, settings: SampleConfig) -> Float[Tensor, "N+1"]:
    """The noise levels of a sampler for this diffusion."""
    sigmas = karras_sigmas(settings.num_steps, config.sigma_min, config.sigma_max, config.rho)
    if settings.last_sigma == "sigma_min":
        sigmas[-1] = sigmas[-2]
    return sigmas


def noise_from_seed(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Unit noise, the same in PyTorch and without it: numpy's Philox generator, keyed by seed and index."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
