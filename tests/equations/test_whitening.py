import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import whitening
from tests.impostors import impostor
from tests.strategies import normal, seeds

D, C = 6, 3  # width of the data, channels kept


def cloud(seed: int) -> torch.Tensor:
    """A hundred points of a Gaussian stretched and turned at random, away from the origin."""
    return normal(seed, 100, D) @ normal(seed + 1, D, D) + normal(seed + 2, D)


def covariance(x: torch.Tensor) -> torch.Tensor:
    return torch.cov(x.T, correction=0)


def fitted(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Axes, and mean and standard deviation of the coordinates along them."""
    axes = torch.linalg.eigh(covariance(x)).eigenvectors.T[-C:]  # not `principal_axes`: judged on its own
    return axes, (x @ axes.T).mean(dim=0), (x @ axes.T).std(dim=0, correction=0)


# --- standardize, unstandardize


@pytest.mark.verifies("whitening.standardize", by="point")
def test_standardize_by_hand():
    z = torch.tensor([3.0, -1.0]).double()
    standard = whitening.standardize(z, z.new_tensor([1.0, 1.0]), z.new_tensor([4.0, 0.5]))
    assert standard.tolist() == [0.5, -4.0]


@pytest.mark.verifies("whitening.standardize")
@given(seeds, st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_neither_the_unit_nor_the_zero_of_a_scale_is_left(seed, zero, unit):
    """Latents in another unit, measured from another zero, have other statistics and the same standard numbers."""
    z = normal(seed, 50, C)
    moved = unit * z + zero
    plain, again = (whitening.standardize(x, x.mean(dim=0), x.std(dim=0)) for x in (z, moved))
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-7)  # a mean a million deviations away costs ten digits


@pytest.mark.verifies("whitening.standardize")
@given(seeds)
def test_each_channel_and_frame_has_statistics_of_its_own(seed):
    """As for Cosmos' latents, `B C t h w`, whose first latent frame is unlike the others."""
    scale, shift = normal(seed + 1, C, 4, 1, 1).exp(), normal(seed + 2, C, 4, 1, 1)
    z = normal(seed, 5, C, 4, 3, 3) * scale + shift
    mean, std = z.mean(dim=(0, 3, 4)), z.std(dim=(0, 3, 4), correction=0)
    standard = whitening.standardize(z, mean[..., None, None], std[..., None, None])
    torch.testing.assert_close(standard.mean(dim=(0, 3, 4)), torch.zeros(C, 4).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(standard.square().mean(dim=(0, 3, 4)), torch.ones(C, 4).double(), rtol=0, atol=1e-10)


@impostor("whitening.standardize", "divided by the variance")
def standardize_by_variance(z, mean, std):
    return (z - mean) / std**2


@impostor("whitening.standardize", "divided before the mean is taken away")
def standardize_scaled_first(z, mean, std):
    return z / std - mean


@impostor("whitening.standardize", "one mean and one deviation for all channels and frames")
def standardize_as_a_whole(z, mean, std):
    return (z - mean.mean()) / std.mean()


@impostor("whitening.standardize", "an epsilon against a zero deviation, which no latent has")
def standardize_with_epsilon(z, mean, std):
    return (z - mean) / (std + 1e-5)


@pytest.mark.verifies("whitening.unstandardize", by="point")
def test_unstandardize_by_hand():
    z = torch.tensor([0.5, -4.0]).double()
    assert whitening.unstandardize(z, z.new_tensor([1.0, 1.0]), z.new_tensor([4.0, 0.5])).tolist() == [3.0, -1.0]


@pytest.mark.verifies("whitening.unstandardize", "whitening.standardize")
@given(seeds)
def test_latents_come_back_from_their_standard_numbers(seed):
    z, mean, std = normal(seed, 7, C), normal(seed + 1, C), normal(seed + 2, C).exp()
    back = whitening.unstandardize(whitening.standardize(z, mean, std), mean, std)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-10)


@impostor("whitening.unstandardize", "the forward way once more")
def unstandardize_forwards(z, mean, std):
    return (z - mean) / std


@impostor("whitening.unstandardize", "shifted before it is scaled")
def unstandardize_shifted_first(z, mean, std):
    return (z + mean) * std


@impostor("whitening.unstandardize", "the mean forgotten")
def unstandardize_without_mean(z, mean, std):
    return z * std


# --- merge_moments


def moments(x: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Two passes over the numbers: their mean, then their deviations from it."""
    mean = x.mean(dim=0)
    return len(x), mean, (x - mean).square().sum(dim=0)


@pytest.mark.verifies("whitening.merge_moments", by="point")
def test_merge_moments_by_hand():
    """1, 3 and 5, 5, 5, 9 together are 1, 3, 5, 5, 5, 9, with the mean 14/3 and squares of deviations 106/3."""
    one, six = torch.tensor(1.0).double(), torch.tensor(6.0).double()
    mean, m2 = whitening.merge_moments(2, 2 * one, 2 * one, 4, six, 12 * one)
    torch.testing.assert_close(mean, 14 * one / 3, rtol=1e-15, atol=0)
    torch.testing.assert_close(m2, 106 * one / 3, rtol=1e-15, atol=0)


@pytest.mark.verifies("whitening.merge_moments")
@given(seeds, st.integers(1, 39), st.floats(-1e3, 1e3))
def test_two_parts_together_have_the_moments_of_the_whole(seed, cut, mean):
    x = normal(seed, 40, C) + mean + torch.arange(40).double()[:, None]
    merged = whitening.merge_moments(*moments(x[:cut]), *moments(x[cut:]))
    torch.testing.assert_close(merged, moments(x)[1:], rtol=1e-12, atol=0)


@pytest.mark.verifies("whitening.merge_moments")
@given(seeds, st.integers(1, 39))
def test_it_does_not_matter_which_part_comes_first(seed, cut):
    x = normal(seed, 40, C) + torch.arange(40).double()[:, None]
    a, b = moments(x[:cut]), moments(x[cut:])
    there, back = whitening.merge_moments(*a, *b), whitening.merge_moments(*b, *a)
    torch.testing.assert_close(there, back, rtol=1e-13, atol=1e-13)


@pytest.mark.verifies("whitening.merge_moments")
@given(seeds)
def test_an_empty_part_changes_nothing(seed):
    x = normal(seed, 5, C)
    nothing = (0, torch.zeros(C).double(), torch.zeros(C).double())
    torch.testing.assert_close(whitening.merge_moments(*nothing, *moments(x)), moments(x)[1:], rtol=1e-14, atol=0)
    assert all(map(torch.equal, whitening.merge_moments(*moments(x), *nothing), moments(x)[1:]))


@pytest.mark.verifies("whitening.merge_moments")
@given(seeds)
def test_a_mean_far_from_zero_costs_no_digits(seed):
    """A hundred million deviations away the sum of squares has lost all sixteen digits; merging loses none.

    The numbers themselves are rounded there, by 1e-8, and their mean as much: deviations are compared to 1e-6.
    """
    x, far = normal(seed, 40, C), 1e8
    _, m2 = whitening.merge_moments(*moments(x[:7] + far), *moments(x[7:] + far))
    torch.testing.assert_close(m2, moments(x)[2], rtol=1e-6, atol=0)


@impostor("whitening.merge_moments", "the spread between the two means forgotten")
def merge_within_only(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    count = count_a + count_b
    return mean_a + (mean_b - mean_a) * (count_b / count), m2_a + m2_b


@impostor("whitening.merge_moments", "the means averaged as if both parts had as many numbers")
def merge_as_equals(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    delta, count = mean_b - mean_a, count_a + count_b
    return (mean_a + mean_b) / 2, m2_a + m2_b + delta**2 * (count_a * count_b / count)


@impostor("whitening.merge_moments", "weights exchanged: the mean moves by the share of the first part")
def merge_exchanged(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    delta, count = mean_b - mean_a, count_a + count_b
    return mean_a + delta * (count_a / count), m2_a + m2_b + delta**2 * (count_a * count_b / count)


@impostor("whitening.merge_moments", "Welford's update, in which the second part is one number whatever it has")
def merge_one_more(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    delta, count = mean_b - mean_a, count_a + 1
    return mean_a + delta / count, m2_a + m2_b + delta**2 * (count_a / count)


@impostor("whitening.merge_moments", "through sums of squares, which lose all digits where the mean is large")
def merge_through_squares(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    count = count_a + count_b
    mean = (count_a * mean_a + count_b * mean_b) / count
    squares = m2_a + count_a * mean_a**2 + m2_b + count_b * mean_b**2
    return mean, squares - count * mean**2


# --- principal_axes


@pytest.mark.verifies("whitening.principal_axes", by="point")
def test_principal_axes_of_a_two_by_two_covariance():
    """Eigenvalues 6 and 1, eigenvectors (2, 1) and (-1, 2)."""
    axes = whitening.principal_axes(torch.tensor([[5.0, 2.0], [2.0, 2.0]]).double(), 2)
    expected = axes.new_tensor([[2.0, 1.0], [-1.0, 2.0]]) / math.sqrt(5)
    torch.testing.assert_close(axes, expected, rtol=0, atol=1e-12)


@pytest.mark.verifies("whitening.principal_axes")
@given(seeds)
def test_axes_are_orthonormal(seed):
    axes = whitening.principal_axes(covariance(cloud(seed)), C)
    torch.testing.assert_close(axes @ axes.T, torch.eye(C).double(), rtol=0, atol=1e-12)


@pytest.mark.verifies("whitening.principal_axes")
@given(seeds)
def test_along_the_axes_nothing_is_correlated(seed):
    sigma = covariance(cloud(seed))
    axes = whitening.principal_axes(sigma, C)
    along = axes @ sigma @ axes.T
    torch.testing.assert_close(along, along.diag().diag(), rtol=0, atol=1e-11 * sigma.trace().item())


@pytest.mark.verifies("whitening.principal_axes")
@given(seeds)
def test_axes_come_in_order_of_their_variance(seed):
    x = cloud(seed)
    variances = (x @ whitening.principal_axes(covariance(x), C).T).var(dim=0)
    assert (variances.diff() < 0).all()


@pytest.mark.verifies("whitening.principal_axes")
@given(seeds)
def test_no_other_plane_comes_closer_to_the_data(seed):
    """Eckart-Young: what is lost is the sum of the smallest eigenvalues, and a random plane loses more."""
    x = cloud(seed)
    x = x - x.mean(dim=0)
    lost = {}
    random = torch.linalg.qr(normal(seed + 3, D, C)).Q.T
    for name, axes in {"principal": whitening.principal_axes(covariance(x), C), "random": random}.items():
        lost[name] = (x - x @ axes.T @ axes).square().sum(dim=1).mean()
    smallest = torch.linalg.eigvalsh(covariance(x))[: D - C].sum()
    torch.testing.assert_close(lost["principal"], smallest, rtol=1e-8, atol=1e-12)
    assert lost["principal"] < lost["random"]


@pytest.mark.verifies("whitening.principal_axes")
@given(seeds)
def test_the_largest_entry_of_each_axis_is_positive(seed):
    axes = whitening.principal_axes(covariance(cloud(seed)), C)
    assert torch.equal(axes.amax(dim=1), axes.abs().amax(dim=1))


@pytest.mark.verifies("whitening.principal_axes")
@given(seeds)
def test_rounding_does_not_turn_an_axis_round(seed):
    """(1, 1) and (1, -1) have no largest entry but by rounding, and rounding differs between machines."""
    sigma = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()
    error = 1e-12 * normal(seed, 2, 2)
    axes = whitening.principal_axes(sigma + error + error.T, 2)
    torch.testing.assert_close(axes, whitening.principal_axes(sigma, 2), rtol=0, atol=1e-10)


@impostor(
    "whitening.principal_axes",
    "sign of the entry that is largest to the last bit, as scikit-learn does: rounding decides",
)
def axes_signed_to_the_last_bit(covariance, channels):
    return signed(torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:channels])


@impostor("whitening.principal_axes", "smallest variance first, as eigh returns it")
def axes_in_the_order_of_eigh(covariance, channels):
    return signed(torch.linalg.eigh(covariance).eigenvectors.T[:channels])


@impostor("whitening.principal_axes", "rows of the eigenvector matrix instead of columns")
def axes_from_rows(covariance, channels):
    return signed(torch.linalg.eigh(covariance).eigenvectors.flip(0)[:channels])


@impostor("whitening.principal_axes", "loadings: each axis as long as its standard deviation")
def axes_as_loadings(covariance, channels):
    values, vectors = torch.linalg.eigh(covariance)
    return signed((vectors * values.sqrt()).T.flip(0)[:channels])


@impostor("whitening.principal_axes", "signs as the eigensolver left them, different on every machine")
def axes_of_any_sign(covariance, channels):
    return torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:channels]


def signed(axes: torch.Tensor) -> torch.Tensor:
    return axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()


# --- whiten


@pytest.mark.verifies("whitening.whiten", by="point")
def test_whiten_along_one_axis():
    x, axes = torch.tensor([3.0, 4.0]).double(), torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    z = whitening.whiten(x, axes, axes.new_tensor([1.0]), axes.new_tensor([2.0]))
    torch.testing.assert_close(z, axes.new_tensor([2.0]), rtol=1e-12, atol=0)  # (5 - 1) / 2


@pytest.mark.verifies("whitening.whiten")
@given(seeds)
def test_whitened_data_has_zero_mean_and_the_identity_for_covariance(seed):
    x = cloud(seed)
    z = whitening.whiten(x, *fitted(x))
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(C).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance(z), torch.eye(C).double(), rtol=0, atol=1e-9)


@impostor("whitening.whiten", "divided by the variance")
def whiten_by_variance(x, axes, mean, std):
    return (x @ axes.T - mean) / std**2


@impostor("whitening.whiten", "only turned and centred: one channel a hundred times as large as another")
def whiten_without_scale(x, axes, mean, std):
    return x @ axes.T - mean


@impostor("whitening.whiten", "scaled before it is centred")
def whiten_scaled_first(x, axes, mean, std):
    return x @ axes.T / std - mean


# --- unwhiten


@pytest.mark.verifies("whitening.unwhiten", by="point")
def test_unwhiten_along_one_axis():
    z, axes = torch.tensor([2.0]).double(), torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    x = whitening.unwhiten(z, axes, axes.new_tensor([1.0]), axes.new_tensor([2.0]))
    torch.testing.assert_close(x, axes.new_tensor([3.0, 4.0]), rtol=1e-12, atol=0)


@pytest.mark.verifies("whitening.whiten", "whitening.unwhiten")
@given(seeds)
def test_every_coordinate_comes_back_from_its_point(seed):
    z, (axes, mean, std) = normal(seed, 7, C), fitted(cloud(seed))
    back = whitening.whiten(whitening.unwhiten(z, axes, mean, std), axes, mean, std)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-9)


@pytest.mark.verifies("whitening.whiten", "whitening.unwhiten")
@given(seeds)
def test_a_point_comes_back_as_the_nearest_one_on_the_subspace(seed):
    """What is lost is perpendicular to every axis: nothing on the subspace lies closer."""
    x = cloud(seed)
    axes, mean, std = fitted(x)
    back = whitening.unwhiten(whitening.whiten(x, axes, mean, std), axes, mean, std)
    torch.testing.assert_close((x - back) @ axes.T, torch.zeros(100, C).double(), rtol=0, atol=1e-10)


@impostor("whitening.unwhiten", "shifted before it is scaled")
def unwhiten_shifted_first(z, axes, mean, std):
    return (z + mean) * std @ axes


@impostor("whitening.unwhiten", "divided by the deviation, as on the way there")
def unwhiten_divided(z, axes, mean, std):
    return (z / std + mean) @ axes


@impostor("whitening.unwhiten", "the mean forgotten")
def unwhiten_without_mean(z, axes, mean, std):
    return z * std @ axes
