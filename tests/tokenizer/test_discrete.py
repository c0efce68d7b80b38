import dataclasses

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_ref.blocks.causal_conv import Past
from cosmos_ref.config import TOKENIZERS, HaarPCAConfig
from cosmos_ref.equations.quantization import fsq_bound, fsq_index, fsq_quantize
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer.build import build_tokenizer
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.discrete import FSQ_MARGIN, DiscreteTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from tests.strategies import normal, seeds
from tests.tokenizer.small import SMALL, drawn_video, drawn_weights

LEVELS = (8, 6, 5)
_FEW = dict(encoder_widths=(6, 8, 10, 12), decoder_widths=(14, 10, 8, 6), channels=5, num_blocks=1, fsq_levels=LEVELS)
DISCRETE = {name: dataclasses.replace(TOKENIZERS[name], **_FEW) for name in ("DV4x8x8", "DV8x16x16")}


def drawn(config, seed=0):
    """All weights drawn, decoded videos well inside [-1, 1]."""
    tokenizer = drawn_weights(DiscreteTokenizer(config), seed)
    with torch.no_grad():
        tokenizer.quant_conv.weight.mul_(2)  # so that the outer levels are used too
        tokenizer.decoder.conv_out.time.weight.mul_(0.01)  # 64 bands add up in a pixel
        tokenizer.decoder.conv_out.time.bias.mul_(0.01)
    return tokenizer


@pytest.fixture(scope="module", params=DISCRETE)
def tokenizer(request):
    return drawn(DISCRETE[request.param])


def clip(tokenizer, seed, frames, clips=1):
    return drawn_video(seed, frames, 2 * tokenizer.spatial_factor, 3 * tokenizer.spatial_factor, clips)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# --- sizes


@pytest.mark.parametrize("name", ["DV4x8x8", "DV8x16x16"])
def test_a_discrete_tokenizer_is_the_continuous_one_but_for_two_pointwise_convolutions(name):
    config = TOKENIZERS[name]
    with torch.device("meta"):
        discrete = DiscreteTokenizer(config)
        continuous = ContinuousTokenizer(dataclasses.replace(config, fsq_levels=()))
    ours, other = ({n: p.shape for n, p in module.named_parameters()} for module in (discrete, continuous))
    changed = [name for name in ours if ours[name] != other[name]]
    assert ours.keys() == other.keys()
    assert changed == ["quant_conv.weight", "quant_conv.bias", "post_quant_conv.weight"]
    C = config.channels
    assert parameters(continuous) - parameters(discrete) == 2 * (C * C + C) - (C * 6 + 6) - (6 * C + C)


def test_the_full_tokenizers_have_these_numbers_of_parameters():
    """DV8x16x16 halves the frame once more than CV8x8x8, at width 512: a convolution over 3 x 3 and one over 1 x 1.

    DV4x8x8 has 256 channels where CV4x8x8 has 16: what the encoder ends and the decoder begins with, and the maps
    between those channels and the six numbers of a code.
    """
    with torch.device("meta"):
        dv4, dv8 = DiscreteTokenizer(TOKENIZERS["DV4x8x8"]), DiscreteTokenizer(TOKENIZERS["DV8x16x16"])
        cv4, cv8 = ContinuousTokenizer(TOKENIZERS["CV4x8x8"]), ContinuousTokenizer(TOKENIZERS["CV8x8x8"])
    halving = (9 * 512 * 512 + 512) + (512 * 512 + 512)
    assert parameters(dv8) == parameters(cv8) + 2 * halving - 330 == 110_898_294
    ends = {c: (9 * 512 * c + c) + (3 * c * c + c) + 9 * c * 512 for c in (16, 256)}
    maps = (256 * 6 + 6) + (6 * 256 + 256) - 2 * (16 * 16 + 16)
    assert parameters(dv4) == parameters(cv4) + ends[256] - ends[16] + maps == 112_619_766
    assert (dv4.temporal_factor, dv4.spatial_factor, dv4.codebook_size) == (4, 8, 64_000)
    assert (dv8.temporal_factor, dv8.spatial_factor, dv8.codebook_size) == (8, 16, 64_000)


# --- encode and decode


