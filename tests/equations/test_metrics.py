import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import metrics
from tests.impostors import impostor
from tests.strategies import normal, seeds


@pytest.mark.verifies("metrics.psnr", by="point")
def test_psnr_of_one_grey_level_in_256():
    """An error of one step everywhere is 20 log10(255) = 48.130804 dB."""
    a = torch.zeros(3, 4, dtype=torch.float64)
    torch.testing.assert_close(metrics.psnr(a, a + 2 / 255, peak=2.0), a.new_tensor(48.130804), rtol=0, atol=1e-6)


@pytest.mark.verifies("metrics.psnr")
@given(seeds, st.floats(0.01, 10))
def test_ten_times_the_error_costs_twenty_decibels(seed, error):
    a, e = normal(seed, 5, 5), error * normal(seed + 1, 5, 5)
    assert abs(metrics.psnr(a, a + e, 2.0) - metrics.psnr(a, a + 10 * e, 2.0) - 20) < 1e-9


@pytest.mark.verifies("metrics.psnr")
@given(seeds, st.floats(0.1, 300))
def test_psnr_does_not_depend_on_the_unit_of_a_pixel(seed, unit):
    a, b = normal(seed, 5, 5), normal(seed + 1, 5, 5)
    assert abs(metrics.psnr(a, b, 2.0) - metrics.psnr(unit * a, unit * b, 2 * unit)) < 1e-9


@impostor("metrics.psnr", "the root of the error forgotten to be squared away: 20 log10 of the variance")
def psnr_doubled(a, b, peak):
    return 20 * torch.log10(peak**2 / ((a - b) ** 2).mean())


@impostor("metrics.psnr", "pixels in [-1, 1] measured against a peak of 1")
def psnr_with_peak_one(a, b, peak):
    return 10 * torch.log10(1 / ((a - b) ** 2).mean())
