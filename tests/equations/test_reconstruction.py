import itertools
import math

import pytest
import torch
from einops import rearrange, repeat
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import reconstruction
from tests.impostors import impostor
from tests.strategies import normal, seeds

weights = st.lists(st.floats(0.1, 3), min_size=2, max_size=2)
ROUNDING = 1e-12  # float64, numbers of order one


def layers(seed: int) -> list[torch.Tensor]:
    """Features of two layers that differ in channels and size."""
    return [normal(seed, 2, 3, 4, 5), normal(seed + 1, 2, 6, 2, 3)]


def close(a, b, atol=ROUNDING):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype).expand_as(a), rtol=1e-9, atol=atol)


# --- absolute_error


@pytest.mark.verifies("reconstruction.absolute_error", by="point")
def test_absolute_error_of_three_pixels():
    """Errors of 1, -2 and 0: their magnitudes have the mean 1, their squares 5/3."""
    a = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    close(reconstruction.absolute_error(a, torch.tensor([0.0, 2.0, 0.5], dtype=torch.float64)), 1.0)


@pytest.mark.verifies("reconstruction.absolute_error")
@given(seeds, st.floats(0.01, 100))
def test_an_error_many_times_as_large_counts_as_many_times(seed, factor):
    a, e = normal(seed, 3, 4), normal(seed + 1, 3, 4)
    once, often = (reconstruction.absolute_error(a, a + k * e) for k in (1.0, factor))
    close(often, factor * once, atol=1e-9)


@pytest.mark.verifies("reconstruction.absolute_error")
@given(seeds)
def test_one_outlier_does_not_move_the_grey_that_is_nearest_to_all(seed):
    """The best constant is the median, not the mean: there as many pixels pull up as down."""
    pixels = normal(seed, 9)
    pixels[0] = 1000.0
    constant = pixels.median().clone().requires_grad_()
    reconstruction.absolute_error(constant.expand(9), pixels).backward()
    assert constant.grad is not None and abs(constant.grad) < ROUNDING


@pytest.mark.verifies("reconstruction.absolute_error")
@given(seeds, st.integers(2, 5))
def test_a_larger_picture_of_the_same_error_costs_the_same(seed, times):
    a, b = normal(seed, 3, 4), normal(seed + 1, 3, 4)
    close(reconstruction.absolute_error(a.repeat(times, 1), b.repeat(times, 1)), reconstruction.absolute_error(a, b))


@impostor("reconstruction.absolute_error", "the mean square: reconstructions turn out blurred")
def mean_square(a, b):
    return ((a - b) ** 2).mean()


@impostor("reconstruction.absolute_error", "the sum: its weight beside the other losses depends on the crop")
def sum_of_magnitudes(a, b):
    return (a - b).abs().sum()


@impostor("reconstruction.absolute_error", "the root of the mean square, which also grows with the error")
def root_mean_square(a, b):
    return ((a - b) ** 2).mean().sqrt()


@impostor("reconstruction.absolute_error", "magnitudes forgotten: errors up and down cancel")
def mean_difference(a, b):
    return (a - b).mean().abs()


# --- perceptual_distance


@pytest.mark.verifies("reconstruction.perceptual_distance", by="point")
def test_perceptual_distance_of_two_layers():
    """Layers whose mean differences are 1 and 2, with weights 0.5 and 10: 0.5 + 20."""
    zeros = [torch.zeros(1, 2, 2, dtype=torch.float64), torch.zeros(1, 1, 2, dtype=torch.float64)]
    others = [torch.tensor([[[2.0, -2.0], [0.0, 0.0]]]).double(), torch.tensor([[[1.0, -3.0]]]).double()]
    close(reconstruction.perceptual_distance(zeros, others, (0.5, 10.0)), 20.5)


@pytest.mark.verifies("reconstruction.perceptual_distance")
@given(seeds, weights)
def test_layers_count_by_their_weights_whatever_their_size(seed, w):
    """An error of one everywhere in a layer costs the layer's weight."""
    a = layers(seed)
    for k in range(2):
        b = [x + (j == k) for j, x in enumerate(a)]
        close(reconstruction.perceptual_distance(a, b, w), w[k])


