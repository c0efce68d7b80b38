import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.blocks.causal_attention import ALONG_TIME, WITHIN_FRAMES, AxisAttention, MidBlock
from cosmos_ref.equations import attention
from tests.strategies import normal, seeds
from tests.tokenizer.small import drawn_weights

WIDTH = 6
EXACT = dict(rtol=0, atol=1e-11)  # float64 rounding of sums of a few hundred numbers near one


@pytest.fixture(scope="module")
def spatial():
    return drawn_weights(AxisAttention(WIDTH, WITHIN_FRAMES, causal=False))


@pytest.fixture(scope="module")
def temporal():
    return drawn_weights(AxisAttention(WIDTH, ALONG_TIME, causal=True))


def changed_at(x, seed, *where):
    changed = x.clone()
    changed[where] += normal(seed, *changed[where].shape)
    return changed


@given(seed=seeds, order=st.permutations(range(12)))
def test_spatial_attention_is_blind_to_where_pixels_stand(spatial, seed, order):
    x = normal(seed, 2, WIDTH, 3, 3, 4)

    def shuffled(x):
        return rearrange(rearrange(x, "B C T H W -> B C T (H W)")[..., order], "B C T (H W) -> B C T H W", H=3)

    torch.testing.assert_close(spatial(shuffled(x)), shuffled(spatial(x)), **EXACT)


@given(seed=seeds, frame=st.integers(0, 2))
def test_spatial_attention_stays_within_a_frame_and_reaches_all_of_it(spatial, seed, frame):
    x = normal(seed, 2, WIDTH, 3, 3, 4)
    difference = spatial(changed_at(x, seed + 1, ..., frame, 0, 0)) - spatial(x)
    touched = difference.abs().amax(dim=(0, 1)) > 1e-9
    assert touched[frame].all()
    assert touched.sum() == 12


def alone():
    return AxisAttention(WIDTH, WITHIN_FRAMES, causal=False)


def of_mid_block():
    return MidBlock(WIDTH).spatial_attention


@pytest.mark.parametrize("build", [alone, of_mid_block])
def test_spatial_attention_of_a_frame_is_softmax_attention_over_its_pixels(build):
    spatial = drawn_weights(build())
    x = normal(0, 2, WIDTH, 3, 3, 4)
    y = spatial.norm(x)
    q, k, v = (rearrange(to(y), "B C T H W -> B T (H W) C") for to in (spatial.to_q, spatial.to_k, spatial.to_v))
    mixed = rearrange(attention.softmax_attention(q, k, v), "B T (H W) C -> B C T H W", H=3)
    torch.testing.assert_close(spatial(x), x + spatial.to_out(mixed), **EXACT)


@given(seed=seeds, frame=st.integers(0, 3))
def test_temporal_attention_never_looks_ahead_and_sees_all_that_was(temporal, seed, frame):
    """Exactly. The norm goes over whole frames, so a change reaches every pixel of the frames from its own on."""
    x = normal(seed, 2, WIDTH, 4, 3, 2)
    difference = temporal(changed_at(x, seed + 1, slice(None), slice(None), frame)) - temporal(x)
    by_frame = difference.abs().amax(dim=(0, 1, 3, 4))
    assert by_frame[:frame].sum() == 0
    assert (by_frame[frame:] > 1e-9).all()


@given(seed=seeds, order=st.permutations(range(6)))
def test_temporal_attention_treats_every_pixel_alike(temporal, seed, order):
    x = normal(seed, 2, WIDTH, 4, 6, 1)
    torch.testing.assert_close(temporal(x[..., order, :]), temporal(x)[..., order, :], **EXACT)


def test_temporal_attention_of_one_pixel_is_softmax_attention_over_what_was(temporal):
    x = normal(0, 1, WIDTH, 4, 3, 2)
    y = temporal.norm(x)
    q, k, v = (to(y)[0, :, :, 1, 1].T for to in (temporal.to_q, temporal.to_k, temporal.to_v))
    seen = [
        attention.softmax_attention(q[None, None, t : t + 1], k[None, None, : t + 1], v[None, None, : t + 1])
        for t in range(4)
    ]
    mixed = torch.cat(seen, dim=2)[0, 0].T
    out = x[0, :, :, 1, 1] + temporal.to_out(mixed[None, :, :, None, None])[0, :, :, 0, 0]
    torch.testing.assert_close(temporal(x)[0, :, :, 1, 1], out, **EXACT)


@given(seed=seeds)
def test_spatial_comes_before_temporal_between_two_blocks(seed):
    mid = drawn_weights(MidBlock(WIDTH), seed)
    x = normal(seed, 1, WIDTH, 2, 2, 2)
    expected = mid.resnet_out(mid.temporal_attention(mid.spatial_attention(mid.resnet_in(x))))
    assert torch.equal(mid(x), expected)
