"""The schedule, the solvers and the noise, in numpy.

The formulas are those of `cosmos_ref.equations`, written again because that package imports PyTorch; tests hold them
equal.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from cosmos_export.bundle import BundleError

Denoise = Callable[[np.ndarray, float], np.ndarray]
"""D at a noisy sample and its level: the network with everything else fixed."""
Progress = Callable[[Iterable], Iterable]
"""Wraps the solver's steps, to show how far they are."""


def karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> np.ndarray:
    """The noise levels of an N-step sampler in float64, falling; N levels, then zero.

    Raises:
        BundleError: if there are fewer than two steps.
    """
    if num_steps < 2:
        raise BundleError(f"num_steps is {num_steps}; the schedule needs at least 2")
    ramp = np.linspace(0, 1, num_steps)
    levels = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return np.append(levels, 0.0)


def euler_step(x: np.ndarray, D: np.ndarray, sigma: float, sigma_next: float) -> np.ndarray:
    """First-order step along dx/dsigma = (x - D) / sigma."""
    return D + sigma_next / sigma * (x - D)


def heun_step(denoise: Denoise, x: np.ndarray, sigma: float, sigma_next: float) -> np.ndarray:
    """Second-order step: the mean of the slopes at both ends."""
    D = denoise(x, sigma)
    x_euler = euler_step(x, D, sigma, sigma_next)
    if sigma_next == 0:
        return x_euler
    return x_euler + (sigma / sigma_next - 1) / 2 * (denoise(x_euler, sigma_next) - D)


def phi2(z: float) -> float:
    """(e^z - 1 - z) / z^2, near zero by its series."""
    if abs(z) > 1:
        return (math.expm1(z) / z - 1) / z
    return sum(z**k / math.factorial(k + 2) for k in range(16))


def res_2ab_step(
    x: np.ndarray, D: np.ndarray, D_previous: np.ndarray, sigma: float, sigma_next: float, sigma_previous: float
) -> np.ndarray:
    """Second-order exponential multistep, from this step's estimate and the one before; a step to zero returns D."""
    if sigma_next == 0:
        return D
    h = math.log(sigma / sigma_next)
    c2 = -math.log(sigma_previous / sigma) / h
    return euler_step(x, D, sigma, sigma_next) + h * phi2(-h) / c2 * (D_previous - D)


def integrate(
    denoise: Denoise, noise: np.ndarray, sigmas: Sequence[float], solver: str, progress: Progress = iter
) -> np.ndarray:
    """Clean latents from unit noise, over falling noise levels of which the last is 0.

    Raises:
        BundleError: if the solver is unknown.
    """
    if solver not in ("euler", "heun", "res_2ab"):
        raise BundleError(f"unknown solver {solver!r}; accepted: euler, heun, res_2ab")
    levels = [float(sigma) for sigma in sigmas]
    x, previous = levels[0] * noise, None
    for sigma, sigma_next in progress(list(pairwise(levels))):
        if solver == "heun":
            x = heun_step(denoise, x, sigma, sigma_next)
            continue
        D = denoise(x, sigma)
        if solver == "euler" or previous is None:  # the first step has none before it
            x_next = euler_step(x, D, sigma, sigma_next)
        else:
            x_next = res_2ab_step(x, D, previous[0], sigma, sigma_next, previous[1])
        x, previous = x_next, (D, sigma)
    return x


def noise_from_seed(seed: int, index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Unit noise in float32, the same as the PyTorch pipelines draw: Philox, keyed by seed and index."""
    key = np.array([seed, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)
