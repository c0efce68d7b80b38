import math

import pytest
import torch

from cosmos_ref.equations import noise, solvers
from cosmos_ref.exercises import check


def grid(points=0, zero=True, invert=False, dtype=torch.float64):
    """A Karras schedule, or one with a slip."""

    def sigmas(num_steps, sigma_min, sigma_max, rho):
        root = rho if invert else 1 / rho
        low, high = (torch.tensor(level, dtype=dtype) ** root for level in (sigma_min, sigma_max))
        levels = (high + torch.linspace(0, 1, num_steps + points, dtype=dtype) * (low - high)) ** (1 / root)
        return torch.cat([levels, levels.new_zeros(1)]) if zero else levels

    return sigmas


def slope(denoise, x, sigma):
    return (x - denoise(x, sigma)) / sigma


def heun_without_a_last_step(denoise, x, sigma, sigma_next):
    there = x + (sigma_next - sigma) * slope(denoise, x, sigma)
    return x + (sigma_next - sigma) * (slope(denoise, x, sigma) + slope(denoise, there, sigma_next)) / 2


def second_order(weights=(0.5, 0.5), start=0.0, moved=True):
    """A step from two slopes, with a slip."""

    def step(denoise, x, sigma, sigma_next):
        first = slope(denoise, x, sigma)
        euler = x + (sigma_next - sigma) * first
        if sigma_next == 0:
            return euler
        second = slope(denoise, euler if moved else x, sigma_next)
        return x + start * (euler - x) + (sigma_next - sigma) * (weights[0] * first + weights[1] * second)

    return step


def midpoint(denoise, x, sigma, sigma_next):
    if sigma_next == 0:
        return denoise(x, sigma)
    middle = (sigma + sigma_next) / 2
    return x + (sigma_next - sigma) * slope(denoise, x + (middle - sigma) * slope(denoise, x, sigma), middle)


RIGHT = {
    "03.karras_sigmas": [noise.karras_sigmas, grid(), lambda *numbers: grid()(*numbers).tolist()],
    "03.heun_step": [solvers.heun_step, second_order()],
    "03.euler_in_log": [
        lambda x, D, h: math.exp(-h) * x + (1 - math.exp(-h)) * D,
        lambda x, D, h: D + math.exp(-h) * (x - D),
    ],
}
WRONG = {  # a plausible slip, and what a student should see of it
    "03.karras_sigmas": {
        "float32": (grid(dtype=torch.float32), "i = 0: 80.0 (yours / seu: 79.9999847"),
        "N + 1 levels, then zero": (grid(points=1), "len = 36 (yours / seu: 37)"),
        "N + 1 levels, no zero": (grid(points=1, zero=False), "i = 1: 67.12601686535 (yours / seu: 67.4675"),
        "no zero": (grid(zero=False), "len = 36 (yours / seu: 35)"),
        "rho inverted": (grid(invert=True), "i = 1: 67.12601686535 (yours / seu: 79.6595"),
        "upwards": (lambda *numbers: grid()(*numbers).flip(0), "i = 0: 80.0 (yours / seu: 0)"),
        "rho always 7": (lambda n, low, high, rho: grid()(n, low, high, 7.0), "N = 3, rho = 1"),
    },
    "03.heun_step": {
        "no correction": (
            lambda denoise, x, a, b: solvers.euler_step(x, denoise(x, a), a, b),
            "1.8 ≤ slope ≤ 2.2 (yours / seu: 0.99)",
        ),
        "a correction at zero": (heun_without_a_last_step, "yours / seu: [nan]"),
        "the second slope alone": (second_order(weights=(0, 1)), "1.8 ≤ slope ≤ 2.2"),
        "the weights of Ralston": (second_order(weights=(0.25, 0.75)), "1.8 ≤ slope ≤ 2.2"),
        "the second slope at the old state": (second_order(moved=False), "1.8 ≤ slope ≤ 2.2"),
        "the mean step from where Euler ended": (second_order(start=1.0), "1.8 ≤ slope ≤ 2.2"),
        "the sum of the slopes": (second_order(weights=(1, 1)), "1.8 ≤ slope ≤ 2.2"),
        "the slope in the middle": (midpoint, "counter-example"),
    },
    "03.euler_in_log": {
        "h for 1 - e^-h": (lambda x, D, h: math.exp(-h) * x + h * D, "x = 0, D = 0.125, h = 0.25"),
        "the sign of h": (lambda x, D, h: math.exp(h) * x + (1 - math.exp(h)) * D, "x = 0, D = 0.125, h = 0.25"),
        "x and D swapped": (lambda x, D, h: math.exp(-h) * D + (1 - math.exp(-h)) * x, "x = 0, D = 0.125, h = 0.25"),
    },
}


@pytest.mark.parametrize(("id", "fn"), [(id, fn) for id, functions in RIGHT.items() for fn in functions])
def test_right_solutions_pass(id, fn, capsys):
    assert check(id, fn)
    assert capsys.readouterr().out == f"{id}: ✓\n"


@pytest.mark.parametrize(
    ("id", "fn", "example"),
    [pytest.param(id, *wrong, id=f"{id}: {slip}") for id, slips in WRONG.items() for slip, wrong in slips.items()],
)
def test_wrong_solutions_fail_on_the_smallest_case(id, fn, example, capsys):
    assert not check(id, fn)
    printed = capsys.readouterr().out
    assert example in printed
    assert "counter-example / contraexemplo: " in printed and "hint: " in printed and "dica: " in printed


def test_a_schedule_in_float32_is_told_so(capsys):
    check("03.karras_sigmas", grid(dtype=torch.float32))
    printed = capsys.readouterr().out
    assert "hint: The formula is right, the digits are not" in printed


@pytest.mark.parametrize("id", RIGHT)
def test_holes_are_no_errors(id, capsys):
    def hole(*arguments):
        raise NotImplementedError

    assert not check(id, hole)
    assert "not written yet" in capsys.readouterr().out
