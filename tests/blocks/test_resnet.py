import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cosmos_ref.blocks.causal_conv import downsample
from cosmos_ref.blocks.resnet import FrameNorm, ResnetBlock, ResnetLevel
from tests.strategies import normal, seeds
from tests.tokenizer.small import drawn_weights

EXACT = dict(rtol=0, atol=1e-11)  # float64 rounding of sums of a few hundred numbers near one


@given(seed=seeds, frame=st.integers(0, 2))
def test_a_frame_is_normalised_by_itself_over_all_its_channels(seed, frame):
    norm = FrameNorm(6).double()
    x = 3 + 5 * normal(seed, 2, 6, 3, 4, 5)
    one = x[1, :, frame]
    expected = (one - one.mean()) / (one.var(correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x)[1, :, frame], expected, **EXACT)


def test_the_norm_scales_and_shifts_channel_by_channel():
    norm, plain = drawn_weights(FrameNorm(6)), FrameNorm(6).double()
    x = normal(0, 2, 6, 3, 4, 5)
    weight, bias = (value[:, None, None, None] for value in (norm.weight, norm.bias))
    torch.testing.assert_close(norm(x), plain(x) * weight + bias, **EXACT)


def test_a_block_whose_last_convolution_is_silent_leaves_its_input():
    block = drawn_weights(ResnetBlock(6, 6))
    nn.init.zeros_(block.conv2.time.weight)
    nn.init.zeros_(block.conv2.time.bias)
    x = normal(0, 1, 6, 3, 4, 5)
    assert torch.equal(block(x), x)


def test_a_block_as_wide_behind_as_before_has_nothing_to_learn_in_its_shortcut():
    with torch.device("meta"):
        block = ResnetBlock(int("512"), int("512"))  # two numbers that are equal, and not one object
    assert not list(block.shortcut.parameters())


@given(seed=seeds)
def test_a_block_is_norm_swish_convolution_twice_around_a_shortcut(seed):
    block = drawn_weights(ResnetBlock(6, 4), seed)
    x = normal(seed, 1, 6, 3, 4, 5)
    y = block.norm1(x)
    y = block.norm2(block.conv1(y * torch.sigmoid(y)))
    y = block.conv2(y * torch.sigmoid(y))
    shortcut = nnf.linear(x.movedim(1, -1), block.shortcut.weight[..., 0, 0, 0], block.shortcut.bias).movedim(-1, 1)
    torch.testing.assert_close(block(x), shortcut + y, **EXACT)


@given(seed=seeds, scale=st.floats(0.5, 50))
def test_what_a_block_adds_does_not_depend_on_how_large_its_input_is(seed, scale):
    block = drawn_weights(ResnetBlock(6, 6), seed)
    x = normal(seed, 1, 6, 3, 4, 5)
    # eps 1e-6 against a variance of one (a quarter at the smallest scale).
    torch.testing.assert_close(block(scale * x) - scale * x, block(x) - x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_a_level_widens_in_its_first_block_then_resamples(num_blocks):
    level = drawn_weights(ResnetLevel(4, 6, num_blocks, downsample(6, (2, 2))))
    x = normal(0, 1, 4, 3, 4, 4)
    y = x
    for block in level.resnets:
        y = block(y)
    assert [block.conv1.space.in_channels for block in level.resnets] == [4, 6, 6][:num_blocks]
    assert torch.equal(level(x), level.resample(y))