@pytest.mark.parametrize("more", [0, 1, 2])
@torch.no_grad()
def test_a_clip_becomes_one_number_of_the_vocabulary_a_cell(tokenizer, more):
    video = clip(tokenizer, 0, 1 + more * tokenizer.temporal_factor, clips=2)
    indices = tokenizer.encode(video)
    assert indices.shape == (2, 1 + more, 2, 3)
    assert indices.dtype == torch.int64
    assert indices.min() >= 0 and indices.max() < 8 * 6 * 5 == tokenizer.codebook_size
    assert len(indices.unique()) > 2 + more  # not one number for all
    assert tokenizer.decode(indices).shape == video.shape


@torch.no_grad()
def test_the_decoder_gets_bit_by_bit_the_codes_it_was_trained_on(tokenizer):
    video = clip(tokenizer, 1, 1 + tokenizer.temporal_factor)
    assert torch.equal(tokenizer.decode(tokenizer.encode(video)), tokenizer.decode_codes(tokenizer.quantize(video)))


@settings(max_examples=6)
@given(seed=seeds, data=st.data())
@torch.no_grad()
def test_changing_a_frame_leaves_earlier_numbers_untouched(tokenizer, seed, data):
    factor = tokenizer.temporal_factor
    frame = data.draw(st.integers(0, 2 * factor))
    video = clip(tokenizer, seed, 1 + 2 * factor)
    changed = video.clone()
    changed[:, :, frame:] = clip(tokenizer, seed + 1, 1 + 2 * factor - frame)
    own = (frame + factor - 1) // factor
    assert torch.equal(tokenizer.encode(changed)[:, :own], tokenizer.encode(video)[:, :own])
    if frame == max(0, 1 + (own - 1) * factor):  # the whole cell is new, so that some number of it is
        assert not torch.equal(tokenizer.encode(changed)[:, own], tokenizer.encode(video)[:, own])


@settings(max_examples=6)
@given(seed=seeds, cell=st.integers(0, 2))
@torch.no_grad()
def test_changing_a_number_leaves_the_frames_before_its_own_untouched(tokenizer, seed, cell):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(tokenizer.codebook_size, (1, 3, 2, 2), generator=generator)
    changed = indices.clone()
    changed[:, cell, 0, 0] = (changed[:, cell, 0, 0] + 1) % tokenizer.codebook_size
    difference = (tokenizer.decode(changed) - tokenizer.decode(indices)).abs().amax(dim=(0, 1, 3, 4))
    own = max(0, 1 + (cell - 1) * tokenizer.temporal_factor)
    assert difference[:own].sum() == 0
    assert difference[own] > 1e-9


@torch.no_grad()
def test_an_image_is_a_clip_of_one_frame(tokenizer):
    video = clip(tokenizer, 2, 1 + tokenizer.temporal_factor)
    indices = tokenizer.encode(video)
    assert torch.equal(tokenizer.encode(video[:, :, :1]), indices[:, :1])
    image = tokenizer.decode(indices[:, :1])
    # float64 rounding through some forty layers
    torch.testing.assert_close(image, tokenizer.decode(indices)[:, :, :1], rtol=0, atol=1e-10)


@torch.no_grad()
def test_in_chunks_a_clip_has_the_numbers_and_the_frames_it_has_as_a_whole(tokenizer):
    factor = tokenizer.temporal_factor
    video = clip(tokenizer, 3, 1 + 3 * factor)
    indices = tokenizer.encode(video)
    past = Past()
    chunks = [tokenizer.encode(chunk, past) for chunk in video.split([1 + factor, factor, factor], dim=2)]
    assert torch.equal(torch.cat(chunks, dim=1), indices)
    past = Past()
    frames = [tokenizer.decode(chunk, past) for chunk in indices.split([1, 2, 1], dim=1)]
    torch.testing.assert_close(torch.cat(frames, dim=2), tokenizer.decode(indices), rtol=0, atol=1e-10)


@torch.no_grad()
def test_decoded_pixels_stay_in_range_whatever_the_network_says():
    tokenizer = drawn(DISCRETE["DV4x8x8"])
    tokenizer.decoder.conv_out.time.weight.mul_(1000)
    video = tokenizer.decode(torch.tensor([[[[0, 1], [100, 239]]]]))
    assert video.min() == -1 and video.max() == 1


