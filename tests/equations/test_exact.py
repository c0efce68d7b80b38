import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import edm, exact
from tests.impostors import impostor
from tests.strategies import normal, seeds, sigmas

stds = st.floats(0.05, 2.0)
# Levels at which the density of the test mixtures is neither a needle nor flat, so that a grid integrates it.
middling = st.floats(math.log(0.1), math.log(3)).map(lambda x: torch.tensor([math.exp(x)], dtype=torch.float64))
GRID = torch.linspace(-40, 40, 8001, dtype=torch.float64)  # a sum over it is exact to rounding for smooth densities


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mixture(seed: int, blobs: int = 3, coordinates: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and means of a mixture."""
    return torch.softmax(normal(seed, blobs), dim=0), 2 * normal(seed + 1, blobs, coordinates)


def bell(x, mean, std):
    return torch.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def posterior_mean(x, sigma, weights, means, std):
    """E[x0 | x] in one dimension by summing x0 p(x0) p(x | x0) over a grid: Bayes' rule and nothing else."""
    prior = (weights * bell(GRID[:, None], means, std)).sum(dim=1)
    joint = prior * bell(x, GRID, sigma)
    return (GRID * joint).sum() / joint.sum()


# --- gaussian_denoiser


@pytest.mark.verifies("exact.gaussian_denoiser", by="point")
def test_a_fifth_of_the_way_from_the_mean_at_unit_noise():
    D = exact.gaussian_denoiser(vector(3.0, -1.0), torch.tensor(1.0).double(), vector(1.0, 0.0), 0.5)
    torch.testing.assert_close(D, vector(1.4, -0.2), rtol=0, atol=1e-15)


@pytest.mark.verifies("exact.gaussian_denoiser")
@given(middling, st.floats(0.1, 2), st.floats(-3, 3), st.floats(-6, 6))
def test_it_is_the_mean_of_all_clean_values_that_could_have_become_x(sigma, std, mean, x):
    D = exact.gaussian_denoiser(column(x), sigma, vector(mean), std)
    expected = posterior_mean(x, sigma, vector(1.0), vector(mean), std)
    torch.testing.assert_close(D[0, 0], expected, rtol=0, atol=1e-10)


@pytest.mark.verifies("exact.gaussian_denoiser")
@given(sigmas, stds, seeds)
def test_its_error_tells_nothing_about_the_noisy_sample(sigma, std, seed):
    """What is left of x0 is uncorrelated with x (else a better denoiser would use it). D is affine in (x0, n), so its
    slopes in both are all there is to know."""
    mean = normal(seed, 1)
    at_rest = exact.gaussian_denoiser(mean[None], sigma, mean, std)
    of_data = std - (exact.gaussian_denoiser(mean[None] + std, sigma, mean, std) - at_rest)
    of_noise = -(exact.gaussian_denoiser(mean[None] + sigma, sigma, mean, std) - at_rest)
    covariance = of_data * std + of_noise * sigma  # of x0 - D with x
    assert covariance.abs().item() < 1e-12 * (sigma**2 + std**2).item()


@pytest.mark.verifies("exact.gaussian_denoiser")
@given(stds, seeds)
def test_it_is_edm_with_a_silent_network_when_sigma_data_is_right(std, seed):
    x, sigma = normal(seed, 4, 3), normal(seed + 1, 4).exp()
    D = exact.gaussian_denoiser(x, sigma, torch.zeros(3).double(), std)
    torch.testing.assert_close(D, edm.denoise(torch.zeros_like(x), x, sigma, std), rtol=1e-14, atol=0)


@impostor("exact.gaussian_denoiser", "shrunk towards zero, whatever the mean of the data")
def gaussian_denoiser_without_mean(x, sigma, mean, std):
    return edm.c_skip(sigma, std).reshape(-1, 1) * x


@impostor("exact.gaussian_denoiser", "standard deviations where variances belong")
def gaussian_denoiser_without_squares(x, sigma, mean, std):
    return mean + (std / (sigma + std)).reshape(-1, 1) * (x - mean)


@impostor("exact.gaussian_denoiser", "the likeliest x0 by the data alone: the noisy sample is not looked at")
def gaussian_denoiser_is_the_mean(x, sigma, mean, std):
    return mean + 0 * x


@impostor("exact.gaussian_denoiser", "the first level for the whole batch")
def gaussian_denoiser_at_the_first_level(x, sigma, mean, std):
    return mean + edm.c_skip(sigma.flatten()[0], std) * (x - mean)


@impostor("exact.gaussian_denoiser", "the noise returned instead of what is clean")
def gaussian_denoiser_of_the_noise(x, sigma, mean, std):
    return (1 - edm.c_skip(sigma, std)).reshape(-1, 1) * (x - mean)


# --- gaussian_flow


@pytest.mark.verifies("exact.gaussian_flow", by="point")
def test_pure_noise_flows_to_the_edge_of_the_data():
    """Eighty at sigma 80 ends one standard deviation from the mean, up to 1e-5: what solvers are held to."""
    ends = [
        exact.gaussian_flow(column(80.0), vector(80.0), vector(end), vector(0.0), 0.5).item() for end in (0.0, 0.002)
    ]
    assert ends == pytest.approx([0.499990, 0.499994], abs=6e-7)  # printed to six decimals


@pytest.mark.verifies("exact.gaussian_flow")
@given(sigmas, sigmas, stds, seeds)
def test_the_flow_obeys_its_differential_equation(sigma, sigma_next, std, seed):
    """dx / dsigma = (x - D) / sigma at whatever level the flow has reached."""
    x, mean = normal(seed, 1, 3), normal(seed + 1, 3)
    end = exact.gaussian_flow(x, sigma, sigma_next, mean, std)
    slope = torch.func.jacfwd(lambda level: exact.gaussian_flow(x, sigma, level, mean, std))(sigma_next)[..., 0]
    expected = (end - exact.gaussian_denoiser(end, sigma_next, mean, std)) / sigma_next
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-9)  # x - D loses digits where sigma is small


