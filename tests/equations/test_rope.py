import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import rope
from tests.impostors import impostor
from tests.strategies import normal, seeds

# Exact to double precision, but for angles: 1e-16 relative on an angle of a few hundred.
EXACT = dict(rtol=1e-12, atol=1e-12)
dims = st.integers(2, 32).map(lambda half: 2 * half)
ratios = st.floats(1, 8)
head_dims = st.sampled_from([12, 16, 24, 32, 64, 128])
frame_rates = st.floats(1, 120).map(lambda fps: torch.tensor([fps], dtype=torch.float64))
indices = st.integers(0, 100)
places = st.lists(st.tuples(indices, indices, indices), min_size=2, max_size=6).map(torch.tensor)

SCALES = (2.0, 1.0, 3.0)  # a different ratio for each axis, so that none can stand in for another


def angles_at(positions, fps, head_dim=16):
    return rope.angles_3d(positions, fps, head_dim, SCALES, base=10000.0, base_fps=24.0)


def rotated(x, angles):
    return rope.rotate(x, angles.cos(), angles.sin())


# --- axis_dims


@pytest.mark.verifies("rope.axis_dims", by="point")
def test_axis_dims_of_the_7b_and_of_smaller_heads():
    assert rope.axis_dims(128) == (44, 42, 42)
    assert rope.axis_dims(64) == (24, 20, 20)
    assert rope.axis_dims(32) == (12, 10, 10)


@pytest.mark.verifies("rope.axis_dims")
@given(st.integers(6, 128).map(lambda half: 2 * half))
def test_axes_share_the_head_in_pairs_and_time_takes_what_is_left(head_dim):
    t, h, w = rope.axis_dims(head_dim)
    assert t + h + w == head_dim
    assert all(dim % 2 == 0 for dim in (t, h, w))
    assert h == w and 0 <= t - h <= 4


@impostor("rope.axis_dims", "spatial axes first: the remainder falls to the width")
def axis_dims_with_space_first(head_dim):
    third = head_dim // 6 * 2
    return third, third, head_dim - 2 * third


