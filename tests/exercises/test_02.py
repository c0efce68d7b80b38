import pytest
import torch

from cosmos_ref.equations import edm, forms
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