@pytest.mark.verifies("exact.gaussian_flow")
@given(sigmas, stds, seeds)
def test_no_change_of_level_moves_nothing(sigma, std, seed):
    x, mean = normal(seed, 1, 3), normal(seed + 1, 3)
    torch.testing.assert_close(exact.gaussian_flow(x, sigma, sigma, mean, std), x, rtol=0, atol=1e-14)


@pytest.mark.verifies("exact.gaussian_flow")
@given(sigmas, sigmas, sigmas, stds, seeds)
def test_two_legs_are_one_journey(a, b, c, std, seed):
    x, mean = normal(seed, 1, 3), normal(seed + 1, 3)
    in_two = exact.gaussian_flow(exact.gaussian_flow(x, a, b, mean, std), b, c, mean, std)
    torch.testing.assert_close(in_two, exact.gaussian_flow(x, a, c, mean, std), rtol=1e-12, atol=1e-12)


@pytest.mark.verifies("exact.gaussian_flow", "exact.gaussian_denoiser")
@given(sigmas, sigmas, stds, seeds)
def test_each_sample_of_a_blob_has_its_own_levels(sigma, sigma_next, std, seed):
    x, mean = normal(seed, 2, 3), normal(seed + 1, 3)
    levels, ends = torch.cat([sigma, 2 * sigma]), torch.cat([sigma_next, 3 * sigma_next])
    flown = exact.gaussian_flow(x, levels, ends, mean, std)
    torch.testing.assert_close(flown[1:], exact.gaussian_flow(x[1:], 2 * sigma, 3 * sigma_next, mean, std))
    D = exact.gaussian_denoiser(x, levels, mean, std)
    torch.testing.assert_close(D[1:], exact.gaussian_denoiser(x[1:], 2 * sigma, mean, std))


@impostor("exact.gaussian_flow", "the ratio of variances without its root")
def flow_without_root(x, sigma, sigma_next, mean, std):
    return mean + ((sigma_next**2 + std**2) / (sigma**2 + std**2))[:, None] * (x - mean)


@impostor("exact.gaussian_flow", "the ratio of the noise levels: right only if the data had no spread")
def flow_of_a_point(x, sigma, sigma_next, mean, std):
    return mean + (sigma_next / sigma)[:, None] * (x - mean)


@impostor("exact.gaussian_flow", "one Euler step for the whole way")
def flow_in_one_step(x, sigma, sigma_next, mean, std):
    D = exact.gaussian_denoiser(x, sigma, mean, std)
    return x + ((sigma_next - sigma) / sigma)[:, None] * (x - D)


@impostor("exact.gaussian_flow", "the end forgotten: the denoised estimate, as if one call of D were a sample")
def flow_is_the_denoiser(x, sigma, sigma_next, mean, std):
    return exact.gaussian_denoiser(x, sigma, mean, std)