@pytest.mark.verifies("reconstruction.perceptual_distance")
@given(seeds, weights, st.floats(0.1, 10))
def test_perceptual_distance_grows_in_proportion_to_the_features(seed, w, factor):
    """Also where all of them grow: a contrast that is twice as strong is seen twice as strongly."""
    a, b = layers(seed), layers(seed + 2)
    stronger = [[factor * x for x in features] for features in (a, b)]
    close(reconstruction.perceptual_distance(*stronger, w), factor * reconstruction.perceptual_distance(a, b, w), 1e-9)


@pytest.mark.verifies("reconstruction.perceptual_distance", "reconstruction.gram_distance")
@given(seeds, weights)
def test_a_layer_without_a_weight_or_a_partner_is_not_left_out_in_silence(seed, w):
    a, b = layers(seed), layers(seed + 2)
    for distance in (reconstruction.perceptual_distance, reconstruction.gram_distance):
        for arguments in ((a, b, w[:1]), (a, b[:1], w), (a[:1], b, w)):
            assert refused(distance, *arguments)


def refused(function, *arguments) -> bool:
    try:
        function(*arguments)
    except ValueError:
        return True
    return False


@impostor("reconstruction.perceptual_distance", "as many layers as there are weights: those after them are forgotten")
def perceptual_of_some_layers(a, b, weights):
    return sum(w * (x - y).abs().mean() for x, y, w in zip(a, b, weights, strict=False))


@impostor("reconstruction.perceptual_distance", "squares, as LPIPS has them")
def perceptual_squares(a, b, weights):
    return sum(w * ((x - y) ** 2).mean() for x, y, w in zip(a, b, weights, strict=True))


@impostor("reconstruction.perceptual_distance", "features normalised over the channels first, as LPIPS has them")
def perceptual_normalised(a, b, weights):
    def unit(x):
        return x / (x.norm(dim=1, keepdim=True) + 1e-10)

    return sum(w * (unit(x) - unit(y)).abs().mean() for x, y, w in zip(a, b, weights, strict=True))


@impostor("reconstruction.perceptual_distance", "summed over the pixels: the layers with most of them decide")
def perceptual_sum(a, b, weights):
    return sum(w * (x - y).abs().sum() for x, y, w in zip(a, b, weights, strict=True))


@impostor("reconstruction.perceptual_distance", "the mean over all layers together")
def perceptual_of_all_layers_at_once(a, b, weights):
    return torch.cat([(w * (x - y)).abs().flatten() for x, y, w in zip(a, b, weights, strict=True)]).mean()


@impostor("reconstruction.perceptual_distance", "the layers' weights left at one")
def perceptual_unweighted(a, b, weights):
    return sum((x - y).abs().mean() for x, y in zip(a, b, strict=True))


# --- gram_matrix


@pytest.mark.verifies("reconstruction.gram_matrix", by="point")
def test_gram_matrix_of_two_features_in_two_pixels():
    x = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]], dtype=torch.float64)
    close(reconstruction.gram_matrix(x), [[[2.5, 0.5], [0.5, 5.0]]])


