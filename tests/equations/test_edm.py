import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import edm, noise
from tests.impostors import impostor
from tests.strategies import normal, seeds, sigma_datas, sigmas

# Values computed by hand for sigma_data = 0.5 at sigma = 0.1, 1 and 10.
POINTS = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
ROUNDED = dict(rtol=0, atol=6e-7)  # the values are printed to six decimals


anywhere = st.floats(-6, 6).map(lambda exponent: 10**exponent)
"""Levels far beyond any schedule, 1e-6 to 1e6."""
precisions = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])


def relative(a, b):
    return ((a - b) / b).abs().max()


def rounded_once(value, true):
    """Whether a value is the true one, rounded to its precision; three units for what float32 loses on the way."""
    kind = torch.finfo(value.dtype)
    least = kind.smallest_normal * kind.eps  # below the smallest normal number float16 has only steps of this size
    slack = 3 * kind.eps if value.dtype == torch.float32 else 0.51 * kind.eps
    return abs(value.item() - true) <= slack * abs(true) + 0.51 * least


def held(level, dtype):
    """A level as that precision holds it, as a number and as a tensor."""
    kind = torch.finfo(dtype)
    sigma = torch.tensor([level], dtype=dtype).clamp(kind.smallest_normal, kind.max)
    return sigma.item(), sigma


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


@pytest.mark.verifies("edm.c_skip")
@given(anywhere, precisions, sigma_datas)
def test_c_skip_is_rounded_once_in_any_precision(level, dtype, sigma_data):
    level, sigma = held(level, dtype)
    value = edm.c_skip(sigma, sigma_data)
    assert value.dtype == dtype
    assert rounded_once(value, sigma_data**2 / (level**2 + sigma_data**2))


@impostor("edm.c_skip", "standard deviations where variances belong")
def c_skip_without_squares(sigma, sigma_data):
    return sigma_data / (sigma + sigma_data)


@impostor("edm.c_skip", "sigma_data's usual 0.5 written into the formula, whatever is passed")
def c_skip_for_half(sigma, sigma_data):
    return 0.25 / (sigma**2 + 0.25)


@impostor("edm.c_skip", "computed in the precision of sigma, as in a model cast whole to bfloat16")
def c_skip_in_low_precision(sigma, sigma_data):
    return sigma_data**2 / (sigma**2 + sigma_data**2)


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


@pytest.mark.verifies("edm.c_out")
@given(anywhere, precisions, sigma_datas)
def test_c_out_is_rounded_once_in_any_precision(level, dtype, sigma_data):
    level, sigma = held(level, dtype)
    value = edm.c_out(sigma, sigma_data)
    assert value.dtype == dtype
    assert rounded_once(value, level * sigma_data / math.hypot(level, sigma_data))


@impostor("edm.c_out", "the root forgotten")
def c_out_without_root(sigma, sigma_data):
    return sigma * sigma_data / (sigma**2 + sigma_data**2)


@impostor("edm.c_out", "computed in the precision of sigma: in float16 zero instead of sigma_data from 256 on")
def c_out_in_low_precision(sigma, sigma_data):
    return sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()


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


@pytest.mark.verifies("edm.c_in")
@given(anywhere, precisions, sigma_datas)
def test_c_in_is_rounded_once_in_any_precision(level, dtype, sigma_data):
    level, sigma = held(level, dtype)
    value = edm.c_in(sigma, sigma_data)
    assert value.dtype == dtype
    assert rounded_once(value, 1 / math.hypot(level, sigma_data))


@impostor("edm.c_in", "the root forgotten")
def c_in_without_root(sigma, sigma_data):
    return 1 / (sigma**2 + sigma_data**2)


@impostor("edm.c_in", "computed in the precision of sigma: in float16 the network sees zeros from 256 on")
def c_in_in_low_precision(sigma, sigma_data):
    return 1 / (sigma**2 + sigma_data**2).sqrt()


@impostor("edm.c_in", "the noise alone: infinite where there is none")
def c_in_of_the_noise(sigma, sigma_data):
    return 1 / sigma


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


@pytest.mark.verifies("edm.c_noise")
@given(anywhere, precisions)
def test_the_network_is_told_the_level_in_single_precision(level, dtype):
    """However coarsely sigma is held: in bfloat16 1.0955, a quarter of ln 80, would become 1.09375."""
    level, sigma = held(level, dtype)
    assert abs(edm.c_noise(sigma).item() - math.log(level) / 4) < 3 * torch.finfo(torch.float32).eps