# --- training and precision


def test_codes_bring_the_encoder_the_gradient_of_the_bound(tokenizer):
    """What comes back to the pixels is as if nothing had been rounded."""
    video = clip(tokenizer, 4, 1 + tokenizer.temporal_factor).requires_grad_()
    codes = tokenizer.quantize(video)
    direction = normal(5, *codes.shape)
    (gradient,) = torch.autograd.grad((codes * direction).sum(), video)
    z = rearrange(tokenizer.quant_conv(tokenizer.encoder(video)), "B D t h w -> B t h w D")
    smooth = fsq_bound(z, LEVELS, FSQ_MARGIN) / torch.tensor([4.0, 3, 2])
    smooth = rearrange(smooth, "B t h w D -> B D t h w")
    (expected,) = torch.autograd.grad((smooth * direction).sum(), video)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=0)
    assert (codes - smooth).abs().max() <= 0.5 / 2 + 1e-12  # half a level, where five lie between -1 and 1


@torch.no_grad()
def test_numbers_in_bfloat16_are_quantized_in_float32():
    """Bfloat16 has steps of up to 1/64 of a level: computed in it, numbers near an edge would cross it."""

    class Spoken(torch.nn.Module):
        def forward(self, video, past=None):
            return z

    tokenizer = DiscreteTokenizer(DISCRETE["DV4x8x8"]).bfloat16()
    z = normal(6, 1, 3, 1, 100, 100).bfloat16()
    tokenizer.encoder, tokenizer.quant_conv = Spoken(), torch.nn.Identity()
    indices = tokenizer.encode(torch.zeros(1, 3, 1, 8, 8).bfloat16())
    last = rearrange(z, "B D t h w -> B t h w D")
    assert torch.equal(indices, fsq_index(fsq_quantize(last.float(), LEVELS, FSQ_MARGIN), LEVELS))
    assert tokenizer.quantize(torch.zeros(1, 3, 1, 8, 8).bfloat16()).dtype == torch.bfloat16


# --- what is refused


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([[[[0, 240]]]]), "indices from 0 to 240 do not fit: the codes of this tokenizer are 0 to 239"),
        (torch.tensor([[[[-1, 3]]]]), "indices from -1 to 3 do not fit"),
        (torch.zeros(1, 1, 2, 2), r"indices of type torch\.float32 do not fit: they must be integers"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.bool), r"indices of type torch\.bool"),
    ],
)
def test_numbers_of_no_code_are_refused(tokenizer, indices, message):
    with pytest.raises(UserError, match=message):
        tokenizer.decode(indices)


@torch.no_grad()
def test_numbers_may_come_in_any_integer_type(tokenizer):
    indices = torch.tensor([[[[0, 120], [7, 100]]]])
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(tokenizer.decode(indices.to(dtype)), tokenizer.decode(indices))


def test_a_clip_that_does_not_fit_is_refused():
    tokenizer = drawn(DISCRETE["DV8x16x16"])
    with pytest.raises(UserError, match="a clip of 5 frames does not fit"):
        tokenizer.encode(drawn_video(0, 5, 16, 16))
    with pytest.raises(UserError, match="width 24 does not fit: it must be a multiple of 16"):
        tokenizer.quantize(drawn_video(0, 1, 16, 24))


def test_a_discrete_tokenizer_without_levels_is_refused():
    with pytest.raises(UserError, match="make no discrete tokenizer"):
        DiscreteTokenizer(dataclasses.replace(DISCRETE["DV4x8x8"], fsq_levels=()))


def test_a_continuous_tokenizer_with_a_quantizer_is_refused():
    with pytest.raises(UserError, match=r"fsq_levels \(8, 6, 5\) make a discrete tokenizer"):
        ContinuousTokenizer(DISCRETE["DV4x8x8"])


# --- build


def test_each_configuration_builds_its_own_kind():
    assert type(build_tokenizer(HaarPCAConfig())) is HaarPCATokenizer
    assert type(build_tokenizer(SMALL["CV4x8x8"])) is ContinuousTokenizer
    assert type(build_tokenizer(DISCRETE["DV4x8x8"])) is DiscreteTokenizer
