import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_ref.checkpoint import config_from_json
from cosmos_ref.config import PRESETS, TOKENIZERS
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from tests.strategies import normal, seeds
from tests.tokenizer.small import SMALL, drawn_tokenizer, drawn_video

CLOSE = dict(rtol=0, atol=1e-10)  # float64 rounding through some forty layers of numbers near one


@pytest.fixture(scope="module", params=SMALL)
def tokenizer(request):
    return drawn_tokenizer(SMALL[request.param])


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_full_tokenizers_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        cv8, cv4 = ContinuousTokenizer(TOKENIZERS["CV8x8x8"]), ContinuousTokenizer(TOKENIZERS["CV4x8x8"])
    parts = [cv8.encoder, cv8.decoder, cv8.quant_conv, cv8.post_quant_conv, cv8]
    assert [parameters(part) for part in parts] == [42_914_592, 62_738_560, 272, 272, 105_653_696]
    assert (cv8.temporal_factor, cv8.spatial_factor) == (8, 8)
    assert (cv4.temporal_factor, cv4.spatial_factor) == (4, 8)


@settings(max_examples=6)
@given(seed=seeds, data=st.data())
@torch.no_grad()
def test_changing_a_frame_leaves_earlier_latents_untouched(tokenizer, seed, data):
    """Exactly: not one bit. And it does reach its own latent."""
    factor = tokenizer.temporal_factor
    frame = data.draw(st.integers(0, 2 * factor))
    video = drawn_video(seed, 1 + 2 * factor, width=16)
    changed = video.clone()
    changed[:, :, frame:] = drawn_video(seed + 1, 1 + 2 * factor - frame, width=16)
    difference = (tokenizer.encode(changed) - tokenizer.encode(video)).abs().amax(dim=(0, 1, 3, 4))
    own = (frame + factor - 1) // factor
    assert difference[:own].sum() == 0
    assert difference[own] > 1e-4


@settings(max_examples=6)
@given(seed=seeds, latent=st.integers(0, 2))
@torch.no_grad()
def test_changing_a_latent_leaves_the_frames_before_its_own_untouched(tokenizer, seed, latent):
    factor = tokenizer.temporal_factor
    latents = normal(seed, 1, 5, 3, 2, 2)
    changed = latents.clone()
    changed[:, :, latent:] = normal(seed + 1, 1, 5, 3 - latent, 2, 2)
    difference = (tokenizer.decode(changed) - tokenizer.decode(latents)).abs().amax(dim=(0, 1, 3, 4))
    own = max(0, 1 + (latent - 1) * factor)
    assert difference[:own].sum() == 0
    assert difference[own] > 1e-6


@torch.no_grad()
def test_an_image_is_a_clip_of_one_frame(tokenizer):
    """Alone it has the latents and the pixels it has at the head of a clip."""
    video = drawn_video(0, 1 + tokenizer.temporal_factor)
    latents = tokenizer.encode(video)
    torch.testing.assert_close(tokenizer.encode(video[:, :, :1]), latents[:, :, :1], **CLOSE)
    torch.testing.assert_close(tokenizer.decode(latents[:, :, :1]), tokenizer.decode(latents)[:, :, :1], **CLOSE)


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other(tokenizer):
    video = drawn_video(0, 1 + tokenizer.temporal_factor, clips=2)
    alone = tokenizer.encode(video[1:])
    torch.testing.assert_close(tokenizer.encode(video)[1:], alone, **CLOSE)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(video))[1:], tokenizer.decode(alone), **CLOSE)


@pytest.mark.parametrize("more", [0, 1, 2])
@torch.no_grad()
def test_a_decoded_clip_is_as_long_and_large_as_the_encoded_one(tokenizer, more):
    video = drawn_video(0, 1 + more * tokenizer.temporal_factor)
    latents = tokenizer.encode(video)
    assert latents.shape == (1, 5, 1 + more, 2, 3)
    assert tokenizer.decode(latents).shape == video.shape


@torch.no_grad()
def test_latents_are_standardised_channel_by_channel_and_frame_by_frame(tokenizer):
    """The clip has one latent frame more than there are statistics: it takes the last."""
    video = drawn_video(0, 1 + 3 * tokenizer.temporal_factor, height=8, width=8)
    plain = drawn_tokenizer(SMALL["CV8x8x8" if tokenizer.temporal_factor == 8 else "CV4x8x8"])
    plain.mean.zero_()
    plain.std.fill_(1)
    raw, latents = plain.encode(video), tokenizer.encode(video)
    for channel in range(5):
        for frame in range(4):
            mean, std = (x[channel, min(frame, 2)] for x in (tokenizer.mean, tokenizer.std))
            expected = (raw[:, channel, frame] - mean) / std
            torch.testing.assert_close(latents[:, channel, frame], expected, **CLOSE)
    torch.testing.assert_close(tokenizer.decode(latents), plain.decode(raw), **CLOSE)


