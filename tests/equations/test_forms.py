import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import edm, exact, forms, noise, solvers
from tests.impostors import impostor
from tests.strategies import normal, seeds, sigma_datas, sigmas

EPS = torch.finfo(torch.float32).eps


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


# --- noise_estimate


@pytest.mark.verifies("forms.noise_estimate", by="point")
def test_the_noise_between_three_and_one_at_level_four_is_a_half():
    assert forms.noise_estimate(row(1.0), row(3.0), row(4.0)[0]).item() == 0.5


@pytest.mark.verifies("forms.noise_estimate")
@given(sigmas, seeds)
def test_who_knows_the_clean_sample_knows_the_noise(sigma, seed):
    x0, n = normal(seed, 1, 6), normal(seed + 1, 1, 6)
    estimate = forms.noise_estimate(x0, noise.add_noise(x0, n, sigma), sigma)
    torch.testing.assert_close(estimate, n, rtol=1e-12, atol=2e-12)  # x keeps 1e-16 of noise that is 2e-3 of it


@pytest.mark.verifies("forms.noise_estimate")
@given(sigmas, seeds)
def test_the_noise_estimate_is_the_slope_of_the_ode(sigma, seed):
    D, x = normal(seed, 1, 6), normal(seed + 1, 1, 6)
    assert torch.equal(forms.noise_estimate(D, x, sigma), solvers.ode_derivative(x, D, sigma.item()))


@pytest.mark.verifies("forms.noise_estimate", "forms.denoised_from_noise", "forms.score")
@given(sigmas, seeds)
def test_each_sample_is_translated_at_its_own_level(sigma, seed):
    D, x, levels = normal(seed, 2, 3, 4), normal(seed + 1, 2, 3, 4), torch.cat([sigma, 2 * sigma])
    for form in (forms.noise_estimate, forms.denoised_from_noise, forms.score):
        assert torch.equal(form(D, x, levels)[1:], form(D[1:], x[1:], 2 * sigma))


@impostor("forms.noise_estimate", "the noise as it lies in x, not of unit variance")
def noise_not_divided(D, x, sigma):
    return x - D


@impostor("forms.noise_estimate", "the denoiser's answer taken for the noise (the seed's wording)")
def noise_is_the_denoised_estimate(D, x, sigma):
    return D


@impostor("forms.noise_estimate", "the noise's sign turned, so that steps go the wrong way")
def noise_with_the_sign_turned(D, x, sigma):
    return (D - x) / sigma.reshape(-1, *[1] * (x.ndim - 1))


@impostor("forms.noise_estimate", "divided by the variance, as the score is")
def noise_divided_by_the_variance(D, x, sigma):
    return (x - D) / sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2


@impostor("forms.noise_estimate", "one level for the whole batch")
def noise_at_the_first_level(D, x, sigma):
    return (x - D) / sigma[0]


# --- denoised_from_noise


@pytest.mark.verifies("forms.denoised_from_noise", by="point")
def test_half_a_unit_of_noise_at_level_four_hides_two():
    assert forms.denoised_from_noise(row(0.5), row(3.0), row(4.0)[0]).item() == 1.0


@pytest.mark.verifies("forms.denoised_from_noise")
@given(sigmas, seeds)
def test_taking_the_true_noise_away_leaves_the_clean_sample(sigma, seed):
    x0, n = normal(seed, 1, 6), normal(seed + 1, 1, 6)
    D = forms.denoised_from_noise(n, noise.add_noise(x0, n, sigma), sigma)
    torch.testing.assert_close(D, x0, rtol=0, atol=1e-12)


@pytest.mark.verifies("forms.denoised_from_noise", "forms.noise_estimate")
@given(sigmas, seeds)
def test_to_the_noise_and_back_is_where_one_was(sigma, seed):
    D, x = normal(seed, 1, 6), normal(seed + 1, 1, 6)
    back = forms.denoised_from_noise(forms.noise_estimate(D, x, sigma), x, sigma)
    torch.testing.assert_close(back, D, rtol=0, atol=1e-14)


