"""A clip passed in chunks, with what the layers keep, is the whole clip."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_ref.blocks.causal_attention import ALONG_TIME, AxisAttention, MidBlock
from cosmos_ref.blocks.causal_conv import (
    CausalConv3d,
    FactorizedConv3d,
    HalveTime,
    Past,
    downsample,
    upsample,
)
from cosmos_ref.blocks.resnet import ResnetBlock, ResnetLevel
from tests.strategies import normal, seeds
from tests.tokenizer.small import drawn_weights

WIDTH = 4
FRAMES = 9
# float64 rounding of numbers of up to ten; attention adds up other numbers of keys in another order.
CLOSE = dict(rtol=0, atol=1e-12)
MODULES = {
    "causal": CausalConv3d(WIDTH, 3, (3, 3, 3)),
    "long": CausalConv3d(WIDTH, 3, (5, 1, 1)),
    "factorized": FactorizedConv3d(WIDTH, 3),
    "halve": HalveTime(WIDTH),
    "downsample": downsample(WIDTH, (2, 2)),
    "upsample": upsample(WIDTH, (2, 2)),
    "attention": AxisAttention(WIDTH, ALONG_TIME, causal=True),
    "resnet": ResnetBlock(WIDTH, 6),
    "level": ResnetLevel(WIDTH, 6, 2, downsample(6, (2, 1))),
    "mid": MidBlock(WIDTH),
}
HALVING = {"halve", "downsample", "level"}


@pytest.fixture(scope="module", params=MODULES)
def module(request):
    module = drawn_weights(MODULES[request.param]).requires_grad_(False)
    return module, 2 if request.param in HALVING else 1


def in_chunks(module, x, cuts, past):
    """The chunks between the cuts, each with what `past` gives for it."""
    return torch.cat([module(x[:, :, a:b], past()) for a, b in zip([0, *cuts], [*cuts, FRAMES], strict=True)], dim=2)


@settings(max_examples=12)
@given(seed=seeds, data=st.data())
def test_in_chunks_it_gives_what_the_whole_clip_gives(module, seed, data):
    """Wherever the cuts are; what halves the frames takes an odd number first, then even ones."""
    module, step = module
    cuts = sorted(data.draw(st.sets(st.sampled_from(range(1, FRAMES, step)), min_size=1)))
    x = normal(seed, 2, WIDTH, FRAMES, 4, 4)
    past = Past()
    torch.testing.assert_close(in_chunks(module, x, cuts, lambda: past), module(x), **CLOSE)


@settings(max_examples=12)
@given(seed=seeds, cut=st.sampled_from([1, 3, 5, 7]))
def test_without_what_was_kept_it_does_not(module, seed, cut):
    """Were the cache forgotten at the cut, the law above would see it: from the first result after the cut on."""
    module, step = module
    x = normal(seed, 1, WIDTH, FRAMES, 4, 4)
    whole = module(x)
    later = module(x[:, :, cut + step - 1 :])  # an odd number of frames, as if they began a clip
    assert (later[:, :, :1] - whole[:, :, -later.shape[2] :][:, :, :1]).abs().max() > 1e-3


@settings(max_examples=12)
@given(seed=seeds)
def test_what_is_kept_does_not_grow_except_in_attention(module, seed):
    module, _ = module
    past, sizes = Past(), []
    for frames in (1, 2, 2, 2):
        module(normal(seed, 1, WIDTH, frames, 4, 4), past)
        sizes.append(sum(kept.untyped_storage().nbytes() for kept in past.values()))
    keys_and_values = [2 * 8 * WIDTH * 16 * frames for frames in (1, 3, 5, 7)]
    grows = [keys_and_values[i] if isinstance(module, (AxisAttention, MidBlock)) else 0 for i in range(4)]
    fixed = [size - grown for size, grown in zip(sizes, grows, strict=True)]
    assert fixed == [fixed[0]] * 4


@settings(max_examples=12)
@given(seed=seeds)
def test_two_clips_with_a_past_each_may_take_turns(module, seed):
    """All state is in the past, none in the module."""
    module, _ = module
    clips = normal(seed, 2, 1, WIDTH, 3, 4, 4)
    pasts = Past(), Past()
    first = [module(clip[:, :, :1], past) for clip, past in zip(clips, pasts, strict=True)]
    then = [module(clip[:, :, 1:], past) for clip, past in zip(clips, pasts, strict=True)]
    for clip, parts in zip(clips, zip(first, then, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts, dim=2), module(clip), **CLOSE)


def test_a_past_begins_before_the_first_frame():
    assert Past() == {}
    assert Past().latent_frames == 0
