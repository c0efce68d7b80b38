"""The schedule, the solvers, guidance, given frames and the noise, in numpy.

The formulas are those of `cosmos_ref.equations`, written again because that package imports PyTorch; tests hold them
equal.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from cosmos_export.errors import BundleError

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


def initial_std(sigma_max: float, data_std: float) -> float:
    """Standard deviation of the first sample: that of data with noise `sigma_max` on them."""
    return math.hypot(sigma_max, data_std)


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


def cfg(D_conditional: np.ndarray, D_unconditional: np.ndarray, guidance: float) -> np.ndarray:
    """Classifier-free guidance, D_c + g (D_c - D_u): 0 is none."""
    return D_conditional + guidance * (D_conditional - D_unconditional)


def frame_mask(given: np.ndarray, frames: int) -> np.ndarray:
    """Indicator `B 1 T 1 1` of the given latent frames: the first n of each sample."""
    return (np.arange(frames) < given[:, None]).astype(np.float32).reshape(-1, 1, frames, 1, 1)


def active_frames(frame_mask: np.ndarray, sigma: np.ndarray, augment_sigma: np.ndarray) -> np.ndarray:
    """Given frames that still know more than the sample: all of them, until its noise has fallen to theirs."""
    return frame_mask * (sigma > augment_sigma).astype(frame_mask.dtype).reshape(-1, 1, 1, 1, 1)


def replace_frames(D: np.ndarray, x0: np.ndarray, frame_mask: np.ndarray) -> np.ndarray:
    """Denoised estimate in which the given frames are the given ones."""
    return frame_mask * x0 + (1 - frame_mask) * D


def bf16(x: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16, the nearest, ties to even; still float32."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def integrate(
    denoise: Denoise,
    noise: np.ndarray,
    sigmas: Sequence[float],
    solver: str,
    progress: Progress = iter,
    *,
    initial_noise: str = "sigma_max",
    state: str = "fp32",
) -> np.ndarray:
    """Clean latents from unit noise.

    Args:
        denoise: D with everything else fixed.
        noise: unit noise, which the first noise level multiplies.
        sigmas: falling noise levels; where the last two are the same, nothing is left to do.
        solver: "euler", "heun" or "res_2ab".
        progress: wraps the steps, to show how far they are.
        initial_noise: "sigma_max", or "total" for that of noise and unit data.
        state: "bf16" rounds the sample to bfloat16 after each step; "fp32" leaves it.

    Raises:
        BundleError: if solver, initial noise or state is unknown.
    """
    for what, value, accepted in (
        ("solver", solver, ("euler", "heun", "res_2ab")),
        ("initial_noise", initial_noise, ("sigma_max", "total")),
        ("state", state, ("fp32", "bf16")),
    ):
        if value not in accepted:
            raise BundleError(f"unknown {what} {value!r}; accepted: {', '.join(accepted)}")
    rounded = bf16 if state == "bf16" else np.asarray
    levels = [float(sigma) for sigma in sigmas]
    size = initial_std(levels[0], 0.0 if initial_noise == "sigma_max" else 1.0)
    x, previous = rounded(size * noise), None
    for sigma, sigma_next in progress(list(pairwise(levels))):
        if not sigma_next < sigma:
            continue
        if solver == "heun":
            x = rounded(heun_step(denoise, x, sigma, sigma_next))
            continue
        D = denoise(x, sigma)
        if solver == "euler" or previous is None:  # the first step has none before it
            x_next = euler_step(x, D, sigma, sigma_next)
        else:
            x_next = res_2ab_step(x, D, previous[0], sigma, sigma_next, previous[1])
        x, previous = rounded(x_next), (D, sigma)
    return x


def noise_from_seed(seed: int, index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Unit noise in float32, the same as the PyTorch pipelines draw: Philox, keyed by seed and index."""
    key = np.array([seed, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)