def test_a_new_tokenizer_leaves_latents_as_they_are():
    tokenizer = ContinuousTokenizer(SMALL["CV8x8x8"])
    assert (tokenizer.mean == 0).all() and (tokenizer.std == 1).all()


@torch.no_grad()
def test_decoded_pixels_stay_in_range_whatever_the_network_says():
    tokenizer = drawn_tokenizer(SMALL["CV4x8x8"])
    tokenizer.decoder.conv_out.time.weight.mul_(1000)
    video = tokenizer.decode(normal(0, 1, 5, 1, 2, 2))
    assert video.min() == -1 and video.max() == 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 16, 16), "a clip of 2 frames does not fit"),
        ((0, 16, 16), "a clip of 0 frames does not fit"),
        ((1, 12, 16), "height 12 does not fit: it must be a multiple of 8"),
        ((1, 16, 20), "width 20 does not fit: it must be a multiple of 8"),
        ((1, 16, 0), "width 0 does not fit: it must be a multiple of 8"),
    ],
)
def test_a_clip_that_does_not_fit_is_refused(tokenizer, shape, message):
    with pytest.raises(UserError, match=message):
        tokenizer.encode(torch.zeros(1, 3, *shape).double())


def test_five_frames_fit_a_factor_of_four_but_not_of_eight():
    with pytest.raises(UserError, match=r"5 frames.*1 \+ k \* 8, for example 1 or 9"):
        drawn_tokenizer(SMALL["CV8x8x8"]).encode(drawn_video(0, 5))
    assert drawn_tokenizer(SMALL["CV4x8x8"]).encode(drawn_video(0, 5)).shape[2] == 2


def test_latents_of_another_tokenizer_are_refused(tokenizer):
    with pytest.raises(UserError, match="16 channels do not fit: this tokenizer has 5"):
        tokenizer.decode(torch.zeros(1, 16, 1, 2, 2).double())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("strides", [[2, 2]], r"strides \(\(2, 2\),\) must be two fewer"),
        ("strides", [[2, 2], [1, 1], [1, 1]], "must be two fewer"),
        ("strides", [[4, 2], [1, 1]], r"strides \(\(4, 2\), \(1, 1\)\) .* 1 or 2"),
        ("strides", [[2, 2], [1, 0]], "1 or 2"),
        ("encoder_widths", [128, 256, 512], r"decoder_widths .* as many as encoder_widths \(128, 256, 512\)"),
        ("decoder_widths", [512, 512, 0, 256], r"decoder_widths is \(512, 512, 0, 256\); it must be above 0"),
        ("encoder_widths", [], r"encoder_widths is \(\)"),
        ("patch_levels", 0, "patch_levels is 0"),
        ("num_blocks", 0, "num_blocks is 0"),
        ("channels", -16, "channels is -16"),
        ("latent_frames", 0, "latent_frames is 0"),
        ("fsq_levels", [8, 1], r"fsq_levels \(8, 1\) .* at least 2"),
        ("fsq_levels", [8, -5], "at least 2"),
    ],
)
def test_an_altered_configuration_that_nothing_can_be_built_from_is_refused(field, value, message):
    config = json.loads(json.dumps(dataclasses.asdict(PRESETS["7b"])))
    assert config_from_json(config, "here") == PRESETS["7b"]
    config["tokenizer"][field] = value
    with pytest.raises(UserError, match=message):
        config_from_json(config, "here")


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_in_bfloat16_a_tokenizer_says_nearly_the_same(name):
    """bfloat16 rounds to 3 digits in each of some forty layers; the CPU must have every operation in it."""
    tokenizer = drawn_tokenizer(SMALL[name])
    video = drawn_video(1, 1 + tokenizer.temporal_factor)
    latents = tokenizer.encode(video)
    decoded = tokenizer.decode(latents)
    rounded = tokenizer.to(torch.bfloat16)
    assert (rounded.encode(video.bfloat16()) - latents).abs().mean() < 0.05 * latents.abs().mean()
    assert (rounded.decode(latents.bfloat16()) - decoded).abs().mean() < 0.05 * decoded.abs().mean()
