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


@pytest.mark.verifies("metrics.psnr", by="point")
def test_psnr_of_an_error_in_one_pixel_of_four():
    """The mean square of 0.4, 0, 0, 0 is 0.04; 10 log10(4 / 0.04) is 20 dB. A mean of magnitudes would say 26."""
    a = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(metrics.psnr(a, a + a.new_tensor([0.4, 0, 0, 0]), 2.0), a.new_tensor(20.0))


@pytest.mark.verifies("metrics.psnr", by="point")
def test_psnr_of_a_video_with_itself_is_infinite():
    a = normal(0, 3, 4)
    assert metrics.psnr(a, a, 2.0) == float("inf")


@pytest.mark.verifies("metrics.psnr")
@given(seeds, st.floats(-2, 2))
def test_psnr_knows_neither_which_video_is_the_original_nor_how_bright_they_are(seed, brighter):
    a, b = normal(seed, 5, 5), normal(seed + 1, 5, 5)
    assert metrics.psnr(a, b, 2.0) == metrics.psnr(b, a, 2.0)
    assert abs(metrics.psnr(a + brighter, b + brighter, 2.0) - metrics.psnr(a, b, 2.0)) < 1e-9


@pytest.mark.verifies("metrics.psnr")
@given(seeds, st.floats(2e-4, 2e-2), st.sampled_from([torch.float16, torch.bfloat16]))
def test_psnr_of_half_precision_is_that_of_the_same_numbers_in_double(seed, error, dtype):
    """In float16 the square of 2e-4 is nothing, and in bfloat16 a mean keeps two digits."""
    a = (0.1 * normal(seed, 100)).to(dtype)
    b = (a.double() + error * normal(seed + 1, 100)).to(dtype)
    assert abs(metrics.psnr(a, b, 2.0) - metrics.psnr(a.double(), b.double(), 2.0)) < 1e-4  # float32, in decibels


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


@impostor("metrics.psnr", "a natural logarithm")
def psnr_in_nepers(a, b, peak):
    return 10 * torch.log(peak**2 / ((a - b) ** 2).mean())


@impostor("metrics.psnr", "the mean magnitude of the error, squared: large errors weigh too little")
def psnr_of_the_mean_magnitude(a, b, peak):
    return 20 * torch.log10(peak / (a - b).abs().mean())


@impostor("metrics.psnr", "the signal's power for its peak: a dark video is worse than a bright one")
def psnr_of_the_signal_power(a, b, peak):
    return 10 * torch.log10((a**2).mean() / ((a - b) ** 2).mean())


@impostor("metrics.psnr", "squared in the precision of the video")
def psnr_in_the_precision_of_the_video(a, b, peak):
    return 10 * torch.log10(peak**2 / ((a - b) ** 2).mean())


@impostor("metrics.psnr", "an epsilon against division by zero: no video is its own equal")
def psnr_with_epsilon(a, b, peak):
    return 10 * torch.log10(peak**2 / (((a - b) ** 2).mean() + 1e-8))


@impostor("metrics.psnr", "pixels in [-1, 1] measured against a peak of 1")
def psnr_with_peak_one(a, b, peak):
    return 10 * torch.log10(1 / ((a - b) ** 2).mean())