@impostor("exact.gaussian_flow", "the first sample's levels for the whole batch")
def flow_between_the_first_levels(x, sigma, sigma_next, mean, std):
    return mean + ((sigma_next[0] ** 2 + std**2) / (sigma[0] ** 2 + std**2)).sqrt() * (x - mean)


@impostor("exact.gaussian_flow", "start and end exchanged")
def flow_backwards(x, sigma, sigma_next, mean, std):
    return mean + ((sigma**2 + std**2) / (sigma_next**2 + std**2)).sqrt()[:, None] * (x - mean)


# --- mixture_log_density


@pytest.mark.verifies("exact.mixture_log_density", by="point")
def test_density_between_two_points_and_on_top_of_a_blob():
    between = exact.mixture_log_density(column(0.0), vector(1.0), vector(0.5, 0.5), column(-1.0, 1.0), 0.0)
    torch.testing.assert_close(between, vector(-1.4189385332), rtol=0, atol=1e-10)  # -(1 + ln 2 pi) / 2
    plane = torch.zeros(1, 2).double()
    on_top = exact.mixture_log_density(plane, vector(0.8), vector(1.0), plane, 0.6)
    torch.testing.assert_close(on_top, vector(-1.8378770664), rtol=0, atol=1e-10)  # -ln(2 pi), at variance 1


@pytest.mark.verifies("exact.mixture_log_density")
@given(middling, stds, seeds)
def test_the_density_adds_up_to_one(sigma, std, seed):
    weights, means = mixture(seed, coordinates=1)
    density = exact.mixture_log_density(GRID[:, None], sigma.expand(len(GRID)), weights, means, std).exp()
    torch.testing.assert_close(density.sum() * (GRID[1] - GRID[0]), torch.tensor(1.0).double(), rtol=0, atol=1e-9)


@pytest.mark.verifies("exact.mixture_log_density")
@given(middling, st.floats(0.1, 2), seeds)
def test_noise_smears_the_clean_density(sigma, std, seed):
    """p(x; sigma) is the clean density, averaged over where the noise may have come from."""
    weights, means = mixture(seed, coordinates=1)
    x = normal(seed + 2, 1, 1)
    value = exact.mixture_log_density(x, sigma, weights, means, std).exp()
    clean = (weights * bell(GRID[:, None], means[:, 0], std)).sum(dim=1)
    smeared = (clean * bell(x[0], GRID, sigma)).sum() * (GRID[1] - GRID[0])
    torch.testing.assert_close(value[0], smeared, rtol=1e-9, atol=1e-12)


@pytest.mark.verifies("exact.mixture_log_density")
@given(sigmas, stds, seeds)
def test_coordinates_of_one_blob_are_independent(sigma, std, seed):
    x, mean, one = normal(seed, 1, 3), normal(seed + 1, 1, 3), vector(1.0)
    each = [exact.mixture_log_density(x[:, k, None], sigma, one, mean[:, k, None], std) for k in range(3)]
    whole = exact.mixture_log_density(x, sigma, one, mean, std)
    torch.testing.assert_close(whole, sum(each), rtol=1e-12, atol=1e-12)


@pytest.mark.verifies("exact.mixture_log_density")
@given(middling, seeds)
def test_far_from_every_blob_the_logarithm_survives(sigma, seed):
    """At a thousand, where every term of the sum is zero in floating point, the nearest blob alone decides."""
    weights, means = mixture(seed, coordinates=1)
    far = column(1e3)
    value = exact.mixture_log_density(far, sigma, weights, means, 0.1)
    nearest = exact.mixture_log_density(far, sigma, vector(1.0), means.max()[None, None], 0.1)
    assert value.isfinite().all()
    assert (nearest + weights.min().log() <= value).all()
    assert (value <= nearest).all()


@impostor("exact.mixture_log_density", "the logarithm of a sum of exponentials, as it is printed: zero far away")
def log_density_by_exponentials(x, sigma, weights, means, std):
    spread = (sigma**2 + std**2).sqrt()[:, None]
    square = ((x[:, None] - means) ** 2).sum(dim=-1)
    blobs = torch.exp(-square / (2 * spread**2)) / (spread * math.sqrt(2 * math.pi)) ** x.shape[1]
    return torch.log((weights * blobs).sum(dim=1))


@impostor("exact.mixture_log_density", "standard deviations added instead of variances")
def log_density_of_added_deviations(x, sigma, weights, means, std):
    spread = (sigma + std)[:, None]
    square = ((x[:, None] - means) ** 2).sum(dim=-1)
    constant = x.shape[1] * torch.log(spread * math.sqrt(2 * math.pi))
    return torch.logsumexp(weights.log() - square / (2 * spread**2) - constant, dim=1)