@impostor("edm.c_noise", "sigma itself is fed to the network")
def c_noise_is_sigma(sigma):
    return sigma


@impostor("edm.c_noise", "in the precision of sigma: neighbouring levels of a long schedule sound alike in bfloat16")
def c_noise_in_low_precision(sigma):
    return 0.25 * torch.log(sigma)


@impostor("edm.c_noise", "the logarithm of the variance")
def c_noise_of_the_variance(sigma):
    return 0.5 * torch.log(sigma)


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


@impostor("edm.denoise", "skip and output weights exchanged")
def denoise_with_exchanged_weights(F, x, sigma, sigma_data):
    sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return edm.c_out(sigma, sigma_data) * x + edm.c_skip(sigma, sigma_data) * F


@impostor("edm.denoise", "the skip connection fed with the scaled input")
def denoise_of_the_scaled_input(F, x, sigma, sigma_data):
    sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return edm.c_skip(sigma, sigma_data) * edm.c_in(sigma, sigma_data) * x + edm.c_out(sigma, sigma_data) * F


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


@pytest.mark.verifies("edm.network_target")
@given(sigmas, sigma_datas, seeds)
def test_each_sample_has_the_target_of_its_own_sigma(sigma, sigma_data, seed):
    D, x = normal(seed, 2, 3, 4), normal(seed + 1, 2, 3, 4)
    both = edm.network_target(D, x, torch.cat([sigma, 2 * sigma]), sigma_data)
    torch.testing.assert_close(both[1:], edm.network_target(D[1:], x[1:], 2 * sigma, sigma_data), rtol=0, atol=0)


@pytest.mark.verifies("edm.network_target")
@given(sigmas, sigma_datas, seeds)
def test_the_target_does_not_depend_on_the_size_of_the_data(sigma, sigma_data, seed):
    """Data, noise and sigma_data, all k times as large, ask the network for the same."""
    x0, n, k = normal(seed, 1, 6), normal(seed + 1, 1, 6), 3.0
    target = edm.network_target(x0, noise.add_noise(x0, n, sigma), sigma, sigma_data)
    larger = edm.network_target(k * x0, noise.add_noise(k * x0, n, k * sigma), k * sigma, k * sigma_data)
    torch.testing.assert_close(larger, target, rtol=1e-9, atol=1e-9)  # x0 and c_skip x nearly cancel at low noise


@impostor("edm.network_target", "misplaced parentheses, as in NVIDIA's Video2World sampler")
def target_with_misplaced_parentheses(D, x, sigma, sigma_data):
    sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return D / edm.c_out(sigma, sigma_data) - edm.c_skip(sigma, sigma_data) * x


@impostor("edm.network_target", "the noise as the target")
def target_is_the_noise(D, x, sigma, sigma_data):
    return (x - D) / sigma.reshape(-1, *[1] * (x.ndim - 1))


@impostor("edm.network_target", "one sigma for the whole batch")
def target_with_the_first_sigma(D, x, sigma, sigma_data):
    return (D - edm.c_skip(sigma[0], sigma_data) * x) / edm.c_out(sigma[0], sigma_data)


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


@pytest.mark.verifies("edm.loss_weight")
@given(sigmas, sigma_datas)
def test_the_weight_is_the_precision_of_noise_and_data_together(sigma, sigma_data):
    """Inverse variances of independent sources add."""
    together = sigma**-2 + sigma_data**-2
    torch.testing.assert_close(edm.loss_weight(sigma, sigma_data), together, rtol=1e-12, atol=0)


@pytest.mark.verifies("edm.loss_weight")
@given(anywhere, precisions, sigma_datas)
def test_the_weight_is_right_in_single_precision_at_any_level(level, dtype, sigma_data):
    """From 1e12 at sigma 1e-6 on: no half precision holds that, so the weight comes in float32."""
    level, sigma = held(level, dtype)
    weight = edm.loss_weight(sigma, sigma_data).item()
    assert math.isclose(weight, level**-2 + sigma_data**-2, rel_tol=8 * torch.finfo(torch.float32).eps)


