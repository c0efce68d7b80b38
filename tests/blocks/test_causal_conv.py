import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cosmos_ref.blocks.causal_conv import (
    CausalConv3d,
    DoubleSpace,
    DoubleTime,
    FactorizedConv3d,
    HalveSpace,
    HalveTime,
    downsample,
    upsample,
)
from tests.strategies import normal, seeds

EXACT = dict(rtol=0, atol=1e-12)  # float64 rounding of sums of a few dozen numbers near one
WIDTH = 3


def drawn(module, seed=0):
    """The module in float64, every weight a unit Gaussian."""
    module = module.double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(seed + i, *parameter.shape))
    return module


def silenced(module):
    """The module in float64 with its convolution at zero: what is left is the path around it."""
    module = module.double()
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def one_tap(module, tap):
    """The module whose convolution only takes the pixel at `tap` of its kernel, channel by channel."""
    silenced(module)
    with torch.no_grad():
        module.conv.weight[:, :, tap[0], tap[1], tap[2]] = torch.eye(WIDTH)
    return module


@pytest.mark.parametrize(
    ("module", "own"),
    [
        (drawn(CausalConv3d(WIDTH, 2, (3, 3, 3))), lambda frame: frame),
        (drawn(FactorizedConv3d(WIDTH, 2)), lambda frame: frame),
        (drawn(HalveTime(WIDTH)), lambda frame: (frame + 1) // 2),
        (drawn(DoubleTime(WIDTH)), lambda frame: max(0, 2 * frame - 1)),
        (drawn(downsample(WIDTH, (2, 2))), lambda frame: (frame + 1) // 2),
        (drawn(upsample(WIDTH, (2, 2))), lambda frame: max(0, 2 * frame - 1)),
    ],
    ids=["causal", "factorized", "halve", "double", "downsample", "upsample"],
)
@given(frame=st.integers(0, 6), seed=seeds)
def test_a_frame_reaches_its_own_result_and_none_before(module, own, frame, seed):
    x = normal(seed, 2, WIDTH, 7, 4, 4)
    changed = x.clone()
    changed[:, :, frame:] = normal(seed + 1, 2, WIDTH, 7 - frame, 4, 4)
    difference = (module(changed) - module(x)).abs().amax(dim=(0, 1, 3, 4))
    assert difference[: own(frame)].sum() == 0
    assert difference[own(frame)] > 1e-6


@given(seed=seeds)
def test_before_the_first_frame_it_stood_still(seed):
    """So a still clip stays still, which zeros in front would not allow."""
    x = normal(seed, 1, WIDTH, 1, 4, 4).expand(-1, -1, 5, -1, -1)
    y = drawn(CausalConv3d(WIDTH, 2, (3, 3, 3)))(x)
    torch.testing.assert_close(y, y[:, :, :1].expand_as(y), **EXACT)


def test_around_a_frame_there_are_zeros():
    """A kernel of ones counts the neighbours that a pixel of ones has."""
    conv = silenced(CausalConv3d(1, 1, (1, 3, 3)))
    nn.init.ones_(conv.weight)
    expected = torch.tensor([[4.0, 6, 4], [6, 9, 6], [4, 6, 4]]).double()
    assert torch.equal(conv(torch.ones(1, 1, 1, 3, 3).double())[0, 0, 0], expected)


@given(seed=seeds)
def test_a_factorized_convolution_is_the_full_one_with_the_product_of_the_kernels(seed):
    factorized = drawn(FactorizedConv3d(WIDTH, 4), seed)
    full = CausalConv3d(WIDTH, 4, (3, 3, 3)).double()
    space, time = factorized.space, factorized.time
    with torch.no_grad():
        full.weight.copy_(torch.einsum("omt,mihw->oithw", time.weight[..., 0, 0], space.weight[:, :, 0]))
        full.bias.copy_(time.bias + time.weight.sum(dim=(2, 3, 4)) @ space.bias)
    x = normal(seed + 9, 1, WIDTH, 4, 3, 5)
    torch.testing.assert_close(factorized(x), full(x), rtol=0, atol=1e-11)  # sums of a hundred products


@pytest.mark.parametrize(("halve", "double"), [(HalveTime, DoubleTime), (HalveSpace, DoubleSpace)])
@given(seed=seeds)
def test_around_the_convolutions_halving_undoes_doubling(halve, double, seed):
    x = normal(seed, 1, WIDTH, 4, 3, 5)
    torch.testing.assert_close(silenced(halve(WIDTH))(silenced(double(WIDTH))(x)), x, **EXACT)


def test_around_the_convolutions_pixels_and_frames_are_averaged():
    x = normal(0, 1, WIDTH, 5, 4, 6)
    space, time = silenced(HalveSpace(WIDTH))(x), silenced(HalveTime(WIDTH))(x)
    torch.testing.assert_close(space[..., 1, 2], x[..., 2:4, 4:6].mean(dim=(3, 4)), **EXACT)
    assert torch.equal(time[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(time[:, :, 2], (x[:, :, 3] + x[:, :, 4]) / 2, **EXACT)


def test_the_kernel_that_halves_space_begins_at_the_pixel_and_meets_zeros_behind_the_edge():
    x = normal(0, 1, WIDTH, 1, 4, 4)
    around = silenced(HalveSpace(WIDTH))(x)
    first = one_tap(HalveSpace(WIDTH), (0, 0, 0))(x) - around
    last = one_tap(HalveSpace(WIDTH), (0, 2, 2))(x) - around
    torch.testing.assert_close(first, x[..., ::2, ::2], **EXACT)
    torch.testing.assert_close(last[..., 0, 0], x[..., 2, 2], **EXACT)
    assert last[..., 1, :].abs().max() < 1e-12 and last[..., :, 1].abs().max() < 1e-12


def test_the_kernel_that_halves_time_ends_at_the_frame_and_meets_the_first_frame_before_the_clip():
    x = normal(0, 1, WIDTH, 5, 2, 2)
    around = silenced(HalveTime(WIDTH))(x)
    oldest = one_tap(HalveTime(WIDTH), (0, 0, 0))(x) - around
    newest = one_tap(HalveTime(WIDTH), (2, 0, 0))(x) - around
    torch.testing.assert_close(oldest, x[:, :, [0, 0, 2]], **EXACT)
    torch.testing.assert_close(newest, x[:, :, [0, 2, 4]], **EXACT)


@pytest.mark.parametrize("step", [downsample, upsample])
def test_a_level_without_stride_is_left_as_it_is(step):
    x = normal(0, 1, WIDTH, 3, 4, 4)
    assert step(WIDTH, (1, 1))(x) is x
    assert step(WIDTH, (1, 2))(x.float()).shape[2] == 3


def test_an_image_keeps_its_one_frame_through_both():
    x = normal(0, 1, WIDTH, 1, 4, 4)
    assert drawn(upsample(WIDTH, (2, 2)))(drawn(downsample(WIDTH, (2, 2)))(x)).shape == x.shape


@pytest.mark.parametrize("kernel", [(1, 1, 3), (1, 3, 1), (1, 5, 3), (1, 3, 5)])
def test_a_kernel_in_space_has_zeros_on_all_sides_for_a_frame_of_the_same_size(kernel):
    layer = drawn(CausalConv3d(WIDTH, WIDTH, kernel))
    x = normal(0, 1, WIDTH, 2, 5, 6)
    same = nn.functional.conv3d(x, layer.weight, layer.bias, padding="same")
    torch.testing.assert_close(layer(x), same, **EXACT)


@pytest.mark.parametrize("step, taps", [(HalveSpace, 9), (HalveTime, 3), (DoubleTime, 3), (DoubleSpace, 9)])
def test_a_step_looks_at_three_frames_or_three_by_three_pixels(step, taps):
    assert sum(parameter.numel() for parameter in step(WIDTH).parameters()) == taps * WIDTH**2 + WIDTH


@given(seeds)
def test_doubling_repeats_frames_and_pixels_and_adds_what_the_convolution_makes_of_them(seed):
    x = normal(seed, 1, WIDTH, 3, 2, 4)
    in_time, in_space = drawn(DoubleTime(WIDTH), seed), drawn(DoubleSpace(WIDTH), seed)
    frames = x.repeat_interleave(2, dim=2)[:, :, 1:]  # the first stands alone
    pixels = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    torch.testing.assert_close(in_time(x), frames + in_time.conv(frames), **EXACT)
    torch.testing.assert_close(in_space(x), pixels + in_space.conv(pixels), **EXACT)


@pytest.mark.parametrize("build", [downsample, upsample])
@pytest.mark.parametrize("stride, taps", [((1, 1), []), ((2, 1), [3, 1]), ((1, 2), [9, 1]), ((2, 2), [3, 9, 1])])
def test_whatever_changes_the_size_ends_by_mixing_the_channels_of_each_pixel(build, stride, taps):
    counted = sum(parameter.numel() for parameter in build(WIDTH, stride).parameters())
    assert counted == sum(tap * WIDTH**2 + WIDTH for tap in taps)
