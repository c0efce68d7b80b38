import math

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import assume, given
from hypothesis import strategies as st

from cosmos_ref.equations import buckets
from cosmos_ref.errors import UserError
from tests.impostors import impostor
from tests.strategies import normal, seeds

# Cosmos's buckets of the larger resolution, and of the smaller, as (height, width): 1:1, 4:3, 3:4, 16:9, 9:16.
LARGE = ((960, 960), (704, 960), (960, 704), (704, 1280), (1280, 704))
SMALL = ((512, 512), (512, 640), (640, 512), (384, 640), (640, 384))
tables = st.sampled_from([LARGE, SMALL])
sides = st.integers(1, 5000)
short = st.integers(1, 9)


def padded(height, width, size):
    """Share of the frame that a clip fitted into it leaves free, before sides are rounded to pixels."""
    scale = min(size[0] / height, size[1] / width)
    return 1 - scale * height * scale * width / (size[0] * size[1])


def refused(function, *args):
    """What the user is told."""
    try:
        result = function(*args)
    except UserError as error:
        return str(error)
    raise AssertionError(f"{args} were accepted: {result}")


# --- nearest_bucket


@pytest.mark.verifies("buckets.nearest_bucket", by="point")
def test_buckets_of_six_videos():
    """Full HD, an old television, a telephone upright, a square, and two between 4:3 and 16:9."""
    videos = [(1080, 1920), (480, 640), (1920, 1080), (500, 500), (1000, 1570), (1000, 1580)]
    chosen = [buckets.nearest_bucket(*video, LARGE) for video in videos]
    # the middle of 960/704 and 1280/704 in the logarithm is their geometric mean 1.5746; the plain one is 1.5909
    assert chosen == [(704, 1280), (704, 960), (1280, 704), (960, 960), (704, 960), (704, 1280)]


@pytest.mark.verifies("buckets.nearest_bucket")
@given(sides, sides, tables)
def test_no_other_bucket_leaves_less_to_pad(height, width, sizes):
    """Why ratios are compared in the logarithm: two times too wide and two times too high waste the same half."""
    chosen = buckets.nearest_bucket(height, width, sizes)
    assert padded(height, width, chosen) <= min(padded(height, width, size) for size in sizes) + 1e-12


@pytest.mark.verifies("buckets.nearest_bucket")
@given(sides, sides, tables)
def test_a_clip_turned_upright_goes_to_the_bucket_turned_upright(height, width, sizes):
    h, w = buckets.nearest_bucket(height, width, sizes)
    turned = buckets.nearest_bucket(width, height, sizes)
    # exactly between two buckets the first of them is taken, which is not the same one when all are turned
    assert turned == (w, h) or padded(width, height, turned) == pytest.approx(padded(width, height, (w, h)), abs=1e-12)


@pytest.mark.verifies("buckets.nearest_bucket")
@given(st.integers(1, 40), st.integers(0, 4), tables)
def test_a_clip_of_a_buckets_shape_goes_there_whatever_its_size(times, index, sizes):
    h, w = sizes[index]
    assert buckets.nearest_bucket(times * h, times * w, sizes) == (h, w)


@pytest.mark.verifies("buckets.nearest_bucket", by="point")
def test_of_equally_near_buckets_the_first_is_taken():
    """A square lies between 4:3 and 3:4."""
    assert buckets.nearest_bucket(7, 7, ((704, 960), (960, 704))) == (704, 960)
    assert buckets.nearest_bucket(7, 7, ((960, 704), (704, 960))) == (960, 704)


@impostor("buckets.nearest_bucket", "ratios compared by their difference: upright buckets crowd together")
def nearest_by_difference(height, width, sizes):
    return min(sizes, key=lambda size: abs(width / height - size[1] / size[0]))


@impostor("buckets.nearest_bucket", "sizes taken as (width, height), as NVIDIA's table has them")
def nearest_of_sizes_turned(height, width, sizes):
    return min(sizes, key=lambda size: abs(math.log(width * size[1] / (height * size[0]))))


@impostor("buckets.nearest_bucket", "nominal ratios: 1280 x 704 is not 16:9")
def nearest_of_nominal_ratios(height, width, sizes):
    nominal = (1, 4 / 3, 3 / 4, 16 / 9, 9 / 16)
    ratios = {size: min(nominal, key=lambda ratio: abs(ratio - size[1] / size[0])) for size in sizes}
    return min(sizes, key=lambda size: abs(math.log(width / height / ratios[size])))


@impostor("buckets.nearest_bucket", "nearest in pixels, not in shape")
def nearest_in_pixels(height, width, sizes):
    return min(sizes, key=lambda size: abs(size[0] - height) + abs(size[1] - width))


