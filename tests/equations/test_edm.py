import pytest
import torch
from hypothesis import given

from cosmos_ref.equations import edm
from tests.impostors import impostor
from tests.strategies import normal, seeds, sigma_datas, sigmas

# Values computed by hand for sigma_data = 0.5 at sigma = 0.1, 1 and 10.
POINTS = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
ROUNDED = dict(rtol=0, atol=6e-7)  # the values are printed to six decimals


def relative(a, b):
    return ((a - b) / b).abs().max()


# --- c_skip


@pytest.mark.verifies("edm.c_skip", by="point")
def test_c_skip_at_three_levels():
    torch.testing.assert_close(edm.c_skip(POINTS, 0.5), POINTS.new_tensor([0.961538, 0.2, 0.002494]), **ROUNDED)


@pytest.mark.verifies("edm.c_skip")
@given(sigmas, sigma_datas)
def test_c_skip_is_the_wiener_gain(sigma, sigma_data):
    """c_skip minimises the error of `c x` as an estimate of x0, so that error's slope in c is zero there."""
    c = edm.c_skip(sigma, sigma_data)
    slope = 2 * c * sigma**2 - 2 * (1 - c) * sigma_data**2  # of E|c x - x0|^2 = c^2 sigma^2 + (1 - c)^2 sigma_data^2
    assert (slope.abs() / (sigma**2 + sigma_data**2)).item() < 1e-12


@impostor("edm.c_skip", "standard deviations where variances belong")
def c_skip_without_squares(sigma, sigma_data):
    return sigma_data / (sigma + sigma_data)


@impostor("edm.c_skip", "signal and noise exchanged")
def c_skip_of_the_noise(sigma, sigma_data):
    return sigma**2 / (sigma**2 + sigma_data**2)


# --- c_out


@pytest.mark.verifies("edm.c_out", by="point")
def test_c_out_at_three_levels():
    torch.testing.assert_close(edm.c_out(POINTS, 0.5), POINTS.new_tensor([0.098058, 0.447214, 0.499376]), **ROUNDED)


@pytest.mark.verifies("edm.c_out")
@given(sigmas, sigma_datas)
def test_c_out_gives_the_network_target_unit_variance(sigma, sigma_data):
    """The target (x0 - c_skip x) / c_out has variance 1 for data of variance sigma_data^2."""
    c = edm.c_skip(sigma, sigma_data)
    variance = ((1 - c) ** 2 * sigma_data**2 + c**2 * sigma**2) / edm.c_out(sigma, sigma_data) ** 2
    assert relative(variance, torch.ones(1)) < 1e-12


@impostor("edm.c_out", "the root forgotten")
def c_out_without_root(sigma, sigma_data):
    return sigma * sigma_data / (sigma**2 + sigma_data**2)


@impostor("edm.c_out", "the residual's scale without sigma_data")
def c_out_without_sigma_data(sigma, sigma_data):
    return sigma / (sigma**2 + sigma_data**2).sqrt()


# --- c_in


@pytest.mark.verifies("edm.c_in", by="point")
def test_c_in_at_three_levels():
    torch.testing.assert_close(edm.c_in(POINTS, 0.5), POINTS.new_tensor([1.961161, 0.894427, 0.099875]), **ROUNDED)


@pytest.mark.verifies("edm.c_in")
@given(sigmas, sigma_datas)
def test_c_in_gives_the_network_input_unit_variance(sigma, sigma_data):
    assert relative(edm.c_in(sigma, sigma_data) ** 2 * (sigma**2 + sigma_data**2), torch.ones(1)) < 1e-12


@impostor("edm.c_in", "the root forgotten")
def c_in_without_root(sigma, sigma_data):
    return 1 / (sigma**2 + sigma_data**2)


@impostor("edm.c_in", "variance-exploding habit: unit data assumed")
def c_in_for_unit_data(sigma, sigma_data):
    return 1 / (sigma**2 + 1).sqrt()


# --- c_noise


@pytest.mark.verifies("edm.c_noise", by="point")
def test_c_noise_at_the_ends_of_the_schedule():
    values = edm.c_noise(POINTS.new_tensor([80.0, 1.0, 2e-4]))
    torch.testing.assert_close(values, POINTS.new_tensor([1.095507, 0.0, -2.129298]), **ROUNDED)


@pytest.mark.verifies("edm.c_noise")
@given(sigmas, sigmas)
def test_c_noise_turns_ratios_of_sigma_into_steps_of_a_quarter_log(a, b):
    assert torch.allclose(edm.c_noise(a * b), edm.c_noise(a) + edm.c_noise(b), rtol=0, atol=1e-12)


@impostor("edm.c_noise", "sigma itself is fed to the network")
def c_noise_is_sigma(sigma):
    return sigma


@impostor("edm.c_noise", "base-10 logarithm")
def c_noise_in_decades(sigma):
    return 0.25 * torch.log10(sigma)


# --- denoise


@pytest.mark.verifies("edm.denoise", by="point")
def test_denoise_of_ones_is_the_sum_of_both_weights():
    one = torch.ones(1, 1, dtype=torch.float64)
    value = edm.denoise(one, one, one[0], sigma_data=0.5)
    torch.testing.assert_close(value, one * (0.2 + 0.4472135955), rtol=0, atol=1e-9)