@pytest.mark.verifies("reconstruction.gram_matrix")
@given(seeds)
def test_where_something_is_does_not_matter_to_its_texture(seed):
    """Not even in which frame."""
    x = normal(seed, 2, 3, 2, 4, 5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    shuffled = rearrange(x, "B C T H W -> B C (T H W)")[..., order].unflatten(2, (4, 2, 5))
    close(reconstruction.gram_matrix(shuffled), reconstruction.gram_matrix(x))


@pytest.mark.verifies("reconstruction.gram_matrix")
@given(seeds, st.integers(2, 4))
def test_more_of_the_same_texture_is_the_same_texture(seed, times):
    x = normal(seed, 2, 3, 4, 5)
    close(reconstruction.gram_matrix(x.repeat(1, 1, times, times)), reconstruction.gram_matrix(x))


@pytest.mark.verifies("reconstruction.gram_matrix")
@given(seeds)
def test_no_mixture_of_features_has_negative_energy(seed):
    """Positive semidefinite, and the energy of a mixture is its mean square."""
    x, mixture = normal(seed, 1, 3, 4, 5), normal(seed + 1, 3)
    energy = mixture @ reconstruction.gram_matrix(x)[0] @ mixture
    close(energy, torch.einsum("c,bchw->bhw", mixture, x).square().mean())


@impostor("reconstruction.gram_matrix", "not divided by the pixels: a larger crop is another texture")
def gram_summed(features):
    flat = features.flatten(2)
    return flat @ flat.mT


@impostor("reconstruction.gram_matrix", "divided by the channels too, as in many copies of neural style transfer")
def gram_by_channels_too(features):
    flat = features.flatten(2)
    return flat @ flat.mT / flat[0].numel()


@impostor("reconstruction.gram_matrix", "centred: a covariance, which does not know how often a feature occurs")
def gram_centred(features):
    flat = features.flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    return flat @ flat.mT / flat.shape[2]


@impostor("reconstruction.gram_matrix", "each pixel against the next one: places matter")
def gram_of_neighbours(features):
    flat = features.flatten(2)
    return flat @ flat.roll(1, 2).mT / flat.shape[2]


# --- gram_distance


@pytest.mark.verifies("reconstruction.gram_distance", by="point")
def test_gram_distance_of_one_feature_that_doubles():
    """Energy 1 becomes 4: the square of 3, times the weight 2; a layer that stays adds nothing."""
    ones = torch.ones(1, 1, 4, dtype=torch.float64)
    close(reconstruction.gram_distance([ones, ones], [2 * ones, ones], (2.0, 7.0)), 18.0)


@pytest.mark.verifies("reconstruction.gram_distance")
@given(seeds, weights)
def test_textures_that_only_moved_are_no_distance_apart(seed, w):
    a = layers(seed)
    assert reconstruction.gram_distance(a, [x.roll((1, 2), (2, 3)) for x in a], w) < ROUNDING


@pytest.mark.verifies("reconstruction.gram_distance")
@given(seeds, weights, st.floats(0.5, 2))
def test_texture_counts_with_the_fourth_power_of_the_contrast(seed, w, factor):
    a, b = layers(seed), layers(seed + 2)
    stronger = [[factor * x for x in features] for features in (a, b)]
    close(reconstruction.gram_distance(*stronger, w), factor**4 * reconstruction.gram_distance(a, b, w), 1e-9)


@pytest.mark.verifies("reconstruction.gram_distance")
@given(seeds, weights)
def test_layers_of_texture_add_up_by_their_weights(seed, w):
    a, b = layers(seed), layers(seed + 2)
    apart = [reconstruction.gram_distance(a[k : k + 1], b[k : k + 1], [1.0]) for k in range(2)]
    close(reconstruction.gram_distance(a, b, w), w[0] * apart[0] + w[1] * apart[1], 1e-9)


@pytest.mark.verifies("reconstruction.gram_distance")
@given(seeds)
def test_a_feature_more_that_is_never_seen_thins_the_distance_out(seed):
    """The mean is over all pairs of features: of twice as many, only a quarter were there before."""
    a, b = layers(seed)[:1], layers(seed + 2)[:1]
    more = [[torch.cat([x, torch.zeros_like(x)], dim=1) for x in features] for features in (a, b)]
    close(4 * reconstruction.gram_distance(*more, [1.0]), reconstruction.gram_distance(a, b, [1.0]))


@impostor("reconstruction.gram_distance", "as many layers as there are weights: those after them are forgotten")
def gram_distance_of_some_layers(a, b, weights):
    gram = reconstruction.gram_matrix
    return sum(w * ((gram(x) - gram(y)) ** 2).mean() for x, y, w in zip(a, b, weights, strict=False))


@impostor("reconstruction.gram_distance", "magnitudes of the differences: what is said to be an L1 loss is not one")
def gram_distance_of_magnitudes(a, b, weights):
    gram = reconstruction.gram_matrix
    return sum(w * (gram(x) - gram(y)).abs().mean() for x, y, w in zip(a, b, weights, strict=True))


@impostor("reconstruction.gram_distance", "the layers' weights left at one")
def gram_distance_unweighted(a, b, weights):
    gram = reconstruction.gram_matrix
    return sum(((gram(x) - gram(y)) ** 2).mean() for x, y in zip(a, b, strict=True))


@impostor("reconstruction.gram_distance", "features compared in place instead of their Gram matrices")
def gram_distance_in_place(a, b, weights):
    return sum(w * ((x**2 - y**2) ** 2).mean() for x, y, w in zip(a, b, weights, strict=True))


@impostor("reconstruction.gram_distance", "the squared Frobenius norm: a sum over pairs, large layers decide")
def gram_distance_summed(a, b, weights):
    gram = reconstruction.gram_matrix
    return sum(w * ((gram(x) - gram(y)) ** 2).sum() / len(x) for x, y, w in zip(a, b, weights, strict=True))


# --- flow_distance


def brightening(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """A flow that is no flow but tells first from second: what becomes brighter, and where it was bright."""
    return torch.stack([(second - first).clamp(min=0)[:, 0], first[:, 0]], dim=1)


def pair(*values: float) -> torch.Tensor:
    """A video with these pixels in turn, one a frame."""
    return torch.tensor(values, dtype=torch.float64)[None, None, :, None, None]


@pytest.mark.verifies("reconstruction.flow_distance", by="point")
def test_flow_distance_of_a_pixel_that_moves_and_one_that_stays():
    """Forwards (1 - 0, 0) against (0, 0), backwards (0, 1) against (0, 0): two of four numbers differ, by one."""
    close(reconstruction.flow_distance(pair(0, 1), pair(0, 0), brightening), 0.5)


@pytest.mark.verifies("reconstruction.flow_distance")
@given(seeds)
def test_both_directions_of_time_count_alike(seed):
    a, b = normal(seed, 2, 1, 4, 3, 3), normal(seed + 1, 2, 1, 4, 3, 3)
    forwards = reconstruction.flow_distance(a, b, brightening)
    close(reconstruction.flow_distance(a.flip(2), b.flip(2), brightening), forwards)


@pytest.mark.verifies("reconstruction.flow_distance")
@given(seeds, st.floats(0.1, 10))
def test_what_moves_alike_may_look_as_it_likes(seed, brighter):
    """Flow is compared, not pixels: change is the same in a brighter video."""
    a = normal(seed, 2, 1, 4, 3, 3)

    def change(first, second):
        return (second - first).expand(-1, 2, -1, -1)

    assert reconstruction.flow_distance(a, a + brighter, change) < ROUNDING
    close(reconstruction.flow_distance(a, (1 + brighter) * a, change), brighter * a.diff(dim=2).abs().mean(), 1e-9)


@pytest.mark.verifies("reconstruction.flow_distance")
@given(seeds)
def test_a_frame_that_differs_changes_the_motion_to_and_from_it_only(seed):
    """Frames that are not neighbours are never compared, nor those of different clips."""
    a = normal(seed, 2, 1, 4, 3, 3)
    seen = []

    def watched(first, second):
        seen.extend(zip(first[:, 0, 0, 0].tolist(), second[:, 0, 0, 0].tolist(), strict=True))
        return brightening(first, second)

    reconstruction.flow_distance(a, a, watched)
    pixel = a[:, 0, :, 0, 0].tolist()
    neighbours = {(clip[t], clip[t + 1]) for clip in pixel for t in range(3)}
    assert set(seen) == neighbours | {(later, earlier) for earlier, later in neighbours}


@impostor("reconstruction.flow_distance", "forwards only")
def flow_forwards_only(a, b, flow):
    def motion(video):
        return flow(*(rearrange(v, "B C T H W -> (B T) C H W") for v in (video[:, :, :-1], video[:, :, 1:])))

    return (motion(a) - motion(b)).abs().mean()


@impostor("reconstruction.flow_distance", "from the first frame to all others instead of from each to the next")
def flow_from_the_first_frame(a, b, flow):
    def motion(video):
        first = repeat(video[:, :, 0], "B C H W -> (B T) C H W", T=video.shape[2] - 1)
        others = rearrange(video[:, :, 1:], "B C T H W -> (B T) C H W")
        return torch.cat([flow(first, others), flow(others, first)])

    return (motion(a) - motion(b)).abs().mean()


@impostor("reconstruction.flow_distance", "the flow from the original to its reconstruction, which should be none")
def flow_from_one_to_the_other(a, b, flow):
    a, b = (rearrange(v, "B C T H W -> (B T) C H W") for v in (a, b))
    return (flow(a, b).abs().mean() + flow(b, a).abs().mean()) / 2


@impostor("reconstruction.flow_distance", "squares: one pixel whose flow was not found outweighs all others")
def flow_squared(a, b, flow):
    def motion(video):
        one, two = (rearrange(v, "B C T H W -> (B T) C H W") for v in (video[:, :, :-1], video[:, :, 1:]))
        return torch.cat([flow(one, two), flow(two, one)])

    return ((motion(a) - motion(b)) ** 2).mean()


@impostor("reconstruction.flow_distance", "clips joined before they are cut into pairs: one runs over into the next")
def flow_across_clips(a, b, flow):
    def motion(video):
        frames = rearrange(video, "B C T H W -> (B T) C H W")
        return torch.cat([flow(frames[:-1], frames[1:]), flow(frames[1:], frames[:-1])])

    return (motion(a) - motion(b)).abs().mean()


# --- scheduled_weight


@pytest.mark.verifies("reconstruction.scheduled_weight", by="point")
def test_the_weight_of_the_perceptual_loss_as_released():
    found = [reconstruction.scheduled_weight(step, (500_000,), (0.1, 0.073)) for step in (0, 499_999, 500_000, 10**7)]
    assert found == [0.1, 0.1, 0.073, 0.073]


boundaries_of = st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True).map(sorted)


@pytest.mark.verifies("reconstruction.scheduled_weight")
@given(boundaries_of)
def test_a_stage_begins_with_the_very_update_that_its_boundary_counts(boundaries):
    values = [float(k) for k in range(len(boundaries) + 1)]
    for k, boundary in enumerate(boundaries):
        before, at = (reconstruction.scheduled_weight(step, boundaries, values) for step in (boundary - 1, boundary))
        assert (before, at) == (k, k + 1)


@pytest.mark.verifies("reconstruction.scheduled_weight")
@given(boundaries_of, st.integers(0, 200))
def test_a_weight_is_one_of_those_that_were_given(boundaries, step):
    values = [3.0 ** (k + 1) for k in range(len(boundaries) + 1)]
    assert reconstruction.scheduled_weight(step, boundaries, values) in values


@pytest.mark.verifies("reconstruction.scheduled_weight")
@given(boundaries_of, st.integers(0, 10**6))
def test_the_last_weight_stays(boundaries, later):
    values = [float(k) for k in range(len(boundaries) + 1)]
    assert reconstruction.scheduled_weight(boundaries[-1] + later, boundaries, values) == values[-1]


@impostor(
    "reconstruction.scheduled_weight", "a straight line from one to the next: what reads `0 -> 0.062 at 500k` says"
)
def weight_ramp(step, boundaries, values):
    points = [(0, values[0]), *zip(boundaries, values[1:], strict=True)]
    for (start, low), (end, high) in itertools.pairwise(points):
        if step < end:
            return low + (high - low) * (step - start) / max(1, end - start)
    return values[-1]


@impostor("reconstruction.scheduled_weight", "off by one: a stage begins after its boundary")
def weight_one_late(step, boundaries, values):
    return values[sum(boundary < step for boundary in boundaries)]


@impostor("reconstruction.scheduled_weight", "nothing after the last boundary")
def weight_that_ends(step, boundaries, values):
    return values[sum(boundary <= step for boundary in boundaries)] if step <= boundaries[-1] else 0.0


# --- lucas_kanade


def waves(shift_right: float, shift_down: float, seed: int = 0, size: int = 24) -> torch.Tensor:
    """A smooth pattern in two colours, moved by so many pixels; its waves are at least 12 pixels long."""
    down, right = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    right, down = right - shift_right, down - shift_down
    phases = 2 * math.pi * torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rates = [(1.0, 0.2), (-0.3, 1.0), (0.7, 0.7), (0.8, -0.6)]
    drawn = [
        torch.sin(2 * math.pi / 14 * (x * right + y * down) + p) for (x, y), p in zip(rates * 2, phases, strict=True)
    ]
    return torch.stack([sum(drawn[:4]), sum(drawn[4:])])[None] / 4


@pytest.mark.verifies("reconstruction.lucas_kanade", by="point")
def test_lucas_kanade_of_a_slope_that_moved_half_a_pixel():
    """Gradient (0, 2), change -1: 2 * 1 / (4 + ridge) down, 0.4 with a ridge of one; nothing to the right."""
    slope = 2 * torch.arange(5, dtype=torch.float64)[None, None, :, None].expand(1, 1, 5, 6)
    found = reconstruction.lucas_kanade(slope, slope - 1, window=5, ridge=1.0)
    assert found.shape == (1, 2, 5, 6)  # every pixel has a motion, also at the border
    close(found[:, 0], 0.0)
    close(found[:, 1], 0.4)


@pytest.mark.verifies("reconstruction.lucas_kanade", by="point")
def test_lucas_kanade_of_two_slopes_across_each_other():
    """Colours with gradients (1, 1) and (1, 0), moved by (0.5, 0.25): nothing but both together tells the direction."""
    down, right = torch.meshgrid(*[torch.arange(6, dtype=torch.float64)] * 2, indexing="ij")
    first = torch.stack([right + down, right])[None]
    second = torch.stack([right + down - 0.75, right - 0.5])[None]
    found = reconstruction.lucas_kanade(first, second, window=3, ridge=1e-12)
    close(found[:, 0], 0.5, 1e-9)
    close(found[:, 1], 0.25, 1e-9)


@pytest.mark.verifies("reconstruction.lucas_kanade")
@given(seeds, st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_a_small_step_of_a_smooth_pattern_is_found(seed, right, down):
    """To a twentieth of a pixel: a central difference is 6 % too small for waves this short, here and there squared."""
    found = reconstruction.lucas_kanade(waves(0, 0, seed), waves(right, down, seed), window=9, ridge=1e-6)
    middle = found[0, :, 6:-6, 6:-6]
    assert (middle - torch.tensor([right, down])[:, None, None]).abs().max() < 0.05


@pytest.mark.verifies("reconstruction.lucas_kanade")
@given(seeds, st.sampled_from([3, 5]))
def test_the_way_back_is_the_way_there(seed, window):
    a, b = normal(seed, 2, 3, 8, 9), normal(seed + 1, 2, 3, 8, 9)
    there, back = (reconstruction.lucas_kanade(*frames, window, 0.1) for frames in ((a, b), (b, a)))
    close(there, -back, 1e-9)


@pytest.mark.verifies("reconstruction.lucas_kanade")
@given(seeds)
def test_motion_turns_with_the_picture(seed):
    """Exchanging right and down exchanges them in the flow; a mirror turns the sign of one."""
    a, b = normal(seed, 2, 3, 8, 9), normal(seed + 1, 2, 3, 8, 9)
    flow = reconstruction.lucas_kanade(a, b, 3, 0.1)
    close(reconstruction.lucas_kanade(a.mT, b.mT, 3, 0.1), flow.flip(1).mT, 1e-9)
    mirrored = reconstruction.lucas_kanade(a.flip(3), b.flip(3), 3, 0.1)
    close(mirrored, flow.flip(3) * torch.tensor([-1.0, 1.0])[:, None, None], 1e-9)


@pytest.mark.verifies("reconstruction.lucas_kanade")
@given(seeds, st.floats(0.01, 1))
def test_what_has_no_contrast_does_not_move(seed, brighter):
    """Neither grey that becomes brighter, nor with a gradient that is not finite."""
    grey = torch.full((1, 1, 6, 6), 0.3, dtype=torch.float64, requires_grad=True)
    flow = reconstruction.lucas_kanade(grey, grey + brighter, 3, 1e-3)
    assert flow.abs().max() < ROUNDING
    flow.sum().backward()
    assert grey.grad is not None and torch.isfinite(grey.grad).all()


@pytest.mark.verifies("reconstruction.lucas_kanade")
@given(seeds)
def test_motion_far_away_is_not_seen(seed):
    """A window of 3 and a gradient of 3 see two pixels far."""
    a, b = normal(seed, 1, 1, 9, 9), normal(seed + 1, 1, 1, 9, 9)
    other = b.clone()
    other[..., 7:, :] += 1
    flow, changed = (reconstruction.lucas_kanade(a, second, 3, 0.1) for second in (b, other))
    close(changed[..., :5, :], flow[..., :5, :])
    assert (changed[..., 5, :] - flow[..., 5, :]).abs().min() > 1e-6


@pytest.mark.verifies("reconstruction.lucas_kanade")
@given(seeds)
def test_a_colour_more_that_shows_the_same_says_nothing_new(seed):
    a, b = normal(seed, 1, 1, 8, 8), normal(seed + 1, 1, 1, 8, 8)
    twice = reconstruction.lucas_kanade(a.repeat(1, 2, 1, 1), b.repeat(1, 2, 1, 1), 3, 0.1)
    close(twice, reconstruction.lucas_kanade(a, b, 3, 0.1), 1e-9)


def lucas_kanade_with(first, second, window, ridge, gradient_of=None, sign=-1.0, order=(0, 1), cross=1.0, padded=False):
    """Lucas and Kanade with a slip of the pen."""
    base = (first + second) / 2 if gradient_of is None else gradient_of(first, second)
    down, right = torch.gradient(base, dim=(2, 3))
    change = second - first
    sums = torch.stack([right**2, right * down, down**2, right * change, down * change], dim=1).mean(dim=2)
    means = torch.nn.functional.avg_pool2d(sums, window, 1, window // 2, count_include_pad=padded)
    xx, xy, yy, xt, yt = means.unbind(1)
    xx, yy, xy = xx + ridge, yy + ridge, cross * xy
    found = torch.stack([yy * xt - xy * yt, xx * yt - xy * xt], dim=1) / (xx * yy - xy**2)[:, None]
    return sign * found[:, list(order)]


@impostor("reconstruction.lucas_kanade", "the sign turned: where it came from instead of where it goes")
def lucas_kanade_backwards(first, second, window, ridge):
    return lucas_kanade_with(first, second, window, ridge, sign=1.0)


@impostor("reconstruction.lucas_kanade", "down before right, as arrays are indexed")
def lucas_kanade_down_first(first, second, window, ridge):
    return lucas_kanade_with(first, second, window, ridge, order=(1, 0))


@impostor("reconstruction.lucas_kanade", "the gradient of the first frame alone, as it was published: not the way back")
def lucas_kanade_of_the_first(first, second, window, ridge):
    return lucas_kanade_with(first, second, window, ridge, gradient_of=lambda one, two: one)


@impostor("reconstruction.lucas_kanade", "each direction by itself: slopes that lean show the wrong way")
def lucas_kanade_without_cross_term(first, second, window, ridge):
    return lucas_kanade_with(first, second, window, ridge, cross=0.0)


@impostor("reconstruction.lucas_kanade", "no ridge: what has no contrast moves by 0 / 0")
def lucas_kanade_without_ridge(first, second, window, ridge):
    return lucas_kanade_with(first, second, window, 0.0)


@impostor("reconstruction.lucas_kanade", "the mean over the whole frame: one motion for all that is in it")
def lucas_kanade_of_the_frame(first, second, window, ridge):
    return lucas_kanade_with(first, second, 2 * max(first.shape[2:]) + 1, ridge)


@impostor("reconstruction.lucas_kanade", "summed over the colours, the ridge of one: grey as colour moves more")
def lucas_kanade_summed_over_colours(first, second, window, ridge):
    return lucas_kanade_with(first, second, window, ridge / first.shape[1])


@impostor("reconstruction.lucas_kanade", "at the border divided by the whole window: what moves there slows down")
def lucas_kanade_slow_at_the_border(first, second, window, ridge):
    return lucas_kanade_with(first, second, window, ridge, padded=True)