@impostor("buckets.nearest_bucket", "logarithms as they are printed: rounding decides between equally near ones")
def nearest_in_the_logarithm(height, width, sizes):
    return min(sizes, key=lambda size: abs(math.log(width * size[0] / (height * size[1]))))


@impostor("buckets.nearest_bucket", "of equally near ones the last")
def nearest_last(height, width, sizes):
    return min(reversed(sizes), key=lambda size: abs(math.log(width * size[0] / (height * size[1]))))


# --- fit_size


@pytest.mark.verifies("buckets.fit_size", by="point")
def test_full_hd_in_its_bucket_and_an_upright_clip_in_one_that_lies():
    """1920 x 1080 by 1280 / 1920 is 1280 x 720: too high. By 704 / 1080 it is 1251.6 x 704."""
    assert buckets.fit_size(1080, 1920, 704, 1280) == (704, 1252)
    assert buckets.fit_size(1920, 1080, 704, 1280) == (704, 396)
    assert buckets.fit_size(240, 320, 704, 960) == (704, 939)  # made larger, too: 938.67
    assert buckets.fit_size(1000, 1920, 704, 1280) == (667, 1280)  # 666.67
    assert buckets.fit_size(1, 5000, 704, 1280) == (1, 1280)  # a line remains a line
    assert buckets.fit_size(5000, 1, 704, 1280) == (704, 1)


@pytest.mark.verifies("buckets.fit_size")
@given(sides, sides, sides, sides)
def test_a_fitted_clip_touches_two_sides_and_passes_none(height, width, target_height, target_width):
    h, w = buckets.fit_size(height, width, target_height, target_width)
    assert 1 <= h <= target_height and 1 <= w <= target_width
    assert h == target_height or w == target_width


@pytest.mark.verifies("buckets.fit_size")
@given(sides, sides, sides, sides)
def test_a_fitted_clip_keeps_its_shape_to_half_a_pixel(height, width, target_height, target_width):
    """The side that does not touch is where the other one's scale would have it; a line of pixels is at least one."""
    h, w = buckets.fit_size(height, width, target_height, target_width)
    wide = target_height * width > target_width * height
    side, exact = (h, height * target_width / width) if wide else (w, width * target_height / height)
    assert abs(side - max(exact, 1)) <= 0.5 + 1e-9


@pytest.mark.verifies("buckets.fit_size")
@given(sides, sides, st.integers(1, 9))
def test_a_clip_that_fits_is_left_alone(height, width, times):
    assert buckets.fit_size(times * height, times * width, height, width) == (height, width)


@impostor("buckets.fit_size", "the smallest side fitted: what is over would be cut off")
def fit_by_covering(height, width, target_height, target_width):
    scale = max(target_height / height, target_width / width)
    return max(1, round(scale * height)), max(1, round(scale * width))


@impostor("buckets.fit_size", "rounded down, as NVIDIA's other resize does: 703.9999 becomes 703")
def fit_rounded_down(height, width, target_height, target_width):
    scale = min(target_height / height, target_width / width)
    return max(1, int(scale * height)), max(1, int(scale * width))


@impostor("buckets.fit_size", "stretched, as NVIDIA's example does")
def fit_by_stretching(height, width, target_height, target_width):
    return target_height, target_width


@impostor("buckets.fit_size", "to whole latent patches of 16 pixels: what the bucket is for, not the clip")
def fit_to_patches(height, width, target_height, target_width):
    scale = min(target_height / height, target_width / width)
    return max(16, round(scale * height / 16) * 16), max(16, round(scale * width / 16) * 16)


@impostor("buckets.fit_size", "never made larger")
def fit_only_smaller(height, width, target_height, target_width):
    scale = min(1, target_height / height, target_width / width)
    return max(1, round(scale * height)), max(1, round(scale * width))


@impostor("buckets.fit_size", "a line so thin that no pixel is left of it")
def fit_to_nothing(height, width, target_height, target_width):
    if target_height * width > target_width * height:
        return (2 * height * target_width + width) // (2 * width), target_width
    return target_height, (2 * width * target_height + height) // (2 * height)


# --- reflected_index


@pytest.mark.verifies("buckets.reflected_index", by="point")
def test_a_line_of_three_padded_by_two_by_one_by_three_and_by_six():
    """abc mirrored about its first and its last pixel is cb|abc|ba: neither of the two is repeated."""
    lines = [buckets.reflected_index(3, target).tolist() for target in (3, 4, 5, 7, 8, 9)]
    assert lines == [
        [0, 1, 2],
        [0, 1, 2, 1],
        [1, 0, 1, 2, 1],
        [2, 1, 0, 1, 2, 1, 0],
        [0, 0, 0, 1, 2, 2, 2, 2],  # three on the right: there are only two to mirror
        [0, 0, 0, 0, 1, 2, 2, 2, 2],
    ]