@impostor("forms.denoised_from_noise", "the variance-preserving formula: data and noise both scaled, as in DDPM")
def denoised_as_in_ddpm(noise, x, sigma):
    alpha = (1 / (1 + sigma**2)).reshape(-1, *[1] * (x.ndim - 1))
    return (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()


@impostor("forms.denoised_from_noise", "noise subtracted at unit strength")
def denoised_without_level(noise, x, sigma):
    return x - noise


@impostor("forms.denoised_from_noise", "noise added once more")
def denoised_with_the_sign_turned(noise, x, sigma):
    return x + sigma.reshape(-1, *[1] * (x.ndim - 1)) * noise


@impostor("forms.denoised_from_noise", "one level for the whole batch")
def denoised_at_the_first_level(noise, x, sigma):
    return x - sigma[0] * noise


# --- score


@pytest.mark.verifies("forms.score", by="point")
def test_the_score_two_above_the_estimate_at_level_four():
    assert forms.score(row(1.0), row(3.0), row(4.0)[0]).item() == -0.125


@pytest.mark.verifies("forms.score")
@given(sigmas, sigma_datas, seeds)
def test_the_score_of_a_gaussian_is_a_spring(sigma, std, seed):
    """-(x - mean) / (sigma^2 + s^2): the pull grows with the distance from the mean."""
    x, mean = normal(seed, 1, 3), normal(seed + 1, 3)
    score = forms.score(exact.gaussian_denoiser(x, sigma, mean, std), x, sigma)
    torch.testing.assert_close(score, -(x - mean) / (sigma**2 + std**2), rtol=1e-9, atol=1e-9)


@pytest.mark.verifies("forms.score")
@given(seeds, sigma_datas)
def test_the_score_is_the_slope_of_the_log_density(seed, std):
    """On a mixture of three blobs, where the slope is found by automatic differentiation."""
    weights, means = torch.softmax(normal(seed, 3), dim=0), 2 * normal(seed + 1, 3, 2)
    x, sigma = normal(seed + 2, 4, 2).requires_grad_(), normal(seed + 3, 4).exp()
    (slope,) = torch.autograd.grad(exact.mixture_log_density(x, sigma, weights, means, std).sum(), x)
    D = exact.mixture_denoiser(x.detach(), sigma, weights, means, std)
    torch.testing.assert_close(forms.score(D, x.detach(), sigma), slope, rtol=1e-9, atol=1e-9)


@pytest.mark.verifies("forms.score")
@given(st.integers(1, 14), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_the_score_survives_levels_whose_square_is_zero(k, dtype):
    """Half precision has no number below 2^-24; the score of one unit of noise at level 2^-k is -2^k all the same."""
    sigma = torch.tensor([2.0**-k], dtype=dtype)
    score = forms.score(torch.zeros(1, 1, dtype=dtype), sigma[:, None], sigma)
    assert score.item() == -(2.0**k)


@impostor("forms.score", "divided by the square, as it is printed: zero in half precision below 2^-12")
def score_by_the_square(D, x, sigma):
    return (D - x) / expand_like(sigma**2, x)


@impostor("forms.score", "divided by sigma once: the noise estimate")
def score_is_the_noise(D, x, sigma):
    return (D - x) / expand_like(sigma, x)


@impostor("forms.score", "pointing at the noise instead of the data")
def score_with_the_sign_turned(D, x, sigma):
    return (x - D) / expand_like(sigma**2, x)


def expand_like(sigma, x):
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


# --- velocity


@pytest.mark.verifies("forms.velocity", by="point")
def test_velocity_at_equal_shares_and_at_unit_noise():
    equal = forms.velocity(row(0.5), row(3.0), row(0.5)[0], 0.5)  # 45 degrees: (3 - 0.5 / 0.5) / sqrt(2)
    torch.testing.assert_close(equal, row(1.4142135624), rtol=0, atol=1e-10)
    unit = forms.velocity(row(1.0), row(1.0), row(1.0)[0], 0.5)  # (1 - 4) / sqrt(5)
    torch.testing.assert_close(unit, row(-1.3416407865), rtol=0, atol=1e-10)


@pytest.mark.verifies("forms.velocity", "edm.network_target")
@given(sigmas, sigma_datas, seeds)
def test_what_edms_network_is_asked_for_is_minus_the_velocity(sigma, sigma_data, seed):
    x0, n = normal(seed, 1, 6), normal(seed + 1, 1, 6)
    target = edm.network_target(x0, noise.add_noise(x0, n, sigma), sigma, sigma_data)
    torch.testing.assert_close(target, -forms.velocity(x0, n, sigma, sigma_data), rtol=1e-9, atol=1e-9)


@pytest.mark.verifies("forms.velocity")
@given(sigmas, sigma_datas, seeds)
def test_velocity_is_how_fast_the_scaled_sample_turns(sigma, sigma_data, seed):
    """d/dphi of c_in x = cos(phi) x0 / sigma_data + sin(phi) n, where tan(phi) = sigma / sigma_data."""
    x0, n = normal(seed, 1, 6), normal(seed + 1, 1, 6)

    def scaled(angle):
        level = sigma_data * torch.tan(angle)
        return edm.c_in(level, sigma_data)[:, None] * noise.add_noise(x0, n, level)

    turning = torch.func.jacfwd(scaled)(torch.atan(sigma / sigma_data))[..., 0]
    expected = forms.velocity(x0, n, sigma, sigma_data)
    torch.testing.assert_close(turning, expected, rtol=1e-8, atol=1e-8)  # tan is steep at high noise


@pytest.mark.verifies("forms.velocity")
@given(sigmas, sigma_datas, seeds)
def test_velocity_and_scaled_sample_rebuild_data_and_noise(sigma, sigma_data, seed):
    """Two unit vectors at right angles: turned back by phi they are x0 / sigma_data and n."""
    x0, n = normal(seed, 1, 6), normal(seed + 1, 1, 6)
    v = forms.velocity(x0, n, sigma, sigma_data)
    x = edm.c_in(sigma, sigma_data) * noise.add_noise(x0, n, sigma)
    phi = torch.atan(sigma / sigma_data)
    torch.testing.assert_close(sigma_data * (phi.cos() * x - phi.sin() * v), x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(phi.sin() * x + phi.cos() * v, n, rtol=0, atol=1e-10)


@pytest.mark.verifies("forms.velocity")
@given(st.floats(-6, 6).map(lambda exponent: 10**exponent), seeds)
def test_single_precision_keeps_the_velocity_at_any_level(level, seed):
    """Nothing is subtracted that is nearly the same, so from 1e-6 to 1e6 only a few roundings are lost."""
    x0, n = normal(seed, 1, 6).float(), normal(seed + 1, 1, 6).float()
    phi = math.atan2(level, 0.5)
    expected = math.cos(phi) * n.double() - math.sin(phi) * x0.double() / 0.5
    v = forms.velocity(x0, n, torch.tensor([level]), 0.5).double()
    size = n.double().abs() + 2 * x0.double().abs()
    assert ((v - expected).abs() / size).max().item() < 4 * EPS


@pytest.mark.verifies("forms.velocity")
@given(sigmas, sigma_datas, seeds)
def test_each_sample_turns_at_its_own_level(sigma, sigma_data, seed):
    x0, n = normal(seed, 2, 3, 4), normal(seed + 1, 2, 3, 4)
    both = forms.velocity(x0, n, torch.cat([sigma, 2 * sigma]), sigma_data)
    assert torch.equal(both[1:], forms.velocity(x0[1:], n[1:], 2 * sigma, sigma_data))


@impostor("forms.velocity", "by way of the network target: what is left of the noise in x, magnified")
def velocity_by_subtraction(x0, noise, sigma, sigma_data):
    level = expand_like(sigma, x0)
    return -edm.network_target(x0, x0 + level * noise, sigma, sigma_data)


@impostor("forms.velocity", "rectified flow's velocity: noise minus data, whatever the level")
def velocity_of_a_straight_line(x0, noise, sigma, sigma_data):
    return noise - x0


@impostor("forms.velocity", "unit data assumed, as in DDPM's alpha and sigma")
def velocity_for_unit_data(x0, noise, sigma, sigma_data):
    level = expand_like(sigma, x0)
    return (noise - level * x0) / (1 + level**2).sqrt()


@impostor("forms.velocity", "sine and cosine exchanged")
def velocity_with_exchanged_weights(x0, noise, sigma, sigma_data):
    level = expand_like(sigma, x0)
    return (level * noise - x0) / (level**2 + sigma_data**2).sqrt()


@impostor("forms.velocity", "EDM's sign: the network target itself")
def velocity_is_the_network_target(x0, noise, sigma, sigma_data):
    level = expand_like(sigma, x0)
    return (level * x0 / sigma_data - sigma_data * noise) / (level**2 + sigma_data**2).sqrt()


@impostor("forms.velocity", "one level for the whole batch")
def velocity_at_the_first_level(x0, noise, sigma, sigma_data):
    return (sigma_data * noise - sigma[0] * x0 / sigma_data) / (sigma[0] ** 2 + sigma_data**2).sqrt()


# --- noise_loss_weight


@pytest.mark.verifies("forms.noise_loss_weight", by="point")
def test_the_noise_weight_doubles_where_noise_and_data_are_equally_strong():
    weights = forms.noise_loss_weight(row(0.5, 1.0, 10.0), 0.5)
    torch.testing.assert_close(weights, row(2.0, 5.0, 401.0), rtol=1e-15, atol=0)


@pytest.mark.verifies(
    "forms.noise_loss_weight",
    "forms.noise_estimate",
    "forms.velocity",
    "edm.loss_weight",
    "edm.denoise",
    "edm.network_target",
)
@given(sigmas, sigma_datas, seeds)
def test_one_error_in_four_languages_is_one_loss(sigma, sigma_data, seed):
    """Whatever a network answers: the x0-, noise-, v- and F-losses are the same number, element by element."""
    x0, n, F = normal(seed, 1, 6), normal(seed + 1, 1, 6), normal(seed + 2, 1, 6)
    x = noise.add_noise(x0, n, sigma)
    D = edm.denoise(F, x, sigma, sigma_data)
    of_x0 = edm.loss_weight(sigma, sigma_data) * (D - x0) ** 2
    of_noise = forms.noise_loss_weight(sigma, sigma_data) * (forms.noise_estimate(D, x, sigma) - n) ** 2
    of_velocity = (-F - forms.velocity(x0, n, sigma, sigma_data)) ** 2
    of_network = (F - edm.network_target(x0, x, sigma, sigma_data)) ** 2
    for other in (of_noise, of_velocity, of_network):
        torch.testing.assert_close(other, of_x0, rtol=1e-7, atol=1e-7)  # x - D loses digits at both ends of sigma


@pytest.mark.verifies("forms.noise_loss_weight")
@given(sigmas, sigma_datas)
def test_a_silent_network_pays_one_for_its_noise_too(sigma, sigma_data):
    """With F = 0 on Gaussian data, n - n_hat has variance s^2 / (sigma^2 + s^2): weighted, 1 at every level."""
    variance = sigma_data**2 / (sigma**2 + sigma_data**2)
    weighted = forms.noise_loss_weight(sigma, sigma_data) * variance
    torch.testing.assert_close(weighted, torch.ones_like(sigma), rtol=1e-12, atol=0)


@pytest.mark.verifies("forms.noise_loss_weight")
def test_the_noise_weight_of_a_level_in_half_precision_is_a_number():
    """80 times the root of 16 latent frames: 1 + 640^2 is more than float16 can hold."""
    assert forms.noise_loss_weight(torch.tensor([320.0], dtype=torch.float16), 0.5).item() == 1 + 640**2


@impostor("forms.noise_loss_weight", "in the precision of sigma: infinite in float16 beyond 128")
def noise_weight_in_the_precision_of_sigma(sigma, sigma_data):
    return 1 + (sigma / sigma_data) ** 2


@impostor("forms.noise_loss_weight", "1: the plain epsilon loss")
def unweighted_noise_loss(sigma, sigma_data):
    return torch.ones_like(sigma)


@impostor("forms.noise_loss_weight", "the weight of the error of D")
def weight_of_the_wrong_language(sigma, sigma_data):
    return edm.loss_weight(sigma, sigma_data)


@impostor("forms.noise_loss_weight", "no square, as in the seed's lambda")
def noise_weight_without_square(sigma, sigma_data):
    return 1 + sigma / sigma_data


@impostor("forms.noise_loss_weight", "the inverse: how much of x is data")
def noise_weight_inverted(sigma, sigma_data):
    return 1 / (1 + (sigma / sigma_data) ** 2)


def test_an_empty_batch_has_a_translation_too():
    none, levels = torch.zeros(0, 4, 2), torch.zeros(0)
    for form in (forms.noise_estimate, forms.denoised_from_noise, forms.score):
        assert form(none, none, levels).shape == (0, 4, 2)
    assert forms.velocity(none, none, levels, 0.5).shape == (0, 4, 2)