@pytest.mark.verifies("edm.denoise")
@given(sigmas, sigma_datas, seeds)
def test_a_silent_network_denoises_gaussian_data_perfectly(sigma, sigma_data, seed):
    """For x0 ~ N(0, sigma_data^2) the posterior mean is x sigma_data^2 / (sigma^2 + sigma_data^2): F = 0 suffices."""
    x = normal(seed, 1, 5)
    D = edm.denoise(torch.zeros_like(x), x, sigma, sigma_data)
    torch.testing.assert_close(D, x * sigma_data**2 / (sigma**2 + sigma_data**2), rtol=1e-12, atol=0)


@pytest.mark.verifies("edm.denoise")
@given(sigmas, sigma_datas, seeds)
def test_denoise_keeps_each_sample_to_its_own_sigma(sigma, sigma_data, seed):
    x, F = normal(seed, 2, 3, 4), normal(seed + 1, 2, 3, 4)
    both = edm.denoise(F, x, torch.cat([sigma, 2 * sigma]), sigma_data)
    torch.testing.assert_close(both[1:], edm.denoise(F[1:], x[1:], 2 * sigma, sigma_data), rtol=0, atol=0)


@impostor("edm.denoise", "the network's output taken for the denoised estimate")
def denoise_is_the_network(F, x, sigma, sigma_data):
    return F


@impostor("edm.denoise", "the network estimates the noise (the seed's wording)")
def denoise_by_subtracting_noise(F, x, sigma, sigma_data):
    return x - sigma.reshape(-1, *[1] * (x.ndim - 1)) * F


@impostor("edm.denoise", "one sigma for the whole batch")
def denoise_with_the_first_sigma(F, x, sigma, sigma_data):
    return edm.c_skip(sigma[0], sigma_data) * x + edm.c_out(sigma[0], sigma_data) * F


# --- network_target


@pytest.mark.verifies("edm.network_target", by="point")
def test_network_target_of_one_at_unit_noise():
    one = torch.ones(1, 1, dtype=torch.float64)
    value = edm.network_target(one, one, one[0], sigma_data=0.5)
    torch.testing.assert_close(value, one * 1.7888543820, rtol=0, atol=1e-9)  # (1 - 0.2) / 0.4472135955


@pytest.mark.verifies("edm.network_target", "edm.denoise")
@given(sigmas, sigma_datas, seeds)
def test_denoising_with_the_target_returns_the_clean_sample(sigma, sigma_data, seed):
    x0, x = normal(seed, 1, 6), normal(seed + 1, 1, 6)
    F = edm.network_target(x0, x, sigma, sigma_data)
    torch.testing.assert_close(edm.denoise(F, x, sigma, sigma_data), x0, rtol=0, atol=1e-10)


@impostor("edm.network_target", "misplaced parentheses, as in NVIDIA's Video2World sampler")
def target_with_misplaced_parentheses(D, x, sigma, sigma_data):
    return D / edm.c_out(sigma, sigma_data)[:, None] - edm.c_skip(sigma, sigma_data)[:, None] * x


@impostor("edm.network_target", "the clean sample as the target")
def target_is_the_clean_sample(D, x, sigma, sigma_data):
    return D


# --- loss_weight


@pytest.mark.verifies("edm.loss_weight", by="point")
def test_loss_weight_at_three_levels():
    torch.testing.assert_close(edm.loss_weight(POINTS, 0.5), POINTS.new_tensor([104.0, 5.0, 4.01]), rtol=1e-12, atol=0)


@pytest.mark.verifies("edm.loss_weight")
@given(sigmas, sigma_datas)
def test_every_noise_level_counts_the_same_at_initialisation(sigma, sigma_data):
    """With F = 0 the error is that of the Wiener estimate; weighted, it is 1 at every sigma."""
    error = sigma**2 * sigma_data**2 / (sigma**2 + sigma_data**2)
    assert relative(edm.loss_weight(sigma, sigma_data) * error, torch.ones(1)) < 1e-12


@pytest.mark.verifies("edm.loss_weight", "edm.c_out")
@given(sigmas, sigma_datas, seeds)
def test_the_weighted_error_is_the_error_of_the_network(sigma, sigma_data, seed):
    x0, x, F = normal(seed, 1, 6), normal(seed + 1, 1, 6), normal(seed + 2, 1, 6)
    error_of_D = (edm.denoise(F, x, sigma, sigma_data) - x0) ** 2
    error_of_F = (F - edm.network_target(x0, x, sigma, sigma_data)) ** 2
    torch.testing.assert_close(
        edm.loss_weight(sigma, sigma_data)[:, None] * error_of_D, error_of_F, rtol=1e-8, atol=1e-12
    )


@impostor("edm.loss_weight", "no square in the denominator, as the seed text prints it")
def loss_weight_of_the_seed(sigma, sigma_data):
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data)


@impostor("edm.loss_weight", "signal-to-noise ratio")
def loss_weight_is_snr(sigma, sigma_data):
    return sigma_data**2 / sigma**2