@pytest.mark.verifies("buckets.reflected_index")
@given(short, st.integers(0, 20))
def test_a_line_stands_whole_in_the_middle(size, more):
    """The odd place is on the right."""
    index = buckets.reflected_index(size, size + more).tolist()
    before = more // 2
    assert index[before : before + size] == list(range(size))
    assert len(index) == size + more


@pytest.mark.verifies("buckets.reflected_index")
@given(short, st.integers(0, 20))
def test_padding_is_pytorchs_reflection_where_that_is_possible_and_its_edge_where_not(size, more):
    before, after = more // 2, more - more // 2
    line = torch.arange(size, dtype=torch.float64)[None, None]
    expected = nnf.pad(line, (before, after), mode="reflect" if after < size else "replicate")
    assert buckets.reflected_index(size, size + more).tolist() == expected.flatten().tolist()


@pytest.mark.verifies("buckets.reflected_index")
@given(st.integers(-2, 9), st.integers(-2, 9))
def test_a_line_that_is_longer_than_its_place_or_empty_is_refused(size, target):
    assume(not 0 < size <= target)
    told = refused(buckets.reflected_index, size, target)
    assert f"{size} pixels cannot be padded to {target}: give at least 1 and at most {target}" in told


def reflected_index_with(size, target, before=None, mirror=None):
    """The index with one part exchanged."""
    if not 0 < size <= target:
        raise UserError(f"{size} pixels cannot be padded to {target}: give at least 1 and at most {target}")
    before = (target - size) // 2 if before is None else before
    place = torch.arange(target) - before
    if max(before, target - size - before) >= size:
        return place.clamp(0, size - 1)
    return mirror(place) if mirror else size - 1 - (size - 1 - place.abs()).abs()


@impostor("buckets.reflected_index", "the pixel at the border repeated (symmetric padding)")
def index_with_the_border_repeated(size, target):
    return reflected_index_with(
        size, target, mirror=lambda i: torch.where(i < 0, -1 - i, torch.where(i < size, i, 2 * size - 1 - i))
    )


@impostor("buckets.reflected_index", "all of the padding behind")
def index_with_the_padding_behind(size, target):
    return reflected_index_with(size, target, before=0)


@impostor("buckets.reflected_index", "the odd place in front")
def index_with_the_odd_place_in_front(size, target):
    return reflected_index_with(size, target, before=(target - size + 1) // 2)


@impostor("buckets.reflected_index", "the other end continued, as on a ring")
def index_on_a_ring(size, target):
    return reflected_index_with(size, target, mirror=lambda i: i % size)


@impostor("buckets.reflected_index", "the border everywhere")
def index_of_the_border(size, target):
    return reflected_index_with(size, target, mirror=lambda i: i.clamp(0, size - 1))


@impostor("buckets.reflected_index", "mirrored again and again where one mirror image is too short")
def index_mirrored_again(size, target):
    period = max(1, 2 * (size - 1))
    i = (torch.arange(target) - (target - size) // 2) % period
    return torch.minimum(i, period - i) if size > 1 else torch.zeros(max(target, 0), dtype=torch.long)


# --- reflection_padding


@pytest.mark.verifies("buckets.reflection_padding", by="point")
def test_a_frame_of_four_pixels_in_one_of_four_by_three():
    """Two rows become four: 3 | 1 3 | 1 where the first column is 1 over 3. Two columns become three: 1 2 | 1."""
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert buckets.reflection_padding(x, 4, 3).tolist() == [[3, 4, 3], [1, 2, 1], [3, 4, 3], [1, 2, 1]]


@pytest.mark.verifies("buckets.reflection_padding")
@given(short, short, st.integers(0, 8), st.integers(0, 8), seeds)
def test_padding_of_rows_and_of_columns_do_not_know_of_each_other(h, w, more, wider, seed):
    x = normal(seed, 2, 3, h, w)
    both = buckets.reflection_padding(x, h + more, w + wider)
    in_turn = buckets.reflection_padding(buckets.reflection_padding(x, h, w + wider), h + more, w + wider)
    turned = buckets.reflection_padding(x.mT, w + wider, h + more).mT
    torch.testing.assert_close(in_turn, both, rtol=0, atol=0)
    torch.testing.assert_close(turned, both, rtol=0, atol=0)


@pytest.mark.verifies("buckets.reflection_padding")
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 1), st.integers(0, 1), seeds)
def test_padding_is_pytorchs_on_whole_videos(h, w, more, wider, seed):
    """Two pixels a side at most, of at least three: PyTorch reflects them."""
    h, w, x = h + 1, w + 1, normal(seed, 1, 3, 2, h + 1, w + 1)
    expected = nnf.pad(x, (wider, wider + 1, more, more + 1, 0, 0), mode="reflect")
    torch.testing.assert_close(
        buckets.reflection_padding(x, h + 2 * more + 1, w + 2 * wider + 1), expected, rtol=0, atol=0
    )