@impostor("exact.mixture_log_density", "the constant of one coordinate, however many there are")
def log_density_of_one_coordinate(x, sigma, weights, means, std):
    variance = (sigma**2 + std**2)[:, None]
    square = ((x[:, None] - means) ** 2).sum(dim=-1)
    return torch.logsumexp(weights.log() - square / (2 * variance) - torch.log(2 * math.pi * variance) / 2, dim=1)


@impostor("exact.mixture_log_density", "weights forgotten: every blob counts fully")
def log_density_without_weights(x, sigma, weights, means, std):
    variance = (sigma**2 + std**2)[:, None]
    square = ((x[:, None] - means) ** 2).sum(dim=-1)
    constant = x.shape[1] * torch.log(2 * math.pi * variance) / 2
    return torch.logsumexp(-square / (2 * variance) - constant, dim=1)


# --- mixture_denoiser


@pytest.mark.verifies("exact.mixture_denoiser", by="point")
def test_between_two_points_it_is_a_hyperbolic_tangent():
    """Data at -1 and 1: D = tanh(x / sigma^2). At x = 0.5: tanh(0.5) for sigma 1 and tanh(2) for sigma 0.5."""
    D = exact.mixture_denoiser(column(0.5, 0.5), vector(1.0, 0.5), vector(0.5, 0.5), column(-1.0, 1.0), 0.0)
    torch.testing.assert_close(D, column(0.4621171573, 0.9640275801), rtol=0, atol=1e-10)


@pytest.mark.verifies("exact.mixture_denoiser")
@given(middling, st.floats(0.1, 2), seeds)
def test_it_is_the_mean_of_all_clean_values_also_for_a_mixture(sigma, std, seed):
    weights, means = mixture(seed, coordinates=1)
    x = 3 * normal(seed + 2, 1, 1)
    D = exact.mixture_denoiser(x, sigma, weights, means, std)
    expected = posterior_mean(x[0, 0], sigma, weights, means[:, 0], std)
    torch.testing.assert_close(D[0, 0], expected, rtol=0, atol=1e-9)


@pytest.mark.verifies("exact.mixture_denoiser", "exact.mixture_log_density")
@given(seeds, stds)
def test_the_denoiser_climbs_the_density(seed, std):
    """Tweedie: D = x + sigma^2 times the slope of the log-density, here by automatic differentiation."""
    weights, means = mixture(seed)
    x, sigma = (3 * normal(seed + 2, 4, 2)).requires_grad_(), normal(seed + 3, 4).exp()
    (score,) = torch.autograd.grad(exact.mixture_log_density(x, sigma, weights, means, std).sum(), x)
    D = exact.mixture_denoiser(x.detach(), sigma, weights, means, std)
    torch.testing.assert_close(D, x.detach() + sigma[:, None] ** 2 * score, rtol=0, atol=1e-11)


