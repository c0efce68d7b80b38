import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_ref.config import HaarPCAConfig
from cosmos_ref.equations.causal import causal_pad
from cosmos_ref.equations.wavelets import haar_3d
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer.haar_pca import MIN_STD, HaarPCATokenizer
from tests.strategies import normal, seeds

CONFIG = HaarPCAConfig()  # two frames and 4x4 pixels to a cell of 96 bands, of which 16 are kept
ALL = HaarPCAConfig(levels=(1, 1, 1), channels=24)
EXACT = dict(rtol=0, atol=1e-9)  # float64 rounding, divided by deviations of 1e-3 and more


def waves(seed, clips=6, frames=9, height=16, width=16):
    """Clips in [-0.9, 0.9] with something in every colour that moves: three plane waves on a constant."""
    t, h, w = (torch.arange(size).double() for size in (frames, height, width))
    video = 0.3 * torch.tanh(normal(seed, clips, 3, 1, 1, 1)).expand(clips, 3, frames, height, width).clone()
    for wave in range(3):
        a, b, c, phase = (x[..., None, None, None] for x in 1.0 * normal(seed + 1 + wave, 4, clips, 3))
        video += 0.2 * torch.sin(a * t[:, None, None] + b * h[:, None] + c * w + math.pi * phase)
    return video


@pytest.fixture(scope="module")
def tokenizer():
    return HaarPCATokenizer.fit(CONFIG, waves(0))


@settings(max_examples=15)
@given(seed=seeds, frame=st.integers(0, 8))
def test_a_frame_reaches_its_own_latent_and_none_before(tokenizer, seed, frame):
    """Latent j codes frames up to 2j."""
    video = waves(seed, clips=1)
    changed = video.clone()
    changed[:, :, frame:] += 0.05 * normal(seed + 9, 1, 3, 9 - frame, 16, 16)
    difference = (tokenizer.encode(changed) - tokenizer.encode(video)).abs().amax(dim=(0, 1, 3, 4))
    own = (frame + 1) // 2
    assert difference[:own].sum() == 0
    assert difference[own] > 1e-6


@settings(max_examples=15)
@given(seed=seeds, latents=st.integers(1, 4))
def test_a_longer_clip_begins_with_the_latents_of_its_beginning(tokenizer, seed, latents):
    """With one latent this says that the first is an image's."""
    video = waves(seed, clips=2)
    beginning = tokenizer.encode(video[:, :, : 1 + (latents - 1) * 2])
    torch.testing.assert_close(beginning, tokenizer.encode(video)[:, :, :latents], **EXACT)


@pytest.mark.parametrize("frames", [slice(0, 1), slice(1, None)], ids=["first", "later"])
def test_latents_of_the_fitted_clips_are_standardised_frame_kind_by_frame_kind(tokenizer, frames):
    latents = tokenizer.encode(waves(0))[:, :, frames]
    assert tokenizer.std.min() > MIN_STD  # no channel is held up by the floor
    per_channel = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(per_channel.mean(1), torch.zeros(16).double(), **EXACT)
    torch.testing.assert_close(per_channel.std(1), torch.ones(16).double(), **EXACT)


def test_statistics_of_the_first_frame_are_its_own(tokenizer):
    """A repeated frame has no motion in it, so the first latent frame spreads less wherever motion counts."""
    assert (tokenizer.std[0] / tokenizer.std[1]).min() < 0.8


@settings(max_examples=10)
@given(seed=seeds, frames=st.sampled_from([1, 3, 9]))
def test_with_every_channel_kept_decoding_undoes_encoding(seed, frames):
    tokenizer = HaarPCATokenizer.fit(ALL, waves(0))
    video = waves(seed, clips=2, frames=frames)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(video)), video, **EXACT)


def cell_error(axes, video):
    """What is lost of the cells outside the span of the axes."""
    cells = haar_3d(causal_pad(video, 1), CONFIG.levels).movedim(1, -1)
    return (cells - cells @ axes.T @ axes).square().mean()


@settings(max_examples=10)
@given(seed=seeds)
def test_no_other_sixteen_directions_keep_more_of_the_fitted_clips(tokenizer, seed):
    """Neither random ones nor the best ones, turned a little."""
    video, fitted = waves(0), tokenizer.axes
    best = cell_error(fitted, video)
    for other in (normal(seed, 96, 16), fitted.T + 0.05 * normal(seed + 1, 96, 16)):
        assert cell_error(torch.linalg.qr(other)[0].T, video) > best


@settings(max_examples=10)
@given(seed=seeds)
def test_a_colour_that_never_changes_is_not_lost(seed):
    """Its variance is zero, its energy is not: axes of the covariance alone would drop it."""
    video = 0.05 * waves(seed, clips=4)
    video += 0.8 * torch.tanh(normal(seed + 5, 3, 1, 1, 1))
    config = HaarPCAConfig(channels=3)
    tokenizer = HaarPCATokenizer.fit(config, video)
    restored = tokenizer.decode(tokenizer.encode(video))
    # what is lost is some of the waves, of which nothing exceeds 0.05
    assert (restored.mean(dim=(0, 2, 3, 4)) - video.mean(dim=(0, 2, 3, 4))).abs().max() < 0.01


def test_decoded_video_stays_in_range(tokenizer):
    video = tokenizer.decode(10 * normal(0, 1, 16, 3, 4, 4))
    assert video.abs().max() == 1


def test_a_saved_tokenizer_codes_as_before(tokenizer):
    loaded = HaarPCATokenizer(CONFIG).double()
    loaded.load_state_dict(tokenizer.state_dict())
    video = waves(1)
    latents = tokenizer.encode(video)
    assert torch.equal(loaded.encode(video), latents)
    assert torch.equal(loaded.decode(latents), tokenizer.decode(latents))
    assert set(tokenizer.state_dict()) == {"axes", "mean", "std"}


def test_fitted_in_float32_it_is_the_one_fitted_in_float64(tokenizer):
    """Up to float32's 6e-8, divided by the smallest deviation of a few 1e-3."""
    single = HaarPCATokenizer.fit(CONFIG, waves(0).float())
    assert {value.dtype for value in single.state_dict().values()} == {torch.float32}
    video = waves(1)
    ours, theirs = (t.decode(t.encode(v)).double() for t, v in ((single, video.float()), (tokenizer, video)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 16, 16), "8 frames does not fit.*for example 7 or 9"),
        ((9, 18, 16), "height 18 does not fit: it must be a multiple of 4"),
        ((9, 16, 15), "width 15 does not fit: it must be a multiple of 4"),
        ((9, 0, 16), "height 0 does not fit: it must be a multiple of 4"),
    ],
)
def test_a_clip_that_does_not_fit_is_refused(tokenizer, shape, message):
    with pytest.raises(UserError, match=message):
        tokenizer.encode(torch.zeros(1, 3, *shape).double())
    with pytest.raises(UserError, match=message):
        HaarPCATokenizer.fit(CONFIG, torch.zeros(1, 3, *shape))