@pytest.mark.verifies("buckets.reflection_padding")
@given(short, short, st.integers(0, 8), st.integers(0, 8), seeds)
def test_real_pixels_are_where_the_mask_says(h, w, more, wider, seed):
    """And the two of them, put together, hold the frame and nothing else."""
    x = normal(seed, 3, h, w)
    padded = buckets.reflection_padding(x, h + more, w + wider)
    real = buckets.padding_mask(h, w, h + more, w + wider)[0] == 0
    assert padded.shape[1:] == real.shape
    torch.testing.assert_close(padded[:, real], x.flatten(1), rtol=0, atol=0)


@impostor("buckets.reflection_padding", "height and width changed round")
def padding_with_sides_changed(x, height, width):
    return nnf.pad(x, (0, max(0, height - x.shape[-1]), 0, max(0, width - x.shape[-2])))


@impostor("buckets.reflection_padding", "black")
def padding_with_zeros(x, height, width):
    top, left = (height - x.shape[-2]) // 2, (width - x.shape[-1]) // 2
    return nnf.pad(x, (left, width - x.shape[-1] - left, top, height - x.shape[-2] - top))


@impostor(
    "buckets.reflection_padding", "edges for both where one cannot be reflected, as NVIDIA has it (and pads only one)"
)
def padding_with_edges_for_both(x, height, width):
    rows, columns = (buckets.reflected_index(*n) for n in ((x.shape[-2], height), (x.shape[-1], width)))
    top, left = (height - x.shape[-2]) // 2, (width - x.shape[-1]) // 2
    if height - x.shape[-2] - top >= x.shape[-2] or width - x.shape[-1] - left >= x.shape[-1]:
        rows = (torch.arange(height) - top).clamp(0, x.shape[-2] - 1)
        columns = (torch.arange(width) - left).clamp(0, x.shape[-1] - 1)
    return x[..., rows, :][..., columns]


@impostor("buckets.reflection_padding", "at the top left instead of in the middle")
def padding_behind(x, height, width):
    rows = reflected_index_with(x.shape[-2], height, before=0)
    return x[..., rows, :][..., reflected_index_with(x.shape[-1], width, before=0)]


# --- padding_mask


@pytest.mark.verifies("buckets.padding_mask", by="point")
def test_the_mask_of_one_pixel_in_two_rows_of_three():
    assert buckets.padding_mask(1, 1, 2, 3).tolist() == [[[1, 0, 1], [1, 1, 1]]]


@pytest.mark.verifies("buckets.padding_mask")
@given(short, short, st.integers(0, 8), st.integers(0, 8))
def test_as_many_pixels_are_real_as_the_clip_has(h, w, more, wider):
    mask = buckets.padding_mask(h, w, h + more, w + wider)
    assert mask.shape == (1, h + more, w + wider)
    assert (1 - mask).sum() == h * w and set(mask.unique().tolist()) <= {0, 1}


@pytest.mark.verifies("buckets.padding_mask")
@given(short, short, st.integers(0, 4), st.integers(0, 4))
def test_real_pixels_are_a_rectangle_in_the_middle(h, w, more, wider):
    """As much of the frame above as below, and to the left as to the right."""
    mask = buckets.padding_mask(h, w, h + 2 * more, w + 2 * wider)
    torch.testing.assert_close(mask.flip(1, 2), mask, rtol=0, atol=0)
    rows, columns = mask[0].amin(1, keepdim=True), mask[0].amin(0, keepdim=True)
    torch.testing.assert_close(mask[0], torch.maximum(rows, columns), rtol=0, atol=0)


@impostor("buckets.padding_mask", "1 on real pixels")
def mask_of_real_pixels(height, width, target_height, target_width):
    return 1 - mask_at(height, width, target_height, target_width)


@impostor("buckets.padding_mask", "at the top left instead of in the middle")
def mask_at_the_corner(height, width, target_height, target_width):
    return mask_at(height, width, target_height, target_width, 0, 0)


@impostor("buckets.padding_mask", "nothing padded")
def mask_of_nothing(height, width, target_height, target_width):
    return torch.zeros(1, target_height, target_width)


@impostor("buckets.padding_mask", "the odd line above and to the left")
def mask_with_the_odd_line_in_front(height, width, target_height, target_width):
    top, left = (target_height - height + 1) // 2, (target_width - width + 1) // 2
    return mask_at(height, width, target_height, target_width, top, left)


def mask_at(height, width, target_height, target_width, top=None, left=None):
    top = (target_height - height) // 2 if top is None else top
    left = (target_width - width) // 2 if left is None else left
    mask = torch.ones(1, target_height, target_width)
    mask[:, top : top + height, left : left + width] = 0
    return mask