@pytest.mark.verifies("exact.mixture_denoiser", "exact.mixture_log_density")
@given(sigmas, stds, seeds)
def test_a_mixture_of_equals_is_one_blob(sigma, std, seed):
    x, mean = normal(seed, 1, 3), normal(seed + 1, 3)
    weights, means = torch.softmax(normal(seed + 2, 4), dim=0), mean.expand(4, 3)
    D = exact.mixture_denoiser(x, sigma, weights, means, std)
    torch.testing.assert_close(D, exact.gaussian_denoiser(x, sigma, mean, std), rtol=0, atol=1e-12)
    log_density = exact.mixture_log_density(x, sigma, weights, means, std)
    alone = exact.mixture_log_density(x, sigma, vector(1.0), mean[None], std)
    torch.testing.assert_close(log_density, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.verifies("exact.mixture_denoiser")
@given(seeds)
def test_far_from_every_blob_it_still_knows_the_nearest(seed):
    """At 1e4 and sigma 0.01 every exponential is zero; their ratios are not."""
    weights = torch.softmax(normal(seed, 3), dim=0)
    far, means = column(-1e4, 1e4), column(-1.0, 0.0, 1.0)
    D = exact.mixture_denoiser(far, vector(0.01, 0.01), weights, means, 0.0)
    torch.testing.assert_close(D, column(-1.0, 1.0), rtol=0, atol=1e-12)


@pytest.mark.verifies("exact.mixture_denoiser")
@given(seeds, stds)
def test_each_sample_of_a_mixture_has_its_own_level(seed, std):
    weights, means = mixture(seed)
    x, sigma = normal(seed + 2, 2, 2), normal(seed + 3, 2).exp()
    both = exact.mixture_denoiser(x, sigma, weights, means, std)
    torch.testing.assert_close(both[1:], exact.mixture_denoiser(x[1:], sigma[1:], weights, means, std))


@pytest.mark.verifies("exact.mixture_denoiser")
@given(st.floats(-6, 6).map(lambda exponent: 10**exponent))
def test_single_precision_suffices_at_any_level(level):
    """From sigma 1e-6 to 1e6, also for points (std 0): within 32 roundings of the size of the means."""
    weights, means = mixture(3)
    x = means[:2] + level * normal(7, 2, 2)
    sigma = vector(level, level)
    for std in (0.0, 0.5):
        given = x.float().double()  # what single precision knows of x
        variance = level**2 + std**2
        square = ((given[:, None] - means) ** 2).sum(dim=-1)
        mean = torch.softmax(weights.log() - square / (2 * variance), dim=1) @ means
        expected = mean + std**2 / variance * (given - mean)
        D = exact.mixture_denoiser(x.float(), sigma.float(), weights.float(), means.float(), std)
        scale = means.abs().max() + x.abs().max() * std**2 / variance
        assert ((D.double() - expected).abs() / scale).max().item() < 32 * torch.finfo(torch.float32).eps


def test_no_samples_give_no_estimates():
    none, levels = torch.zeros(0, 2), torch.zeros(0)
    weights, means = (value.float() for value in mixture(0))
    assert exact.mixture_denoiser(none, levels, weights, means, 0.5).shape == (0, 2)
    assert exact.mixture_log_density(none, levels, weights, means, 0.5).shape == (0,)
    assert exact.gaussian_flow(none, levels, levels, means[0], 0.5).shape == (0, 2)


@impostor("exact.mixture_denoiser", "exponentials divided by their sum, as it is printed: 0 / 0 far away")
def mixture_by_exponentials(x, sigma, weights, means, std):
    variance = (sigma**2 + std**2)[:, None]
    blobs = weights * torch.exp(-((x[:, None] - means) ** 2).sum(dim=-1) / (2 * variance))
    mean = (blobs / blobs.sum(dim=1, keepdim=True)) @ means
    return exact.gaussian_denoiser(x, sigma, mean, std)


@impostor("exact.mixture_denoiser", "the nearest blob takes all")
def mixture_of_the_nearest(x, sigma, weights, means, std):
    nearest = ((x[:, None] - means) ** 2).sum(dim=-1).argmin(dim=1)
    return exact.gaussian_denoiser(x, sigma, means[nearest], std)


@impostor("exact.mixture_denoiser", "blobs weighed as they are in the data, whatever x says")
def mixture_of_prior_weights(x, sigma, weights, means, std):
    return exact.gaussian_denoiser(x, sigma, weights @ means, std)


@impostor("exact.mixture_denoiser", "blobs weighed by the noise alone, their own width forgotten")
def mixture_weighed_by_the_noise(x, sigma, weights, means, std):
    square = ((x[:, None] - means) ** 2).sum(dim=-1)
    mean = torch.softmax(weights.log() - square / (2 * sigma[:, None] ** 2), dim=1) @ means
    return exact.gaussian_denoiser(x, sigma, mean, std)


@impostor("exact.mixture_denoiser", "the first level for the whole batch")
def mixture_at_the_first_level(x, sigma, weights, means, std):
    square = ((x[:, None] - means) ** 2).sum(dim=-1)
    mean = torch.softmax(weights.log() - square / (2 * (sigma[0] ** 2 + std**2)), dim=1) @ means
    return exact.gaussian_denoiser(x, sigma[:1], mean, std)


@impostor("exact.mixture_denoiser", "computed in bfloat16, as a model cast whole would")
def mixture_in_bfloat16(x, sigma, weights, means, std):
    x16, sigma16, means16 = x.bfloat16(), sigma.bfloat16(), means.bfloat16()
    square = ((x16[:, None] - means16) ** 2).sum(dim=-1)
    logits = weights.bfloat16().log() - square / (2 * (sigma16**2 + std**2))[:, None]
    mean = torch.softmax(logits, dim=1) @ means16
    return exact.gaussian_denoiser(x16, sigma16, mean, std).to(x.dtype)
