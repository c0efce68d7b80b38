import math
import statistics

import pytest
import torch

from cosmos_ref.equations import edm, exact, forms, losses
from cosmos_ref.exercises import check

RIGHT = {
    "02.loss_weight": [edm.loss_weight, lambda sigma, sigma_data: 1 / sigma**2 + 1 / sigma_data**2],
    "02.best_logvar": [torch.log],
    "02.noise_weight": [forms.noise_loss_weight, lambda sigma, s: sigma**2 * (sigma**2 + s**2) / (sigma * s) ** 2],
}
WRONG = {  # a plausible slip, and the counter-example that a student should see
    "02.loss_weight": {
        "the seed's: no square": (lambda sigma, s: (sigma**2 + s**2) / (sigma * s), "sigma = 1, sigma_data = 0.5"),
        "undone once": (lambda sigma, s: 1 / edm.c_out(sigma, s), "sigma = 1, sigma_data = 1"),
        "upside down": (lambda sigma, s: edm.c_out(sigma, s) ** 2, "sigma = 1, sigma_data = 1"),
        "only the noise": (lambda sigma, s: 1 / sigma**2, "sigma = 1, sigma_data = 1"),
        "none": (lambda sigma, s: torch.ones_like(sigma), "sigma = 1, sigma_data = 1"),
    },
    "02.best_logvar": {
        "the error itself": (lambda error: error, "E = 1"),
        "its sign": (lambda error: -torch.log(error), "E = 0.5"),
        "of a standard deviation": (lambda error: torch.log(error) / 2, "E = 0.5"),
        "of base ten": (torch.log10, "E = 0.5"),
    },
    "02.noise_weight": {
        "the unweighted epsilon loss": (lambda sigma, s: torch.ones_like(sigma), "sigma = 1, sigma_data = 1"),
        "the weight of the denoised estimate": (edm.loss_weight, "sigma = 0.5, sigma_data = 1"),
        "sigma instead of its square": (lambda sigma, s: edm.loss_weight(sigma, s) * sigma, "sigma = 0.5"),
        "the wrong way round": (lambda sigma, s: edm.loss_weight(sigma, s) / sigma**2, "sigma = 0.5"),
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
    assert f"counter-example / contraexemplo: {example}" in printed
    assert "hint: " in printed and "dica: " in printed


@pytest.mark.parametrize("id", RIGHT)
def test_holes_are_no_errors(id, capsys):
    def hole(*arguments):
        raise NotImplementedError

    assert not check(id, hole)
    assert "not written yet" in capsys.readouterr().out


def test_the_floor_is_one_at_both_ends_and_lowest_in_between():
    """The perfect denoiser's lambda L, as the tutorial states it for five blobs of 0.1 around data of spread 0.5."""
    angles = 2 * math.pi * torch.arange(5, dtype=torch.float64) / 5
    means = math.sqrt(2 * (0.25 - 0.01)) * torch.stack([angles.cos(), angles.sin()], dim=1)
    generator = torch.Generator().manual_seed(0)
    x0 = means[torch.randint(5, (100_000,), generator=generator)]
    x0 = x0 + 0.1 * torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    n = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    assert torch.allclose(x0.std(dim=0), torch.full((2,), 0.5, dtype=torch.float64), atol=5e-3)

    def floor(sigma):
        level = torch.full((len(x0),), sigma, dtype=torch.float64)
        weights = torch.full((5,), 0.2, dtype=torch.float64)
        D = exact.mixture_denoiser(x0 + sigma * n, level, weights, means, 0.1)
        return (edm.loss_weight(level, 0.5) * ((D - x0) ** 2).mean(dim=1)).mean().item()

    # 200,000 squares of spread about 1.4 times their mean: 0.3 %, here at three deviations
    assert floor(2e-3) == pytest.approx(1, abs=0.01) and floor(80.0) == pytest.approx(1, abs=0.01)
    assert floor(0.14) == pytest.approx(0.473, abs=0.01)
    assert floor(0.14) < floor(0.05) < floor(0.02) and floor(0.14) < floor(0.4) < floor(1.0)


def test_without_the_square_nearly_nine_tenths_of_the_loss_come_from_strong_noise():
    """A log-normal weighed by its value moves by P_std deviations: Phi(P_std + P_mean / P_std) instead of Phi(...)."""
    normal = statistics.NormalDist()
    assert 1 - normal.cdf(1.2 / 1.8) == pytest.approx(0.25, abs=0.005)
    assert 1 - normal.cdf(1.2 / 1.8 - 1.8) == pytest.approx(0.87, abs=0.005)


def test_without_the_division_the_uncertainty_runs_away():
    """Three hundred steps of 0.1 down a slope of 1, whatever the error is; with the division it stops at ln 0.5."""
    errors = torch.tensor([0.5], dtype=torch.float64)
    ends = []
    for total in (losses.uncertainty_weighted, lambda L, weight, u: weight * L + u):
        u = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        for _ in range(300):
            (slope,) = torch.autograd.grad(total(errors, torch.ones_like(errors), u).sum(), u)
            u = (u - 0.1 * slope).detach().requires_grad_()
        ends.append(u.item())
    assert ends == [pytest.approx(math.log(0.5), abs=1e-6), pytest.approx(-30, abs=1e-9)]