@impostor("rope.axis_dims", "plain thirds, odd ones among them")
def axis_dims_in_plain_thirds(head_dim):
    return head_dim - 2 * (head_dim // 3), head_dim // 3, head_dim // 3


@impostor("rope.axis_dims", "half for time, a quarter for each axis of space")
def axis_dims_with_half_for_time(head_dim):
    return head_dim // 2, head_dim // 4, head_dim // 4


# --- ntk_frequencies


@pytest.mark.verifies("rope.ntk_frequencies", by="point")
def test_ntk_stretches_the_base_by_the_known_factors():
    """Ratio 2: the base grows 2.067116-fold over 44 channels, 2.070530-fold over 42."""
    for dim, factor in ((44, 2.067116), (42, 2.070530)):
        base = rope.ntk_frequencies(dim, 2.0, 10000.0, torch.float64)[1].item() ** (-dim / 2)
        assert abs(base / 10000 - factor) < 6e-7  # six decimals are known


@pytest.mark.verifies("rope.ntk_frequencies", by="point")
def test_ntk_frequencies_of_four_channels():
    """Base 100, ratio 3: the base becomes 100 * 3^(4/2) = 900, and two frequencies are 1 and 900^(-1/2)."""
    frequencies = rope.ntk_frequencies(4, 3.0, 100.0, torch.float64)
    torch.testing.assert_close(frequencies, frequencies.new_tensor([1, 1 / 30]), **EXACT)


@pytest.mark.verifies("rope.ntk_frequencies")
@given(dims, ratios, st.floats(100, 1e5))
def test_the_longest_wavelength_is_stretched_by_exactly_the_ratio(dim, ratio, base):
    slowest = rope.ntk_frequencies(dim, ratio, base, torch.float64)[-1].item()
    assert math.isclose(slowest * ratio, base ** -((dim - 2) / dim), rel_tol=1e-12)


@pytest.mark.verifies("rope.ntk_frequencies")
@given(dims, ratios, st.floats(100, 1e5))
def test_the_shortest_wavelength_stays_and_the_others_form_a_geometric_series(dim, ratio, base):
    frequencies = rope.ntk_frequencies(dim, ratio, base, torch.float64)
    assert frequencies.shape == (dim // 2,) and frequencies[0] == 1
    torch.testing.assert_close(frequencies, frequencies[1] ** torch.arange(dim // 2), **EXACT)


@impostor("rope.ntk_frequencies", "exponent d / (d - 2) forgotten")
def ntk_without_exponent(dim, ratio, base, dtype):
    return (base * ratio) ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


@impostor("rope.ntk_frequencies", "exponent d in place of d / (d - 2)")
def ntk_with_exponent_d(dim, ratio, base, dtype):
    return (base * ratio**dim) ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


@impostor("rope.ntk_frequencies", "position interpolation: every wavelength stretched")
def ntk_is_interpolation(dim, ratio, base, dtype):
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim) / ratio


@pytest.mark.verifies("rope.ntk_frequencies")
@given(dims, ratios, st.floats(100, 1e5))
def test_bfloat16_rounds_the_exponents_before_they_are_used(dim, ratio, base):
    """NVIDIA's buffers hold 2 i / d in bfloat16: up to 2^-9 off, which the power turns into 2 % of a frequency."""
    exponents = torch.tensor([2 * i / dim for i in range(dim // 2)], dtype=torch.float64).bfloat16().double()
    frequencies = rope.ntk_frequencies(dim, ratio, base, torch.bfloat16)
    powers = -frequencies.double().log() / math.log(base * ratio ** (dim / (dim - 2)))
    torch.testing.assert_close(powers, exponents, rtol=0, atol=2e-3)  # a frequency rounded to bfloat16 itself
    assert torch.equal(
        rope.ntk_frequencies(dim, ratio, base, torch.float32), rope.ntk_frequencies(dim, ratio, base, torch.float64)
    )


@impostor("rope.ntk_frequencies", "i / d where 2 i / d belongs")
def ntk_with_half_the_exponent(dim, ratio, base, dtype):
    return (base * ratio ** (dim / (dim - 2))) ** (-torch.arange(dim // 2, dtype=torch.float64) / dim)


@impostor("rope.ntk_frequencies", "the whole head's 128 channels where the axis' own belong")
def ntk_of_the_whole_head(dim, ratio, base, dtype):
    return (base * ratio ** (128 / 126)) ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


@impostor("rope.ntk_frequencies", "the stretched factor outside the power")
def ntk_with_the_factor_outside(dim, ratio, base, dtype):
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim) / ratio ** (dim / (dim - 2))


@impostor("rope.ntk_frequencies", "powers taken in float32, as most code does")
def ntk_in_float32(dim, ratio, base, dtype):
    theta = torch.tensor(base * ratio ** (dim / (dim - 2)), dtype=torch.float32)
    return (1 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)).double()


@impostor("rope.ntk_frequencies", "exponents rounded to bfloat16 whatever the precision")
def ntk_always_in_bfloat16(dim, ratio, base, dtype):
    exponents = (torch.arange(0, dim, 2) / dim).bfloat16().double()
    return (base * ratio ** (dim / (dim - 2))) ** -exponents


# --- angles_3d


@pytest.mark.verifies("rope.angles_3d", by="point")
def test_angles_of_one_token():
    """12 channels, two frequencies an axis, base 100: 1 and 1 / (10 ratio). At 30 fps latent frame 5 is at 4."""
    angles = rope.angles_3d(
        torch.tensor([[5, 2, 3]]),
        torch.tensor([30.0], dtype=torch.float64),
        12,
        (2.0, 1.0, 4.0),
        base=100.0,
        base_fps=24.0,
    )
    half = [4, 4 / 20, 2, 2 / 10, 3, 3 / 40]
    torch.testing.assert_close(angles, angles.new_tensor([[half + half]]), **EXACT)


def each_axis_alone(sizes):
    """Positions along one axis after the other, the other two at 0."""
    rows = [torch.eye(3, dtype=torch.long)[axis] * i for axis, size in enumerate(sizes) for i in range(size)]
    return torch.stack(rows)


@pytest.mark.verifies("rope.angles_3d", "rope.ntk_frequencies", by="point")
def test_angles_in_bfloat16_are_off_by_0_15_rad_on_the_width_of_720p():
    """7B at 704x1280 and 121 frames: 0.026 rad on t, 0.074 on h, 0.148 on w, against float64 and against float32."""
    positions = each_axis_alone((16, 44, 80))
    fps = torch.tensor([24.0])
    half, single, double = (
        rope.angles_3d(positions, rate, 128, (2.0, 1.0, 1.0), 10000.0, 24.0)[0, :, :64].double()
        for rate in (fps.bfloat16(), fps, fps.double())
    )
    errors = [part.max().item() for part in (half - double).abs().split([22, 21, 21], dim=1)]
    assert errors == pytest.approx([0.0255, 0.0740, 0.1481], abs=1e-4)
    assert (single - double).abs().max() < 5e-6  # half a unit in the last place of an angle of 79, and a little


@pytest.mark.verifies("rope.angles_3d", "rope.ntk_frequencies")
@given(st.integers(0, 2), st.integers(1, 2**24), frame_rates, head_dims)
def test_float32_angles_are_right_to_four_roundings_however_far_away(axis, index, fps, head_dim):
    """Of t / f, of its product with 24, of the frequency, of the angle: 2^-24 each. (At 16 million the angle itself is
    then known to half a turn only: positions are small integers, and it is in radians that they are rounded.)"""
    fps, dims = fps.float(), rope.axis_dims(head_dim)
    angles = angles_at(index * torch.eye(3, dtype=torch.long)[axis : axis + 1], fps, head_dim)[0, 0]
    dim, start, position = dims[axis], sum(dims[:axis]) // 2, index * (24 / fps.item() if axis == 0 else 1)
    base = 10000 * SCALES[axis] ** (dim / (dim - 2))
    expected = [position * base ** (-2 * i / dim) for i in range(dim // 2)]
    assert angles.dtype == torch.float32
    found = angles[start : start + dim // 2].double()
    torch.testing.assert_close(found, found.new_tensor(expected), rtol=2.4e-7, atol=0)


@pytest.mark.verifies("rope.angles_3d")
@given(places, head_dims)
def test_at_24_frames_a_second_a_position_is_the_index_itself(positions, head_dim):
    """Not the second, not the frame of the video: latent frame 1 is one step from latent frame 0, as a pixel is."""
    angles = angles_at(positions, torch.tensor([24.0], dtype=torch.float64), head_dim)
    pairs = [dim // 2 for dim in rope.axis_dims(head_dim)]
    first_of_each_axis = [0, pairs[0], pairs[0] + pairs[1]]  # its frequency is 1
    torch.testing.assert_close(angles[0][:, first_of_each_axis], positions.double(), **EXACT)


@pytest.mark.verifies("rope.angles_3d")
def test_a_ratio_too_few_or_too_many_is_refused():
    for ratios in ((1.0, 1.0), (1.0, 1.0, 1.0, 1.0)):
        try:
            rope.angles_3d(torch.zeros(1, 3, dtype=torch.long), torch.ones(1), 16, ratios, 10000.0, 24.0)
        except ValueError:
            continue
        raise AssertionError(f"{len(ratios)} ratios were accepted")


@pytest.mark.verifies("rope.angles_3d")
@given(st.integers(0, 20), indices, indices, head_dims)
def test_frame_5k_at_30_fps_stands_where_frame_4k_stands_at_24(k, h, w, head_dim):
    """Both are at the same second."""
    thirty, twenty_four = torch.tensor([[30.0], [24.0]], dtype=torch.float64)
    fast = angles_at(torch.tensor([[5 * k, h, w]]), thirty, head_dim)
    slow = angles_at(torch.tensor([[4 * k, h, w]]), twenty_four, head_dim)
    torch.testing.assert_close(fast, slow, **EXACT)


@pytest.mark.verifies("rope.angles_3d")
@given(places, frame_rates, frame_rates, head_dims)
def test_each_sample_has_its_own_frame_rate(positions, a, b, head_dim):
    both = angles_at(positions, torch.cat([a, b]), head_dim)
    alone = torch.cat([angles_at(positions, a, head_dim), angles_at(positions, b, head_dim)])
    torch.testing.assert_close(both, alone, **EXACT)


@pytest.mark.verifies("rope.angles_3d")
@given(indices, indices, frame_rates, frame_rates, head_dims)
def test_a_single_frame_does_not_know_the_frame_rate(h, w, a, b, head_dim):
    """So an image needs no case of its own."""
    image = torch.tensor([[0, h, w]])
    torch.testing.assert_close(angles_at(image, a, head_dim), angles_at(image, b, head_dim), **EXACT)


@pytest.mark.verifies("rope.angles_3d")
@given(st.integers(1, 100), st.integers(0, 2), frame_rates, head_dims)
def test_each_axis_turns_its_own_channels_in_both_halves(distance, axis, fps, head_dim):
    position = torch.zeros(1, 3, dtype=torch.long)
    position[0, axis] = distance
    turned = angles_at(position, fps, head_dim)[0, 0] != 0
    pairs = [dim // 2 for dim in rope.axis_dims(head_dim)]
    expected = torch.repeat_interleave(torch.arange(3), torch.tensor(pairs)) == axis
    assert torch.equal(turned, torch.cat([expected, expected]))


def angles_of(t, h, w, head_dim, ratios, base):
    """Angles `B L K/2` of coordinates `B L`, axes in the order t, h, w."""
    dims = rope.axis_dims(head_dim)
    frequencies = [rope.ntk_frequencies(dim, r, base, torch.float64) for dim, r in zip(dims, ratios, strict=True)]
    return [x[..., None] * f for x, f in zip((t, h, w), frequencies, strict=True)]


def coordinates(positions, fps, scale):
    """Coordinates `B L` of each axis, time scaled per sample."""
    t, h, w = positions.to(fps).expand(len(fps), -1, -1).unbind(-1)
    return t * scale[:, None], h, w


@impostor("rope.angles_3d", "axes in the order h, w, t")
def angles_in_the_order_h_w_t(positions, fps, head_dim, ratios, base, base_fps):
    t, h, w = angles_of(*coordinates(positions, fps, base_fps / fps), head_dim, ratios, base)
    return torch.cat([h, w, t] * 2, dim=-1)


@impostor("rope.angles_3d", "frame rate upside down")
def angles_with_fps_inverted(positions, fps, head_dim, ratios, base, base_fps):
    angles = angles_of(*coordinates(positions, fps, fps / base_fps), head_dim, ratios, base)
    return torch.cat(angles * 2, dim=-1)


@impostor("rope.angles_3d", "the first sample's frame rate for all, as NVIDIA's code has it")
def angles_with_the_first_fps(positions, fps, head_dim, ratios, base, base_fps):
    angles = angles_of(*coordinates(positions, fps, (base_fps / fps[:1]).expand(len(fps))), head_dim, ratios, base)
    return torch.cat(angles * 2, dim=-1)


@impostor("rope.angles_3d", "frame rate forgotten")
def angles_without_fps(positions, fps, head_dim, ratios, base, base_fps):
    angles = angles_of(*coordinates(positions, fps, torch.ones_like(fps)), head_dim, ratios, base)
    return torch.cat(angles * 2, dim=-1)


@impostor("rope.angles_3d", "every angle twice in a row, the layout of neighbouring channels")
def angles_for_neighbours(positions, fps, head_dim, ratios, base, base_fps):
    angles = angles_of(*coordinates(positions, fps, base_fps / fps), head_dim, ratios, base)
    return torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)


@impostor("rope.angles_3d", "frame times that start at the first frame's duration, not at zero")
def angles_from_frame_one(positions, fps, head_dim, ratios, base, base_fps):
    t, h, w = coordinates(positions, fps, base_fps / fps)
    angles = angles_of(t + (base_fps / fps)[:, None], h, w, head_dim, ratios, base)
    return torch.cat(angles * 2, dim=-1)


@impostor("rope.angles_3d", "ratios read as (h, w, t)")
def angles_with_ratios_out_of_order(positions, fps, head_dim, ratios, base, base_fps):
    angles = angles_of(*coordinates(positions, fps, base_fps / fps), head_dim, (ratios[-1], *ratios[:-1]), base)
    return torch.cat(angles * 2, dim=-1)


@impostor("rope.angles_3d", "frames of the video, eight to a latent one")
def angles_of_video_frames(positions, fps, head_dim, ratios, base, base_fps):
    angles = angles_of(*coordinates(positions, fps, 8 * base_fps / fps), head_dim, ratios, base)
    return torch.cat(angles * 2, dim=-1)


@impostor("rope.angles_3d", "seconds: the base rate forgotten")
def angles_of_seconds(positions, fps, head_dim, ratios, base, base_fps):
    angles = angles_of(*coordinates(positions, fps, 1 / fps), head_dim, ratios, base)
    return torch.cat(angles * 2, dim=-1)


@impostor("rope.angles_3d", "frequencies of the whole head, dealt out to the axes")
def angles_with_frequencies_of_the_head(positions, fps, head_dim, ratios, base, base_fps):
    pairs = [dim // 2 for dim in rope.axis_dims(head_dim)]
    axes = zip(coordinates(positions, fps, base_fps / fps), ratios, pairs, strict=True)
    angles = [x[..., None] * rope.ntk_frequencies(head_dim, r, base, torch.float64)[:n] for x, r, n in axes]
    return torch.cat(angles * 2, dim=-1)


@impostor("rope.angles_3d", "products in float32 whatever the precision asked for")
def angles_in_float32(positions, fps, head_dim, ratios, base, base_fps):
    angles = angles_of(*coordinates(positions, fps, base_fps / fps), head_dim, ratios, base)
    return torch.cat(angles * 2, dim=-1).float().to(fps)


@impostor("rope.angles_3d", "a ratio that is missing drops its axis")
def angles_of_the_axes_that_have_a_ratio(positions, fps, head_dim, ratios, base, base_fps):
    axes = zip(coordinates(positions, fps, base_fps / fps), rope.axis_dims(head_dim), ratios, strict=False)
    angles = [x[..., None] * rope.ntk_frequencies(dim, r, base, torch.float64) for x, dim, r in axes]
    return torch.cat(angles * 2, dim=-1)


# --- rotate


@pytest.mark.verifies("rope.rotate", by="point")
def test_a_quarter_turn_carries_the_first_half_into_the_second():
    x = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64).reshape(1, 1, 1, 4)
    zero, one = torch.zeros(1, 1, 4, dtype=torch.float64), torch.ones(1, 1, 4, dtype=torch.float64)
    assert rope.rotate(x, zero, one).flatten().tolist() == [-3, -4, 1, 2]


@pytest.mark.verifies("rope.rotate")
@given(places, frame_rates, head_dims, seeds)
def test_rotation_keeps_lengths(positions, fps, head_dim, seed):
    x = normal(seed, 1, 2, len(positions), head_dim)
    turned = rotated(x, angles_at(positions, fps, head_dim))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), **EXACT)


@pytest.mark.verifies("rope.rotate")
@given(places, places, frame_rates, seeds)
def test_two_rotations_are_the_rotation_by_the_sum(positions, others, fps, seed):
    count = min(len(positions), len(others))
    a, b = angles_at(positions[:count], fps), angles_at(others[:count], fps)
    x = normal(seed, 1, 2, count, 16)
    torch.testing.assert_close(rotated(rotated(x, a), b), rotated(x, a + b), **EXACT)


@pytest.mark.verifies("rope.rotate", "rope.angles_3d")
@given(places, st.tuples(indices, indices, indices), frame_rates, head_dims, seeds)
def test_attention_scores_depend_only_on_relative_positions(positions, shift, fps, head_dim, seed):
    q, k = normal(seed, 2, 1, 2, len(positions), head_dim)

    def scores(positions):
        angles = angles_at(positions, fps, head_dim)
        return rotated(q, angles) @ rotated(k, angles).mT

    # at 1 fps a shift of 100 frames is an angle of 2400, known to 5e-13; 128 products add up
    moved = scores(positions + torch.tensor(shift))
    torch.testing.assert_close(moved, scores(positions), rtol=0, atol=1e-9)


@pytest.mark.verifies("rope.rotate")
@given(places, frame_rates, head_dims, seeds, st.sampled_from([torch.float16, torch.bfloat16]))
def test_queries_in_half_precision_are_turned_in_the_precision_of_the_angles(positions, fps, head_dim, seed, dtype):
    x = normal(seed, 1, 2, len(positions), head_dim).to(dtype)
    angles = angles_at(positions, fps, head_dim).float()
    turned, expected = rotated(x, angles), rotated(x.float(), angles)
    assert turned.dtype == torch.float32
    torch.testing.assert_close(turned, expected, rtol=0, atol=0)


@pytest.mark.verifies("rope.rotate")
@given(places, frame_rates, frame_rates, seeds)
def test_all_heads_turn_alike_and_every_sample_by_its_own_angles(positions, a, b, seed):
    x = normal(seed, 2, 3, len(positions), 16)
    angles = angles_at(positions, torch.cat([a, b]))
    one_by_one = [rotated(x[i : i + 1, n : n + 1], angles[i : i + 1]) for i in range(2) for n in range(3)]
    torch.testing.assert_close(rotated(x, angles).flatten(0, 1), torch.cat(one_by_one)[:, 0], **EXACT)


@impostor("rope.rotate", "neighbouring channels paired, the original RoFormer's layout")
def rotate_neighbours(x, cos, sin):
    partner = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos[:, None] + partner * sin[:, None]


@impostor("rope.rotate", "turned the other way round")
def rotate_backwards(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([second, -first], dim=-1) * sin[:, None]


@impostor("rope.rotate", "the minus sign forgotten: a hyperbolic turn")
def rotate_without_minus(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([second, first], dim=-1) * sin[:, None]


@impostor("rope.rotate", "tables brought to the precision of the queries")
def rotate_in_the_precision_of_x(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x)[:, None] + torch.cat([-second, first], dim=-1) * sin.to(x)[:, None]


@impostor("rope.rotate", "the first sample's angles for the whole batch")
def rotate_by_the_first_sample(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos[:1, None] + torch.cat([-second, first], dim=-1) * sin[:1, None]


# --- edges


def test_an_empty_batch_or_no_token_at_all_goes_through():
    fps, positions = torch.tensor([24.0]), torch.tensor([[1, 2, 3]])
    assert angles_at(positions, fps[:0]).shape == (0, 1, 16)
    assert angles_at(positions[:0], fps).shape == (1, 0, 16)
    assert rotated(torch.zeros(0, 2, 1, 16), angles_at(positions, fps[:0])).shape == (0, 2, 1, 16)
