import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import edm, embeddings, exact, losses
from tests.impostors import impostor
from tests.strategies import normal, seeds, sigma_datas, sigmas

frame_counts = st.integers(1, 5)
positive = st.floats(math.log(1e-3), math.log(1e3)).map(math.exp)


def given_frames(count: int, batch: int = 1) -> torch.Tensor:
    """Mask of five frames of which the first `count` are given, shape `B 1 5 1 1`."""
    return (torch.arange(5) < count).double().reshape(1, 1, 5, 1, 1).repeat(batch, 1, 1, 1, 1)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


# --- denoising_error


@pytest.mark.verifies("losses.denoising_error", by="point")
def test_denoising_error_of_two_frames_of_which_one_is_given():
    D = torch.tensor([1.0, 2.0, 3.0, 4.0]).double().reshape(1, 1, 2, 1, 2)
    mask = torch.tensor([1.0, 0.0]).double().reshape(1, 1, 2, 1, 1)
    value = losses.denoising_error(D, torch.zeros_like(D), mask)
    assert value.tolist() == [6.25]  # (3^2 + 4^2) / 4


@pytest.mark.verifies("losses.denoising_error")
@given(frame_counts, seeds)
def test_what_happens_in_given_frames_does_not_matter(count, seed):
    x0, D, mask = normal(seed, 1, 2, 5, 2, 2), normal(seed + 1, 1, 2, 5, 2, 2), given_frames(count)
    changed = D + mask * normal(seed + 2, *D.shape)
    assert torch.equal(losses.denoising_error(changed, x0, mask), losses.denoising_error(D, x0, mask))


@pytest.mark.verifies("losses.denoising_error")
@given(frame_counts, seeds)
def test_given_frames_stay_in_the_denominator(count, seed):
    """An error of one in every element counts as the share of generated frames."""
    x0 = normal(seed, 1, 3, 5, 2, 2)
    error = losses.denoising_error(x0 + 1, x0, given_frames(count))
    torch.testing.assert_close(error, scalar(1 - count / 5), rtol=1e-12, atol=1e-12)


@pytest.mark.verifies("losses.denoising_error")
@given(seeds)
def test_each_sample_answers_for_its_own_error(seed):
    x0, D, mask = normal(seed, 2, 3, 5, 2, 2), normal(seed + 1, 2, 3, 5, 2, 2), given_frames(2, batch=2)
    both = losses.denoising_error(D, x0, mask)
    torch.testing.assert_close(both[1:], losses.denoising_error(D[1:], x0[1:], mask[1:]), rtol=1e-12, atol=0)


@pytest.mark.verifies("losses.denoising_error")
@given(seeds, st.floats(0.1, 10))
def test_the_error_grows_with_the_square_of_the_residual(seed, factor):
    residual, zero = normal(seed, 1, 3, 5, 2, 2), torch.zeros(1, 3, 5, 2, 2, dtype=torch.float64)
    error = losses.denoising_error(factor * residual, zero, given_frames(1))
    expected = factor**2 * losses.denoising_error(residual, zero, given_frames(1))
    torch.testing.assert_close(error, expected, rtol=1e-12, atol=0)


@impostor("losses.denoising_error", "given frames count like the others")
def error_of_all_frames(D, x0, frame_mask):
    return ((D - x0) ** 2).mean(dim=(1, 2, 3, 4))


@impostor("losses.denoising_error", "given frames left out of the denominator, as the paper's words suggest")
def error_over_generated_frames(D, x0, frame_mask):
    error = (1 - frame_mask) * (D - x0) ** 2
    generated = (1 - frame_mask).expand_as(D).sum(dim=(1, 2, 3, 4)).clamp(min=1)
    return error.sum(dim=(1, 2, 3, 4)) / generated


@impostor("losses.denoising_error", "one mean for the whole batch, so that no sample can have its own weight")
def error_of_the_batch(D, x0, frame_mask):
    return ((1 - frame_mask) * (D - x0) ** 2).mean().expand(len(D))


@impostor("losses.denoising_error", "the mask read the other way round: only given frames count")
def error_of_the_given_frames(D, x0, frame_mask):
    return (frame_mask * (D - x0) ** 2).mean(dim=(1, 2, 3, 4))


@impostor("losses.denoising_error", "summed over channels and averaged over places")
def error_summed_over_channels(D, x0, frame_mask):
    return ((1 - frame_mask) * (D - x0) ** 2).sum(dim=1).mean(dim=(1, 2, 3))


