import itertools
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


# --- what the tutorial states, on N(0, s^2) from one standard deviation of the noise at sigma = 80

OFFICIAL = noise.karras_sigmas(35, 2e-4, 80.0, 7.0).tolist()


def run(sigmas, std=0.5, answer=1.0, start=80.0):
    """Euler, every answer of the perfect denoiser multiplied by `answer`."""
    x = torch.tensor([start], dtype=torch.float64)
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = solvers.euler_step(x, answer * x * std**2 / (sigma**2 + std**2), sigma, sigma_next)
    return x.item()


def test_heun_with_as_many_questions_is_wider_than_res_2ab():
    """18 levels and a zero are 17 double questions and a single one: 35. RES 2AB ends at 0.509686, the truth at 0.5."""
    x = torch.tensor([80.0], dtype=torch.float64)
    asked = []

    def denoise(x, sigma):
        asked.append(sigma)
        return x * 0.25 / (sigma**2 + 0.25)

    for sigma, sigma_next in itertools.pairwise(noise.karras_sigmas(18, 2e-4, 80.0, 7.0).tolist()):
        x = solvers.heun_step(denoise, x, sigma, sigma_next)
    assert len(asked) == 35
    assert x.item() == pytest.approx(0.532494, abs=6e-7)


def test_the_shifted_linear_schedule_loses_fine_detail():
    t = torch.linspace(80 / 85, 0, 36, dtype=torch.float64)
    t = 5 * t / (1 + 4 * t)
    shifted = (t / (1 - t)).tolist()
    assert shifted[0] == pytest.approx(80, rel=1e-12) and shifted[-2] == pytest.approx(0.138, abs=1e-3)
    assert run(shifted) == pytest.approx(0.443116, abs=6e-7)
    assert run(shifted, 0.01, start=math.hypot(80, 0.01)) / 0.01 == pytest.approx(0.072, abs=1e-3)
    assert run(OFFICIAL, 0.01, start=math.hypot(80, 0.01)) / 0.01 == pytest.approx(0.854, abs=1e-3)


def test_the_root_upside_down_ends_at_the_mean():
    levels = grid(invert=True)(35, 2e-4, 80.0, 7.0).tolist()
    assert levels[1] == pytest.approx(79.66, abs=0.01) and levels[33] == pytest.approx(48.34, abs=0.01)
    assert run([*levels[:34], 0.0]) == pytest.approx(0.005, abs=5e-4)


def test_single_precision_changes_the_seventh_digit():
    single = grid(dtype=torch.float32)(35, 2e-4, 80.0, 7.0).tolist()
    assert 79.99998 <= single[0] < 79.99999
    assert 1e-8 < abs(run(single) - run(OFFICIAL)) < 1e-6


def test_one_percent_a_call_is_more_than_six_over_a_trajectory():
    assert run(OFFICIAL, answer=0.99) / run(OFFICIAL) - 1 == pytest.approx(-0.066, abs=5e-4)


def test_the_ends_of_four_schedules():
    levels = noise.karras_sigmas(36, 2e-3, 80.0, 7.0).tolist()
    assert (levels[1], OFFICIAL[1]) == (pytest.approx(68.325, abs=5e-4), pytest.approx(67.126, abs=5e-4))
    ends = [run(OFFICIAL), run(levels[:-1]), run([*levels[:-1], levels[-2]]), run(levels)]
    assert ends == [pytest.approx(end, abs=6e-7) for end in (0.456869, 0.461004, 0.461004, 0.460996)]
    assert run(noise.karras_sigmas(35, 2e-4, 80.0, 1.0).tolist()) == pytest.approx(0.103, abs=1e-3)
