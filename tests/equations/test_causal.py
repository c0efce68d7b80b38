from functools import reduce

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from cosmos_ref.equations import causal, wavelets
from cosmos_ref.errors import UserError
from tests.impostors import impostor
from tests.strategies import normal, seeds

SAME = dict(rtol=0, atol=0)  # frames are only copied
counts = st.integers(0, 4)
lengths = st.integers(1, 6)
factors = st.integers(1, 16)


def frames(*values):
    """One number a frame, shape `1 1 T 1 1`."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1, 1, 1)


def code(video, levels):
    """The first half of a tokenizer: padding to whole cells, then a transform that knows nothing of causality."""
    return wavelets.haar_3d(causal.causal_pad(video, 2**levels - 1), (levels, 0, 0))


# --- causal_pad


@pytest.mark.verifies("causal.causal_pad", by="point")
def test_two_copies_of_the_first_frame_go_in_front():
    torch.testing.assert_close(causal.causal_pad(frames(7, 8, 9), 2), frames(7, 7, 7, 8, 9), **SAME)


@pytest.mark.verifies("causal.causal_pad")
@given(lengths, counts, seeds)
def test_the_clip_itself_stays_whole_at_the_end(T, count, seed):
    video = normal(seed, 2, 3, T, 2, 2)
    padded = causal.causal_pad(video, count)
    assert padded.shape[2] == T + count
    torch.testing.assert_close(padded[:, :, count:], video, **SAME)


@pytest.mark.verifies("causal.causal_pad")
@given(lengths, counts, seeds)
def test_a_still_clip_stays_still(T, count, seed):
    """What a tokenizer sees before the first frame is the first frame, not black."""
    still = normal(seed, 2, 3, 1, 2, 2)
    padded = causal.causal_pad(still.expand(-1, -1, T, -1, -1), count)
    torch.testing.assert_close(padded, still.expand_as(padded), **SAME)


@pytest.mark.verifies("causal.causal_pad")
@given(st.integers(1, 3), st.integers(1, 2), seeds, st.data())
def test_changing_a_frame_leaves_earlier_latents_untouched(cells, levels, seed, data):
    """Frame T is seen first by latent ceil(T / factor); the first latent sees the first frame alone."""
    factor = 2**levels
    video = normal(seed, 1, 3, 1 + cells * factor, 2, 2)
    changed = data.draw(st.integers(1, cells * factor))
    other = video.clone()
    other[:, :, changed] += 1
    latents, others = code(video, levels), code(other, levels)
    first = -(-changed // factor)
    torch.testing.assert_close(others[:, :, :first], latents[:, :, :first], **SAME)
    assert not torch.equal(others[:, :, first], latents[:, :, first])  # and this one does see it


@pytest.mark.verifies("causal.causal_pad")
@given(st.integers(1, 2), seeds)
def test_not_even_an_infinite_frame_reaches_earlier_latents(levels, seed):
    """Zero times infinity is no number: what a frame does not see must not enter with weight zero either."""
    factor = 2**levels
    video = normal(seed, 1, 3, 1 + factor, 2, 2)
    broken = video.clone()
    broken[:, :, 1:] = torch.inf
    torch.testing.assert_close(code(broken, levels)[:, :, 0], code(video, levels)[:, :, 0], **SAME)


@impostor("causal.causal_pad", "by a matrix of zeros and ones, which one infinite pixel spoils")
def causal_pad_by_a_matrix(x, count):
    T = x.shape[2]
    chosen = torch.nn.functional.one_hot((torch.arange(T + count) - count).clamp(min=0), T).to(x)
    return torch.einsum("bcthw,st->bcshw", x, chosen)


@impostor("causal.causal_pad", "zeros in front: mid-grey frames that never were")
def causal_pad_with_zeros(x, count):
    return torch.cat([torch.zeros_like(x[:, :, :1]).expand(-1, -1, count, -1, -1), x], dim=2)


@impostor("causal.causal_pad", "both sides, like any other convolution")
def causal_pad_on_both_sides(x, count):
    first, last = x[:, :, :1], x[:, :, -1:]
    front = first.expand(-1, -1, count // 2, -1, -1)
    return torch.cat([front, x, last.expand(-1, -1, count - count // 2, -1, -1)], dim=2)


@impostor("causal.causal_pad", "the last frame repeated behind")
def causal_pad_behind(x, count):
    return torch.cat([x, x[:, :, -1:].expand(-1, -1, count, -1, -1)], dim=2)


@impostor("causal.causal_pad", "the clip mirrored in front: the first latent sees the future")
def causal_pad_mirrored(x, count):
    mirrored = torch.arange(count, 0, -1).clamp(max=x.shape[2] - 1)
    return torch.cat([x[:, :, mirrored], x], dim=2)


# --- frame_norm


def normed(x, weight=None, bias=None, eps=1e-6):
    """Features `B C T H W` under the norm, with unit scale and no shift unless told otherwise."""
    ones = torch.ones(x.shape[1], dtype=x.dtype)
    return causal.frame_norm(x, ones if weight is None else weight, 0 * ones if bias is None else bias, eps)


@pytest.mark.verifies("causal.frame_norm", by="point")
def test_a_frame_of_four_numbers_by_hand():
    """1, 3 in one channel and 5, 7 in the other: mean 4, variance 5; with eps 4 they are divided by three."""
    x = torch.tensor([[1.0, 3], [5, 7]]).double().reshape(1, 2, 1, 1, 2)
    y = normed(x, x.new_tensor([3.0, 6.0]), x.new_tensor([10.0, 20.0]), eps=4.0)
    torch.testing.assert_close(y, x.new_tensor([[7.0, 9.0], [22.0, 26.0]]).reshape(x.shape), rtol=1e-12, atol=0)


@pytest.mark.verifies("causal.frame_norm")
@given(lengths, seeds)
def test_every_frame_has_zero_mean_and_unit_variance_over_its_channels_and_pixels(T, seed):
    x = normal(seed + 1, 2, 1, T, 1, 1).exp() * normal(seed, 2, 3, T, 4, 4) + normal(seed + 2, 2, 1, T, 1, 1)
    y = normed(x, eps=0.0)
    torch.testing.assert_close(y.mean(dim=(1, 3, 4)), torch.zeros(2, T).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(y.square().mean(dim=(1, 3, 4)), torch.ones(2, T).double(), rtol=0, atol=1e-10)


@pytest.mark.verifies("causal.frame_norm")
@given(st.integers(2, 5), seeds, st.data())
def test_no_frame_knows_of_another_one(T, seed, data):
    x = normal(seed, 2, 3, T, 4, 4)
    changed = data.draw(st.integers(0, T - 1))
    other = x.clone()
    other[:, :, changed] = 5 * other[:, :, changed] - 7
    rest = torch.arange(T) != changed
    torch.testing.assert_close(normed(other)[:, :, rest], normed(x)[:, :, rest], **SAME)


@pytest.mark.verifies("causal.frame_norm")
@given(seeds)
def test_channels_keep_their_share_of_a_frame(seed):
    """One mean and one deviation for all channels: what a channel is beside the others survives."""
    x = normal(seed, 2, 3, 2, 4, 4) + 3 * normal(seed + 1, 1, 3, 1, 1, 1)
    y = normed(x, eps=0.0)
    ratio = (x[:, 1] - x[:, 0]).std(dim=(2, 3)) / (x[:, 2] - x[:, 0]).std(dim=(2, 3))
    torch.testing.assert_close((y[:, 1] - y[:, 0]).std(dim=(2, 3)) / (y[:, 2] - y[:, 0]).std(dim=(2, 3)), ratio)
    between = x.mean(dim=(3, 4)).diff(dim=1) / x.std(dim=(1, 3, 4), correction=0)[:, None]
    torch.testing.assert_close(y.mean(dim=(3, 4)).diff(dim=1), between)


@pytest.mark.verifies("causal.frame_norm")
@given(seeds, st.sampled_from([1e2, 1e3, 1e4]))
def test_a_large_mean_costs_no_more_than_its_rounding(seed, mean):
    """In float32: the numbers themselves are known to mean * 2^-24, and the mean of 256 of them not better.

    The mean of squares less the square of the mean would be off by mean^2 * 2^-24: at 1e4 by more than the variance.
    """
    x = (normal(seed, 1, 4, 1, 8, 8) + mean).float()
    torch.testing.assert_close(normed(x).double(), normed(x.double()), rtol=1e-4, atol=8 * mean * 2**-24)


@impostor(
    "causal.frame_norm", "statistics over the whole clip, as a group norm in three dimensions has them: not causal"
)
def frame_norm_over_the_clip(x, weight, bias, eps):
    return torch.nn.functional.group_norm(x, 1, weight, bias, eps)


@impostor("causal.frame_norm", "statistics of each channel: an instance norm")
def frame_norm_of_each_channel(x, weight, bias, eps):
    variance, mean = torch.var_mean(x, dim=(3, 4), correction=0, keepdim=True)
    return affine((x - mean) / (variance + eps).sqrt(), weight, bias)


@impostor("causal.frame_norm", "statistics of each pixel over its channels: a layer norm")
def frame_norm_of_each_pixel(x, weight, bias, eps):
    variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
    return affine((x - mean) / (variance + eps).sqrt(), weight, bias)


@impostor("causal.frame_norm", "the variance of a sample: divided by one number less")
def frame_norm_with_the_variance_of_a_sample(x, weight, bias, eps):
    variance, mean = torch.var_mean(x, dim=(1, 3, 4), correction=1, keepdim=True)
    return affine((x - mean) / (variance + eps).sqrt(), weight, bias)


@impostor("causal.frame_norm", "eps beside the deviation instead of under the root")
def frame_norm_with_eps_outside(x, weight, bias, eps):
    variance, mean = torch.var_mean(x, dim=(1, 3, 4), correction=0, keepdim=True)
    return affine((x - mean) / (variance.sqrt() + eps), weight, bias)


@impostor("causal.frame_norm", "the variance as the mean of squares less the square of the mean: nothing is left of it")
def frame_norm_in_one_pass(x, weight, bias, eps):
    mean, square = (y.mean(dim=(1, 3, 4), keepdim=True) for y in (x, x**2))
    return affine((x - mean) / ((square - mean**2).clamp(min=0) + eps).sqrt(), weight, bias)


def affine(x, weight, bias):
    return x * weight[:, None, None, None] + bias[:, None, None, None]


# --- latent_length


@pytest.mark.verifies("causal.latent_length", by="point")
def test_latent_lengths_of_the_7b_and_of_tiny():
    assert [causal.latent_length(frames, 8) for frames in (1, 9, 17, 121)] == [1, 2, 3, 16]
    assert len(range(causal.latent_length(9, 2))) == 5  # a count: no float, even a whole one


@pytest.mark.verifies("causal.latent_length", "causal.clip_length")
@given(st.integers(0, 40), factors)
def test_clip_length_undoes_latent_length(cells, factor):
    assert causal.clip_length(causal.latent_length(1 + cells * factor, factor), factor) == 1 + cells * factor


@pytest.mark.verifies("causal.latent_length", "causal.clip_length")
@given(st.integers(0, 20), st.integers(0, 4))
def test_halving_and_doubling_one_after_the_other_is_the_whole_factor(cells, times):
    """Layers go from T frames to (T + 1) / 2 and back to 2 T - 1, stage by stage."""
    frames = 1 + cells * 2**times
    halved = reduce(lambda T, _: causal.latent_length(T, 2), range(times), frames)
    assert halved == causal.latent_length(frames, 2**times)
    assert reduce(lambda T, _: causal.clip_length(T, 2), range(times), halved) == frames


@pytest.mark.verifies("causal.latent_length")
@given(st.integers(0, 5), st.integers(0, 3))
def test_latent_length_counts_the_latents_that_come_out(cells, levels):
    video = frames(*range(1 + cells * 2**levels))
    assert causal.latent_length(video.shape[2], 2**levels) == code(video, levels).shape[2]


@pytest.mark.verifies("causal.latent_length")
@given(st.integers(-3, 200), factors)
def test_a_clip_that_does_not_fit_is_told_the_nearest_lengths_that_do(T, factor):
    assume(T < 1 or (T - 1) % factor)
    try:
        causal.latent_length(T, factor)
    except UserError as error:
        accepted = [length for length in range(1, T + 2 * factor + 4) if (length - 1) % factor == 0]
        below = max([length for length in accepted if length <= T], default=1)
        assert f"{T} frames" in str(error)
        assert f"for example {below} or {below + factor}" in str(error)
    else:
        raise AssertionError(f"{T} frames were accepted")


@impostor("causal.latent_length", "rounded up: accepts clips that the tokenizer cannot cut")
def latent_length_rounded_up(frames, temporal_factor):
    return -(-frames // temporal_factor)


@impostor("causal.latent_length", "no frame of its own for the start: T // s")
def latent_length_without_the_first(frames, temporal_factor):
    return frames // temporal_factor


@impostor("causal.latent_length", "1 + T // s")
def latent_length_with_one_frame_too_many(frames, temporal_factor):
    return 1 + frames // temporal_factor


@impostor("causal.latent_length", "remainder by 16, as in NVIDIA's inference: 17 frames become 1")
def latent_length_modulo_sixteen(frames, temporal_factor):
    return 1 + (frames % 16 - 1) // temporal_factor


# --- check_side


@given(st.integers(-3, 100), factors)
def test_a_side_fits_if_it_is_one_latent_pixel_or_more_and_nothing_over(size, unit):
    fits = size in range(unit, 101, unit)
    try:
        causal.check_side("height", size, unit)
    except UserError as error:
        assert not fits and f"height {size}" in str(error) and f"multiple of {unit}" in str(error)
    else:
        assert fits


# --- clip_length


@pytest.mark.verifies("causal.clip_length", by="point")
def test_clip_lengths_of_the_7b_and_of_tiny():
    assert [causal.clip_length(latents, 8) for latents in (1, 2, 16)] == [1, 9, 121]
    assert len(range(causal.clip_length(5, 2))) == 9


@pytest.mark.verifies("causal.clip_length")
@given(st.integers(1, 40), factors)
def test_the_first_latent_is_one_frame_and_every_other_one_a_whole_cell(latent_frames, factor):
    assert causal.clip_length(1, factor) == 1
    added = causal.clip_length(latent_frames + 1, factor) - causal.clip_length(latent_frames, factor)
    assert added == factor


@impostor("causal.clip_length", "every latent a whole cell, the first one too")
def clip_length_of_whole_cells(latent_frames, temporal_factor):
    return latent_frames * temporal_factor


@impostor("causal.clip_length", "the first latent's own frame forgotten: a clip one frame too short")
def clip_length_without_the_first(latent_frames, temporal_factor):
    return max(1, (latent_frames - 1) * temporal_factor)


@impostor("causal.clip_length", "the first frame counted on top")
def clip_length_with_one_cell_more(latent_frames, temporal_factor):
    return 1 + latent_frames * temporal_factor
