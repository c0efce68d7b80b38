import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import losses
from tests.impostors import impostor
from tests.strategies import normal, seeds

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


@impostor("losses.denoising_error", "absolute instead of squared error")
def absolute_error(D, x0, frame_mask):
    return ((1 - frame_mask) * (D - x0).abs()).mean(dim=(1, 2, 3, 4))


# --- uncertainty_weighted


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


@impostor("losses.uncertainty_weighted", "no division by e^u, as the seed text prints it")
def uncertainty_of_the_seed(L, loss_weight, logvar):
    return loss_weight * L + logvar


@impostor("losses.uncertainty_weighted", "the weighted error counted twice")
def uncertainty_of_twice_the_error(L, loss_weight, logvar):
    return 2 * loss_weight * L * torch.exp(-logvar) + logvar


@impostor("losses.uncertainty_weighted", "u taken for the logarithm of a standard deviation, as in Kendall's")
def uncertainty_as_log_std(L, loss_weight, logvar):
    return loss_weight * L * torch.exp(-2 * logvar) / 2 + logvar


@impostor("losses.uncertainty_weighted", "the price of uncertainty forgotten")
def uncertainty_for_free(L, loss_weight, logvar):
    return loss_weight * L * torch.exp(-logvar)
