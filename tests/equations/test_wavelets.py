import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import wavelets
from tests.impostors import impostor
from tests.strategies import normal, seeds

EXACT = dict(rtol=0, atol=1e-12)  # float64, at most six halvings of numbers of size 1
depths = st.integers(0, 2)
levels = st.tuples(depths, depths, depths)
some_levels = levels.filter(any)
cells = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))


def clip(seed, levels, cells):
    """A random clip of two samples and three channels, `cells` low-band values long on each axis."""
    return normal(seed, 2, 3, *(count * 2**level for count, level in zip(cells, levels, strict=True)))


# --- haar_3d


@pytest.mark.verifies("wavelets.haar_3d", by="point")
def test_haar_of_one_to_eight():
    """Bands lll, llh, ..., hhh over (t, h, w): mean 4.5; half differences along w, h, t are -1/2, -1, -2."""
    x = torch.arange(1, 9, dtype=torch.float64).reshape(1, 1, 2, 2, 2)
    expected = x.new_tensor([4.5, -0.5, -1, 0, -2, 0, 0, 0])
    torch.testing.assert_close(wavelets.haar_3d(x, (1, 1, 1)).flatten(), expected, **EXACT)


@pytest.mark.verifies("wavelets.haar_3d", by="point")
def test_haar_of_two_channels_keeps_a_bands_channels_together():
    x = torch.tensor([[5.0, 1], [8, 2]], dtype=torch.float64).reshape(1, 2, 1, 1, 2)
    assert wavelets.haar_3d(x, (0, 0, 1)).flatten().tolist() == [3, 5, 2, 3]


@pytest.mark.verifies("wavelets.haar_3d")
@given(levels, cells, seeds)
def test_the_low_band_is_the_mean_of_its_cell(levels, cells, seed):
    x = clip(seed, levels, cells)
    low = wavelets.haar_3d(x, levels)[:, :3]
    means = torch.nn.functional.avg_pool3d(x, [2**level for level in levels])
    torch.testing.assert_close(low, means, **EXACT)


@pytest.mark.verifies("wavelets.haar_3d")
@given(levels, cells, seeds)
def test_every_level_of_every_axis_halves_the_energy(levels, cells, seed):
    """a^2 + b^2 = 2 (l^2 + h^2), for all bands: nothing gets lost and none is left out."""
    x = clip(seed, levels, cells)
    y = wavelets.haar_3d(x, levels)
    torch.testing.assert_close(2 ** sum(levels) * (y**2).sum(), (x**2).sum(), rtol=1e-12, atol=0)


@pytest.mark.verifies("wavelets.haar_3d")
@given(levels, cells, seeds)
def test_a_constant_clip_has_only_a_low_band(levels, cells, seed):
    x = normal(seed, 2, 3, 1, 1, 1).expand_as(clip(seed, levels, cells))
    y = wavelets.haar_3d(x, levels)
    torch.testing.assert_close(y[:, :3], x[:, :, : y.shape[2], : y.shape[3], : y.shape[4]], **EXACT)
    torch.testing.assert_close(y[:, 3:], torch.zeros_like(y[:, 3:]), **EXACT)


@pytest.mark.verifies("wavelets.haar_3d")
@given(cells, seeds, st.integers(0, 2))
def test_the_second_level_splits_every_band_of_the_first(cells, seed, axis):
    """The axes may differ in depth: the second level is a transform of its own, of the deeper axes."""
    deeper = tuple(int(i != axis) for i in range(3))
    levels = tuple(1 + d for d in deeper)
    x = clip(seed, levels, cells)
    once = wavelets.haar_3d(x, (1, 1, 1))
    torch.testing.assert_close(wavelets.haar_3d(x, levels), wavelets.haar_3d(once, deeper), **EXACT)


@pytest.mark.verifies("wavelets.haar_3d", by="point")
def test_a_level_is_an_orthonormal_matrix_over_the_root_of_eight():
    """Eight signs a row, 1/8 each: rows at right angles, of length 1 / sqrt 8; the first is the mean."""
    basis = torch.eye(8, dtype=torch.float64).reshape(8, 1, 2, 2, 2)
    matrix = wavelets.haar_3d(basis, (1, 1, 1)).reshape(8, 8).T
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8, dtype=torch.float64) / 8, **EXACT)
    assert torch.equal(matrix[0], torch.full((8,), 1 / 8, dtype=torch.float64))
    signs = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
    assert torch.equal(8 * matrix, torch.kron(torch.kron(signs, signs), signs))  # t, h, w: lll, llh, lhl, ..., hhh


@pytest.mark.verifies("wavelets.haar_3d", "wavelets.inverse_haar_3d")
@given(cells, seeds)
def test_a_level_of_eight_bit_pixels_goes_through_float16_and_back_without_loss(cells, seed):
    """Eighths up to 255 need eleven bits, and float16 has eleven. With a root of two nothing is exact."""
    shape = (2, 3, *(2 * count for count in cells))
    pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).half()
    bands = wavelets.haar_3d(pixels, (1, 1, 1))
    torch.testing.assert_close(bands.double(), wavelets.haar_3d(pixels.double(), (1, 1, 1)), rtol=0, atol=0)
    torch.testing.assert_close(wavelets.inverse_haar_3d(bands, (1, 1, 1)), pixels, rtol=0, atol=0)


def haar_with(split, order=(4, 3, 2)):
    """The transform with another way to split pairs or another order of the axes."""

    def haar(x, levels):
        for level in range(max(levels)):
            for axis in order:
                if level < levels[axis - 2]:
                    x = split(*x.unflatten(axis, (-1, 2)).unbind(axis + 1), level)
        return x

    return haar


