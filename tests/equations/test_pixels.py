import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import pixels
from tests.impostors import impostor
from tests.strategies import normal, seeds

ALL = torch.arange(256, dtype=torch.uint8)

# --- from_bytes


@pytest.mark.verifies("pixels.from_bytes", by="point")
def test_black_white_and_a_fifth():
    values = pixels.from_bytes(torch.tensor([0, 51, 255], dtype=torch.uint8))
    torch.testing.assert_close(values, torch.tensor([-1.0, -0.6, 1.0]), rtol=0, atol=1e-7)


@pytest.mark.verifies("pixels.from_bytes")
@given(st.integers(0, 255))
def test_a_negative_is_the_video_with_the_sign_turned(byte):
    """Grey is the middle, and nothing prefers dark to bright."""
    value, negative = pixels.from_bytes(torch.tensor([byte, 255 - byte], dtype=torch.uint8))
    assert abs(value + negative) < 2e-7


@pytest.mark.verifies("pixels.from_bytes")
def test_the_whole_range_is_used_and_nothing_beyond():
    values = pixels.from_bytes(ALL)
    assert [values.min(), values.max()] == [-1, 1]


@impostor("pixels.from_bytes", "over 128, as NVIDIA's inference reads given frames: white is 0.992")
def bytes_over_128(pixels):
    return pixels / 128 - 1


@impostor("pixels.from_bytes", "from 0 to 1, as image libraries have it")
def bytes_from_zero_to_one(pixels):
    return pixels / 255


@impostor("pixels.from_bytes", "over 127: signed bytes")
def bytes_over_127(pixels):
    return pixels / 127 - 1


# --- to_bytes


@pytest.mark.verifies("pixels.to_bytes", by="point")
def test_bytes_of_six_numbers_by_hand():
    video = torch.tensor([-1.0, -0.6, 0.98, 1.0, 1.7, -4.0])
    assert pixels.to_bytes(video).tolist() == [0, 51, 252, 255, 255, 0]  # 1.98 * 127.5 = 252.45


@pytest.mark.verifies("pixels.to_bytes", "pixels.from_bytes")
def test_every_byte_survives_the_way_there_and_back():
    back = pixels.to_bytes(pixels.from_bytes(ALL))
    assert back.dtype == torch.uint8
    assert torch.equal(back, ALL)


@pytest.mark.verifies("pixels.to_bytes")
@given(seeds)
def test_no_byte_is_nearer(seed):
    """Half a grey level is the largest error, and bytes come out in the order of the numbers."""
    video = normal(seed, 50).tanh()
    error = pixels.to_bytes(video).double() / 127.5 - 1 - video
    assert error.abs().max() <= 0.5 / 127.5 + 1e-7  # computed in float64, as the video is
    assert (pixels.to_bytes(video.sort()[0]).int().diff() >= 0).all()


@pytest.mark.verifies("pixels.to_bytes")
@given(st.floats(1, 100))
def test_brighter_than_white_is_white_and_darker_than_black_is_black(value):
    assert pixels.to_bytes(torch.tensor([value, -value])).tolist() == [255, 0]


@pytest.mark.verifies("pixels.to_bytes")
@given(seeds, st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_costs_no_more_than_it_holds(seed, dtype):
    video = normal(seed, 50).tanh().to(dtype)
    assert torch.equal(pixels.to_bytes(video), pixels.to_bytes(video.double()))


@impostor("pixels.to_bytes", "cut off instead of rounded: half a level too dark")
def bytes_cut_off(video):
    return ((video.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)


@impostor("pixels.to_bytes", "not clamped: what is brighter than white starts again at black")
def bytes_that_wrap_around(video):
    return (((video + 1) * 127.5).round() % 256).to(torch.uint8)


@impostor("pixels.to_bytes", "times 128, the inverse of NVIDIA's inference")
def bytes_times_128(video):
    return ((video.clamp(-1, 1) + 1) * 128).round().clamp(max=255).to(torch.uint8)


@impostor("pixels.to_bytes", "in the precision of the video: in bfloat16 bright values lose a level")
def bytes_in_low_precision(video):
    return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def test_no_pixels_are_no_pixels():
    assert pixels.from_bytes(ALL[:0]).shape == pixels.to_bytes(torch.zeros(0)).shape == (0,)