def test_the_seeds_weight_counts_strong_noise_forty_thousand_times_as_much_as_weak():
    """Without the square a silent network pays sigma * sigma_data instead of 1: from 0.001 at 0.002 to 40 at 80."""
    sigma = POINTS.new_tensor([0.002, 80.0])
    paid = loss_weight_of_the_seed(sigma, 0.5) * edm.c_out(sigma, 0.5) ** 2  # the silent network's error is c_out^2
    torch.testing.assert_close(paid, POINTS.new_tensor([0.001, 40.0]), rtol=1e-12, atol=0)


@impostor("edm.loss_weight", "no square in the denominator, as the seed text prints it")
def loss_weight_of_the_seed(sigma, sigma_data):
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data)


@impostor("edm.loss_weight", "no weight at all: strong noise is all that is learned")
def loss_weight_of_one(sigma, sigma_data):
    return torch.ones_like(sigma)


@impostor("edm.loss_weight", "one over c_out instead of its square")
def loss_weight_of_the_deviation(sigma, sigma_data):
    return 1 / edm.c_out(sigma, sigma_data)


@impostor("edm.loss_weight", "in the precision of sigma: infinite or 0 / 0 in float16 beyond 256 and below 0.004")
def loss_weight_in_low_precision(sigma, sigma_data):
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


@impostor("edm.loss_weight", "signal-to-noise ratio")
def loss_weight_is_snr(sigma, sigma_data):
    return sigma_data**2 / sigma**2


# --- scale_latents


@pytest.mark.verifies("edm.scale_latents", by="point")
def test_unit_latents_are_halved_for_cosmos():
    assert edm.scale_latents(torch.tensor([2.0, -3.0]), 0.5).tolist() == [1.0, -1.5]


@pytest.mark.verifies("edm.scale_latents")
@given(seeds, sigma_datas)
def test_unit_latents_are_scaled_to_what_preconditioning_expects(seed, sigma_data):
    """Without noise, c_in takes scaled latents back to unit variance."""
    latents = normal(seed, 1, 5)
    seen = edm.c_in(torch.zeros(1).double(), sigma_data) * edm.scale_latents(latents, sigma_data)
    torch.testing.assert_close(seen, latents, rtol=1e-14, atol=0)


@impostor("edm.scale_latents", "divided by sigma_data, as some tokenizers' scaling factor is defined")
def latents_divided(latents, sigma_data):
    return latents / sigma_data


@impostor("edm.scale_latents", "left at unit variance: right for a model with sigma_data 1 only")
def latents_as_they_are(latents, sigma_data):
    return latents


@impostor("edm.scale_latents", "scaled twice, by tokenizer and sampler")
def latents_scaled_twice(latents, sigma_data):
    return latents * sigma_data**2


# --- unscale_latents


@pytest.mark.verifies("edm.unscale_latents", by="point")
def test_latents_of_cosmos_are_doubled_for_the_tokenizer():
    assert edm.unscale_latents(torch.tensor([1.0, -1.5]), 0.5).tolist() == [2.0, -3.0]


@pytest.mark.verifies("edm.unscale_latents", "edm.scale_latents")
@given(seeds, sigma_datas)
def test_the_tokenizer_gets_back_what_it_gave(seed, sigma_data):
    latents = normal(seed, 1, 5)
    back = edm.unscale_latents(edm.scale_latents(latents, sigma_data), sigma_data)
    torch.testing.assert_close(back, latents, rtol=1e-15, atol=0)


@impostor("edm.unscale_latents", "multiplied once more")
def latents_multiplied_again(x0, sigma_data):
    return x0 * sigma_data


@impostor("edm.unscale_latents", "decoded as they are: pale, low-contrast video")
def latents_decoded_as_they_are(x0, sigma_data):
    return x0


# --- edges


def test_an_empty_batch_has_empty_coefficients():
    none, x = torch.zeros(0), torch.zeros(0, 3, 4)
    for coefficient in (edm.c_skip, edm.c_out, edm.c_in, edm.loss_weight):
        assert coefficient(none, 0.5).shape == (0,)
    assert edm.denoise(x, x, none, 0.5).shape == edm.network_target(x, x, none, 0.5).shape == x.shape


def test_bfloat16_holds_no_level_between_eighty_and_seventy_nine_and_a_half():
    """Why sigma itself should not be kept in bfloat16: half a unit is its step there."""
    assert torch.tensor([79.7]).bfloat16().item() == 79.5
    assert torch.tensor([79.8]).bfloat16().item() == 80.0