@impostor("losses.denoising_error", "absolute instead of squared error")
def absolute_error(D, x0, frame_mask):
    return ((1 - frame_mask) * (D - x0).abs()).mean(dim=(1, 2, 3, 4))


# --- log_variance


def features(seed: int, channels: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies, odd multiples of 2 pi, and phases."""
    odd = 2 * torch.randint(-2, 2, (channels,), generator=torch.Generator().manual_seed(seed)).double() + 1
    return 2 * math.pi * odd, normal(seed + 1, channels)


@pytest.mark.verifies("losses.log_variance", by="point")
def test_log_variance_of_two_features_by_hand():
    """A constant feature and one that turns once where c_noise grows by 1: at sigma 1, and half a turn on at e^2."""
    sigma = torch.tensor([1.0, math.exp(2)]).double()
    frequencies, phases = torch.tensor([0, 2 * math.pi]).double(), torch.zeros(2).double()
    u = losses.log_variance(sigma, frequencies, phases, torch.tensor([1.0, 2.0]).double())
    torch.testing.assert_close(u, u.new_tensor([4.2426406871, -1.4142135624]), rtol=0, atol=1e-9)  # (1 +- 2) sqrt 2


@pytest.mark.verifies("losses.log_variance")
@given(sigmas, seeds)
def test_untrained_it_is_zero_and_scaled_it_scales(sigma, seed):
    """Linear in its weights: at zero every noise level counts with lambda alone, and u may take either sign."""
    frequencies, phases = features(seed)
    weight = normal(seed + 2, 6)
    u = losses.log_variance(sigma, frequencies, phases, weight)
    assert (losses.log_variance(sigma, frequencies, phases, 0 * weight) == 0).all()
    torch.testing.assert_close(losses.log_variance(sigma, frequencies, phases, -3 * weight), -3 * u, rtol=1e-12, atol=0)


@pytest.mark.verifies("losses.log_variance")
@given(sigmas, seeds)
def test_it_changes_sign_when_sigma_grows_by_e_squared(sigma, seed):
    """It sees c_noise = ln(sigma) / 4, and these features make an odd number of half turns where that grows by 1/2."""
    frequencies, phases = features(seed)
    weight = normal(seed + 2, 6)
    u = losses.log_variance(sigma, frequencies, phases, weight)
    later = losses.log_variance(sigma * math.exp(2), frequencies, phases, weight)
    torch.testing.assert_close(later, -u, rtol=0, atol=1e-10)


@pytest.mark.verifies("losses.log_variance")
@given(sigmas, seeds)
def test_each_sample_has_the_log_variance_of_its_level(sigma, seed):
    frequencies, phases = features(seed)
    weight = normal(seed + 2, 6)
    both = losses.log_variance(torch.cat([sigma, 2 * sigma]), frequencies, phases, weight)
    torch.testing.assert_close(both[1:], losses.log_variance(2 * sigma, frequencies, phases, weight))


@impostor("losses.log_variance", "fed with sigma, as the paper's u(sigma) reads")
def log_variance_of_sigma(sigma, frequencies, phases, weight):
    return embeddings.fourier_features(sigma, frequencies, phases) @ weight


@impostor("losses.log_variance", "fed with the whole logarithm instead of a quarter of it")
def log_variance_of_the_logarithm(sigma, frequencies, phases, weight):
    return embeddings.fourier_features(sigma.log(), frequencies, phases) @ weight


@impostor("losses.log_variance", "kept positive, as a variance is: but this is its logarithm")
def log_variance_kept_positive(sigma, frequencies, phases, weight):
    return torch.nn.functional.softplus(embeddings.fourier_features(edm.c_noise(sigma), frequencies, phases) @ weight)


@impostor("losses.log_variance", "the average over the batch for everyone")
def log_variance_of_the_batch(sigma, frequencies, phases, weight):
    u = embeddings.fourier_features(edm.c_noise(sigma), frequencies, phases) @ weight
    return u.mean().expand(len(sigma))


@impostor("losses.log_variance", "features without their root of 2, as in a plain cosine layer")
def log_variance_of_plain_cosines(sigma, frequencies, phases, weight):
    return torch.cos(edm.c_noise(sigma)[:, None] * frequencies + phases) @ weight


# --- uncertainty_weighted

NODES, SHARES = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(6))
SHARES = SHARES / SHARES.sum()
"""Six values and probabilities with the moments of a standard normal up to the eleventh: a mean over them is exact."""


def settle(loss, start=0.0, steps=100):
    """Where plain gradient descent takes u, and the loss there. A step is at most 1 long."""
    u = torch.tensor([start], dtype=torch.float64)
    for _ in range(steps):
        u.requires_grad_()
        (slope,) = torch.autograd.grad(loss(u).sum(), u)
        u = (u - (0.5 * slope).clamp(-1, 1)).detach()
    return u, loss(u)


@pytest.mark.verifies("losses.uncertainty_weighted", by="point")
def test_uncertainty_weighted_by_hand():
    value = losses.uncertainty_weighted(scalar(2.0), scalar(3.0), scalar(math.log(2)))
    torch.testing.assert_close(value, scalar(3.693147), rtol=0, atol=6e-7)  # 2 * 3 / 2 + ln 2


@pytest.mark.verifies("losses.uncertainty_weighted")
@given(positive, positive)
def test_the_best_uncertainty_is_the_weighted_error_itself(L, weight):
    """d/du is zero, and the second derivative positive, where e^u = lambda L; the loss is 1 + u there."""
    u = scalar(math.log(weight * L)).requires_grad_()
    value = losses.uncertainty_weighted(scalar(L), scalar(weight), u)
    (slope,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    assert abs(slope.item()) < 1e-12
    (curvature,) = torch.autograd.grad(slope.sum(), u)
    assert curvature.item() > 0
    torch.testing.assert_close(value, 1 + u, rtol=1e-12, atol=1e-12)


@pytest.mark.verifies("losses.uncertainty_weighted")
@given(positive, positive, st.floats(1, 30))
def test_claiming_certainty_does_not_pay(L, weight, excess):
    """Below its optimum, a lower u costs more and more: the loss is bounded from below."""
    best = math.log(weight * L)
    honest = losses.uncertainty_weighted(scalar(L), scalar(weight), scalar(best))
    overconfident = losses.uncertainty_weighted(scalar(L), scalar(weight), scalar(best - excess))
    assert (overconfident > honest).all()


@pytest.mark.verifies("losses.uncertainty_weighted")
@given(positive, positive, st.floats(-3, 3), st.floats(-3, 3))
def test_a_weight_absorbed_by_the_uncertainty_only_adds_a_constant(L, weight, u, log_k):
    """lambda -> k lambda with u -> u + ln k: the same gradients, the loss higher by ln k."""
    plain = losses.uncertainty_weighted(scalar(L), scalar(weight), scalar(u))
    scaled = losses.uncertainty_weighted(scalar(L), scalar(weight * math.exp(log_k)), scalar(u + log_k))
    torch.testing.assert_close(scaled, plain + log_k, rtol=1e-12, atol=1e-12)


@pytest.mark.verifies("losses.uncertainty_weighted")
@given(positive, positive)
def test_at_the_best_uncertainty_every_noise_level_pulls_alike(L, weight):
    """A relative change of the error changes the loss by that much, however large the error is."""
    error = scalar(L).requires_grad_()
    value = losses.uncertainty_weighted(error, scalar(weight), scalar(math.log(weight * L)))
    (slope,) = torch.autograd.grad(value.sum(), error)
    torch.testing.assert_close(slope * L, scalar(1.0), rtol=1e-12, atol=0)


@pytest.mark.verifies("losses.uncertainty_weighted")
@given(sigmas, sigma_datas, st.floats(0.2, 3))
def test_training_u_finds_the_expected_weighted_error(sigma, sigma_data, std):
    """Gaussian data and their perfect denoiser, whose error is known: e^u = E[lambda L | sigma], found by descent.

    The errors themselves scatter from 0 to tens of times their mean; it is the mean that u must find.
    """
    x0, n = std * NODES[:, None, None], NODES[None, :, None]
    x = (x0 + sigma * n).reshape(36, 1)
    D = exact.gaussian_denoiser(x, sigma.expand(36), torch.zeros(1).double(), std).reshape(6, 6, 1)
    L, chances = ((D - x0) ** 2).reshape(36), torch.outer(SHARES, SHARES).reshape(36)
    weight = edm.loss_weight(sigma, sigma_data)
    u, _ = settle(lambda u: (chances * losses.uncertainty_weighted(L, weight, u)).sum())
    expected = weight * sigma**2 * std**2 / (sigma**2 + std**2)
    torch.testing.assert_close(u.exp(), expected, rtol=1e-9, atol=0)


@pytest.mark.verifies("losses.uncertainty_weighted")
@given(positive, positive, st.floats(-20, 20))
def test_no_uncertainty_whatever_makes_the_loss_smaller_than_one_plus_its_logarithm(L, weight, u):
    """A floor of 1 + ln(lambda L) under every u: there is a best one, and u does not run away."""
    value = losses.uncertainty_weighted(scalar(L), scalar(weight), scalar(u))
    assert value.item() >= 1 + math.log(weight * L) - 1e-12


def test_the_seeds_total_loss_has_no_minimum():
    """lambda L + u falls by as much as u does, for ever: a hundred steps of 0.5 lower it by 50, a hundred more too."""
    loss = lambda u: uncertainty_of_the_seed(scalar(2.0), scalar(3.0), u)  # noqa: E731
    u, value = settle(loss)
    u_later, value_later = settle(loss, start=u.item())
    assert [u.item(), u_later.item()] == [-50, -100]
    assert [value.item(), value_later.item()] == [-44, -94]


@impostor("losses.uncertainty_weighted", "no division by e^u, as the seed text prints it")
def uncertainty_of_the_seed(L, loss_weight, logvar):
    return loss_weight * L + logvar


@impostor("losses.uncertainty_weighted", "the weighted error counted twice")
def uncertainty_of_twice_the_error(L, loss_weight, logvar):
    return 2 * loss_weight * L * torch.exp(-logvar) + logvar


@impostor("losses.uncertainty_weighted", "multiplied by e^u instead of divided")
def uncertainty_with_the_sign_turned(L, loss_weight, logvar):
    return loss_weight * L * torch.exp(logvar) + logvar


@impostor("losses.uncertainty_weighted", "divided by the output of the layer instead of its exponential")
def uncertainty_as_variance(L, loss_weight, logvar):
    return loss_weight * L / logvar.abs().clamp(min=1e-6) + logvar


@impostor("losses.uncertainty_weighted", "u taken for the logarithm of a standard deviation, as in Kendall's")
def uncertainty_as_log_std(L, loss_weight, logvar):
    return loss_weight * L * torch.exp(-2 * logvar) / 2 + logvar


@impostor("losses.uncertainty_weighted", "the price of uncertainty forgotten")
def uncertainty_for_free(L, loss_weight, logvar):
    return loss_weight * L * torch.exp(-logvar)


# --- summed


@pytest.mark.verifies("losses.summed", by="point")
def test_two_samples_of_four_elements_summed_by_hand():
    assert losses.summed(torch.tensor([1.0, 4.0]).double(), 4).item() == 10.0  # 4 * (1 + 4) / 2


@pytest.mark.verifies("losses.summed")
@given(seeds, st.integers(1, 4))
def test_summing_counts_u_with_every_element(seed, batch):
    """Element by element as NVIDIA's code does it: (lambda e^2 / e^u + u) summed over a sample, then the mean."""
    squares, weight, u = normal(seed, batch, 5) ** 2, normal(seed + 1, batch).exp(), normal(seed + 2, batch)
    elements = squares * (weight * torch.exp(-u))[:, None] + u[:, None]
    loss = losses.uncertainty_weighted(squares.mean(dim=1), weight, u)
    torch.testing.assert_close(losses.summed(loss, 5), elements.sum(dim=1).mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.verifies("losses.summed")
@given(seeds, st.integers(1, 20))
def test_a_batch_of_equals_costs_as_much_as_one_of_them(seed, elements):
    one = normal(seed, 1)
    torch.testing.assert_close(losses.summed(one.expand(7), elements), losses.summed(one, elements))


@impostor("losses.summed", "summed over the batch too, so that a larger batch learns faster")
def summed_over_the_batch(loss, elements):
    return elements * loss.sum()


@impostor("losses.summed", "the mean, as the public post-training configurations have it")
def summed_is_the_mean(loss, elements):
    return loss.mean()


@impostor("losses.summed", "divided by the number of elements once more, where the mean had done so")
def summed_the_wrong_way(loss, elements):
    return loss.mean() / elements


# --- edges


def test_an_empty_batch_has_no_errors():
    none, clip = torch.zeros(0), torch.zeros(0, 2, 5, 2, 2)
    assert losses.denoising_error(clip, clip, torch.zeros(0, 1, 5, 1, 1)).shape == (0,)
    assert losses.log_variance(none, torch.zeros(6), torch.zeros(6), torch.zeros(6)).shape == (0,)
    assert losses.uncertainty_weighted(none, none, none).shape == (0,)