def pyramid_split(a, b, level):
    low = a.shape[1] // 2**level  # all of them on the first level
    return torch.cat([(a + b)[:, :low] / 2, a[:, low:], (a - b)[:, :low] / 2, b[:, low:]], dim=1)


@impostor("wavelets.haar_3d", "orthonormal scaling, as in wavelet textbooks")
def haar_orthonormal(x, levels):
    return haar_with(lambda a, b, level: torch.cat([a + b, a - b], dim=1) / 2**0.5)(x, levels)


@impostor("wavelets.haar_3d", "difference of second and first")
def haar_with_sign_flipped(x, levels):
    return haar_with(lambda a, b, level: torch.cat([a + b, b - a], dim=1) / 2)(x, levels)


@impostor("wavelets.haar_3d", "high band first")
def haar_with_high_band_first(x, levels):
    return haar_with(lambda a, b, level: torch.cat([a - b, a + b], dim=1) / 2)(x, levels)


@impostor("wavelets.haar_3d", "bands named over (w, h, t)")
def haar_with_bands_over_w_h_t(x, levels):
    return haar_with(lambda a, b, level: torch.cat([a + b, a - b], dim=1) / 2, order=(2, 3, 4))(x, levels)


@impostor("wavelets.haar_3d", "only the low half split again, as in a pyramid; the rest folded as it is")
def haar_pyramid(x, levels):
    return haar_with(pyramid_split)(x, levels)


@impostor("wavelets.haar_3d", "bands inside the channels")
def haar_with_bands_inside(x, levels):
    return haar_with(lambda a, b, level: torch.stack([a + b, a - b], dim=2).flatten(1, 2) / 2)(x, levels)


@impostor("wavelets.haar_3d", "differences not halved")
def haar_with_whole_differences(x, levels):
    return haar_with(lambda a, b, level: torch.cat([(a + b) / 2, a - b], dim=1))(x, levels)


# --- inverse_haar_3d


@pytest.mark.verifies("wavelets.inverse_haar_3d", by="point")
def test_mean_three_and_half_difference_two_were_five_and_one():
    y = torch.tensor([3.0, 2], dtype=torch.float64).reshape(1, 2, 1, 1, 1)
    assert wavelets.inverse_haar_3d(y, (0, 0, 1)).flatten().tolist() == [5, 1]


@pytest.mark.verifies("wavelets.inverse_haar_3d", "wavelets.haar_3d")
@given(levels, cells, seeds)
def test_the_inverse_returns_the_clip(levels, cells, seed):
    x = clip(seed, levels, cells)
    torch.testing.assert_close(wavelets.inverse_haar_3d(wavelets.haar_3d(x, levels), levels), x, **EXACT)


@pytest.mark.verifies("wavelets.inverse_haar_3d", "wavelets.haar_3d")
@given(levels, cells, seeds)
def test_any_bands_are_those_of_their_clip(levels, cells, seed):
    """The other way round: the transform is onto, so a decoder may invent any bands."""
    y = normal(seed, 2, 3 * 2 ** sum(levels), *cells)
    torch.testing.assert_close(wavelets.haar_3d(wavelets.inverse_haar_3d(y, levels), levels), y, **EXACT)


@pytest.mark.verifies("wavelets.inverse_haar_3d")
@given(some_levels, cells, seeds)
def test_the_low_band_alone_gives_cells_of_one_colour(levels, cells, seed):
    low = normal(seed, 2, 3, *cells)
    y = torch.cat([low, low.new_zeros(2, 3 * (2 ** sum(levels) - 1), *cells)], dim=1)
    x = wavelets.inverse_haar_3d(y, levels)
    for axis, level in enumerate(levels, start=2):
        low = low.repeat_interleave(2**level, dim=axis)
    torch.testing.assert_close(x, low, **EXACT)


def inverse_with(join, order=(2, 3, 4), first=lambda count: reversed(range(count))):
    """The inverse with another way to join pairs, another order of the axes or of the levels."""

    def inverse(x, levels):
        for level in first(max(levels)):
            for axis in order:
                if level < levels[axis - 2]:
                    x = torch.stack(join(*x.chunk(2, dim=1)), dim=axis + 1).flatten(axis, axis + 1)
        return x

    return inverse


def join(low, high):
    return low + high, low - high


@impostor("wavelets.inverse_haar_3d", "orthonormal scaling, as in wavelet textbooks")
def inverse_haar_orthonormal(x, levels):
    return inverse_with(lambda low, high: ((low + high) / 2**0.5, (low - high) / 2**0.5))(x, levels)


@impostor("wavelets.inverse_haar_3d", "first and second of a pair exchanged")
def inverse_haar_with_sign_flipped(x, levels):
    return inverse_with(lambda low, high: (low - high, low + high))(x, levels)


@impostor("wavelets.inverse_haar_3d", "axes joined in the order in which they were split")
def inverse_haar_with_axes_in_the_same_order(x, levels):
    return inverse_with(join, order=(4, 3, 2))(x, levels)


@impostor("wavelets.inverse_haar_3d", "levels undone from the first: right only if all axes are equally deep")
def inverse_haar_with_levels_in_the_same_order(x, levels):
    return inverse_with(join, first=range)(x, levels)


# --- edges


def test_an_empty_batch_goes_through_and_stays_empty():
    bands = wavelets.haar_3d(torch.zeros(0, 3, 4, 4, 4), (2, 2, 2))
    assert bands.shape == (0, 192, 1, 1, 1)
    assert wavelets.inverse_haar_3d(bands, (2, 2, 2)).shape == (0, 3, 4, 4, 4)
