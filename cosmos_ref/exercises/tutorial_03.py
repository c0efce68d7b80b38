"""Exercises of tutorial 03: solvers."""

import itertools
import math

import torch

from cosmos_ref.equations import exact, noise, solvers
from cosmos_ref.exercises.checking import exercise

OFFICIAL = {0: 80.0, 1: 67.126016865350, 2: 56.070267422078, 33: 0.0005527091292232, 34: 0.0002, 35: 0.0}
"""Some of the 35 + 1 noise levels of the released sampler (80 to 0.0002, rho 7, then zero), in float64."""


@exercise(
    "03.karras_sigmas",
    en="Take the root 1/rho of both ends, space N levels evenly between them, raise to rho; then append a zero.",
    pt="Tire a raiz 1/rho dos dois extremos, ponha N níveis a distâncias iguais, eleve a rho; depois junte um zero.",
)
def karras_sigmas(fn, case):
    """The golden levels of the released sampler in float64, then any other schedule."""
    official = fn(35, 2e-4, 80.0, 7.0)
    case.holds(
        len(official) == 36,
        f"N = 35: len = 36 (yours / seu: {len(official)})",
        en="N levels make N - 1 steps; the step to zero is the last of N.",
        pt="N níveis dão N - 1 passos; o passo até zero é o último dos N.",
    )
    for index, level in OFFICIAL.items():
        case.holds(
            abs(float(official[index]) - level) <= 1e-10 * level,
            f"N = 35, i = {index}: {level} (yours / seu: {float(official[index]):.13g})",
            en=_PRECISION_EN if abs(float(official[index]) - level) <= 1e-4 * level else None,
            pt=_PRECISION_PT if abs(float(official[index]) - level) <= 1e-4 * level else None,
        )
    num_steps, rho = case.whole("N", 2, 40), float(case.whole("rho", 1, 9))
    sigma_min, sigma_max = case.sigma("sigma_min", 2e-4, 0.1).item(), case.sigma("sigma_max", 1.0, 200.0).item()
    wanted = noise.karras_sigmas(num_steps, sigma_min, sigma_max, rho)
    case.close(fn(num_steps, sigma_min, sigma_max, rho), wanted, tolerance=1e-10)


_PRECISION_EN = "The formula is right, the digits are not: compute in float64 (dtype=torch.float64) from the start."
_PRECISION_PT = "A fórmula está certa, os dígitos não: calcule em float64 (dtype=torch.float64) desde o começo."


@exercise(
    "03.heun_step",
    en="Take the Euler step, ask for the slope where it ends, then step again from x with the mean of both slopes.",
    pt="Dê o passo de Euler, peça a inclinação onde ele acaba, e parta de novo de x com a média das duas inclinações.",
)
def heun_step(fn, case):
    """Its error falls with the square of the step; to zero it is the estimate; and it is Heun's step."""
    std = case.sigma("s", 0.2, 1.0).item()

    def denoise(x, level):
        return exact.gaussian_denoiser(x, torch.full(x.shape[:1], level, dtype=x.dtype), torch.zeros_like(x), std)

    order = observed_order(lambda x, sigma, sigma_next: fn(denoise, x, sigma, sigma_next), std)
    case.holds(1.8 <= order <= 2.2, f"1.8 ≤ slope ≤ 2.2 (yours / seu: {order:.2f})")
    x, sigma = case.number("x", 0.125, 4.0)[None], case.sigma("sigma", 0.1, 10.0).item()
    case.close(
        fn(denoise, x, sigma, 0.0),
        denoise(x, sigma),
        en="At sigma' = 0 there is no second slope (it would divide by zero): keep the Euler step, which lands on D.",
        pt="Em sigma' = 0 não há segunda inclinação (dividiria por zero): fique com o passo de Euler, que chega a D.",
    )
    sigma_next = sigma * case.number("sigma'/sigma", 0.125, 0.875).item()
    case.close(fn(denoise, x, sigma, sigma_next), solvers.heun_step(denoise, x, sigma, sigma_next))


def observed_order(step, std: float) -> float:
    """How fast the error at sigma 0.1 falls with the number of steps from sigma 2, on N(0, std^2): -d ln e / d ln N."""
    counts, errors = (16, 32), []
    for count in counts:
        x = torch.ones(1, dtype=torch.float64)
        levels = noise.karras_sigmas(count + 1, 0.1, 2.0, 7.0)[:-1].tolist()
        for sigma, sigma_next in itertools.pairwise(levels):
            x = step(x, sigma, sigma_next)
        exact_end = math.sqrt((0.1**2 + std**2) / (2.0**2 + std**2))
        errors.append(max(abs(float(x) - exact_end), 1e-300))
    return math.log(errors[0] / errors[1]) / math.log(counts[1] / counts[0])


@exercise(
    "03.euler_in_log",
    en="x' = D + (sigma'/sigma) (x - D), and sigma'/sigma = e^-h.",
    pt="x' = D + (sigma'/sigma) (x - D), e sigma'/sigma = e^-h.",
)
def euler_in_log(fn, case):
    """The same step as Euler's, for h = ln(sigma / sigma')."""
    x, D, h = case.number("x"), case.number("D"), case.number("h", 0.25, 3.0).item()
    case.close(fn(x, D, h), solvers.euler_step(x, D, 1.0, math.exp(-h)))
