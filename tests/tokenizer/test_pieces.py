import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cosmos_ref.blocks.causal_conv import Past
from cosmos_ref.config import TOKENIZERS
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer import pieces
from cosmos_ref.tokenizer.discrete import DiscreteTokenizer
from cosmos_ref.tokenizer.pieces import blending_weights, decode_in_pieces, encode_in_pieces, tile_spans
from cosmos_ref.tokenizer.plan import Plan
from tests.strategies import normal, seeds
from tests.tokenizer.small import SMALL, drawn_tokenizer, drawn_video, drawn_weights

CLOSE = dict(rtol=0, atol=1e-12)  # float64 rounding: attention adds up the same numbers in another order
LATENT_FRAMES = 5  # two more than there are statistics of


@pytest.fixture(scope="module", params=SMALL)
def tokenizer(request):
    return drawn_tokenizer(SMALL[request.param]).requires_grad_(False)


def clip(tokenizer, seed=0, height=16, width=24):
    return drawn_video(seed, 1 + (LATENT_FRAMES - 1) * tokenizer.temporal_factor, height, width)


@settings(max_examples=5)
@given(seed=seeds, chunk=st.integers(1, LATENT_FRAMES - 1))
def test_chunks_of_time_give_what_the_whole_clip_gives(tokenizer, seed, chunk):
    video, plan = clip(tokenizer, seed), Plan(chunk, 16, 24)
    latents = tokenizer.encode(video)
    torch.testing.assert_close(encode_in_pieces(tokenizer, video, plan), latents, **CLOSE)
    torch.testing.assert_close(decode_in_pieces(tokenizer, latents, plan), tokenizer.decode(latents), **CLOSE)


class BlankFrames(Past):
    """The convolutions find zeros where they kept frames."""

    def __getitem__(self, layer):
        return super().__getitem__(layer) * (0 if isinstance(layer, nn.Conv3d) else 1)


class BlankKeys(Past):
    """The attention finds zeros where it kept keys and values."""

    def pop(self, layer):
        return torch.zeros_like(super().pop(layer))


@pytest.mark.parametrize("past", [BlankFrames, BlankKeys])
def test_chunks_that_forget_what_was_do_not(tokenizer, past, monkeypatch):
    """So the law above sees each part of the past."""
    monkeypatch.setattr(pieces, "Past", past)
    video, plan = clip(tokenizer), Plan(2, 16, 24)
    latents = tokenizer.encode(video)
    assert (encode_in_pieces(tokenizer, video, plan) - latents).abs().max() > 1e-6
    assert (decode_in_pieces(tokenizer, latents, plan) - tokenizer.decode(latents)).abs().max() > 1e-6


def test_a_later_chunk_has_the_statistics_of_its_own_frames(tokenizer):
    """Not the first frame's again, which would be far off."""
    latents = tokenizer.encode(clip(tokenizer))

    class FromZero(Past):
        latent_frames = property(lambda self: 0, lambda self, value: None)

    decoded = [
        torch.cat([tokenizer.decode(latents[:, :, frames], past) for frames in (slice(0, 1), slice(1, None))], dim=2)
        for past in (Past(), FromZero())
    ]
    whole = tokenizer.decode(latents)
    torch.testing.assert_close(decoded[0], whole, **CLOSE)
    assert (decoded[1] - whole).abs().max() > 1e-3


def test_a_tile_as_large_as_the_frame_is_the_whole_frame(tokenizer):
    """To the bit, larger ones too; several clips at once."""
    video = drawn_video(0, 1 + tokenizer.temporal_factor, clips=2)
    latents = tokenizer.encode(video)
    for plan in (Plan(2, 16, 24), Plan(9, 160, 240)):
        assert torch.equal(encode_in_pieces(tokenizer, video, plan), latents)
        assert torch.equal(decode_in_pieces(tokenizer, latents, plan), tokenizer.decode(latents))


def test_smaller_tiles_are_another_result(tokenizer):
    """The docstring says so: norms and attention no longer see the whole frame."""
    video = clip(tokenizer, width=32)
    plan = Plan(LATENT_FRAMES, 16, 16)
    assert (encode_in_pieces(tokenizer, video, plan) - tokenizer.encode(video)).abs().max() > 1e-3


@given(size=st.integers(1, 200), tile=st.integers(1, 250))
def test_tiles_cover_the_side_and_overlap_by_a_quarter(size, tile):
    spans = tile_spans(size, tile)
    assert spans[0][0] == 0 and spans[-1][1] == size
    assert {stop - start for start, stop in spans} == {min(tile, size)}
    for (_, stop), (start, _) in pairwise(spans):
        assert stop - start >= tile // 4


@given(size=st.integers(1, 200), tile=st.integers(2, 250))
def test_the_weights_of_all_tiles_add_up_to_one_everywhere(size, tile):
    spans = tile_spans(size, tile)
    weights = blending_weights(spans)
    assert weights.shape == (len(spans), size)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(size).double(), rtol=0, atol=1e-15)
    for weight, (start, stop) in zip(weights, spans, strict=True):
        assert (weight[start:stop] > 0).all()
        assert weight[:start].sum() == weight[stop:].sum() == 0


def test_one_tile_fades_into_the_next_linearly():
    weights = blending_weights([(0, 8), (4, 12)])
    expected = torch.tensor([1, 1, 1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8, 0, 0, 0, 0]).double()
    torch.testing.assert_close(weights[0], expected, rtol=0, atol=1e-15)


@settings(max_examples=5)
@given(seed=seeds, chunk=st.integers(1, 2))
def test_what_one_tile_shows_alone_does_not_depend_on_what_others_show(tokenizer, seed, chunk):
    """Along a width of six latents, tiles of four cover columns 0-3 and 2-5."""
    plan = Plan(chunk, 16, 32)
    video = drawn_video(seed, 1 + tokenizer.temporal_factor, width=48)
    changed = video.clone()
    changed[..., :16] = drawn_video(seed + 1, video.shape[2], width=16)
    before, after = (encode_in_pieces(tokenizer, video, plan) for video in (video, changed))
    assert torch.equal(after[..., 4:], before[..., 4:])
    assert (after - before)[..., :2].abs().max() > 1e-3
    changed = before.clone()
    changed[..., :2] = normal(seed + 2, *before[..., :2].shape)
    before, after = (decode_in_pieces(tokenizer, latents, plan) for latents in (before, changed))
    assert torch.equal(after[..., 32:], before[..., 32:])
    assert (after - before)[..., :16].abs().max() > 1e-6


@settings(max_examples=5)
@given(seed=seeds)
def test_a_decoder_that_always_says_the_same_says_it_in_tiles_too(seed):
    tokenizer = drawn_tokenizer(SMALL["CV8x8x8"], seed).requires_grad_(False)
    tokenizer.decoder.conv_out.time.weight.zero_()
    latents = normal(seed, 1, 5, 2, 5, 7)
    decoded = decode_in_pieces(tokenizer, latents, Plan(1, 16, 32))
    torch.testing.assert_close(decoded, tokenizer.decode(latents), rtol=0, atol=1e-15)
    assert decoded.std() > 1e-4


@pytest.fixture(scope="module")
def discrete():
    few = dict(encoder_widths=(6, 8, 10, 12), decoder_widths=(14, 10, 8, 6), channels=5)
    config = dataclasses.replace(TOKENIZERS["DV8x16x16"], **few)
    tokenizer = drawn_weights(DiscreteTokenizer(config)).requires_grad_(False)
    tokenizer.decoder.conv_out.time.weight.mul_(0.01)  # 64 bands add up in a pixel, and none shall be clamped
    tokenizer.decoder.conv_out.time.bias.mul_(0.01)
    return tokenizer


@settings(max_examples=5)
@given(seed=seeds, chunk=st.integers(1, 2))
def test_chunks_of_time_give_the_codes_of_the_whole_clip(discrete, seed, chunk):
    """Codes are the same ones, for rounding errors of 1e-15 do not reach the next level."""
    video, plan = drawn_video(seed, 17, 32, 48), Plan(chunk, 32, 48)
    indices = discrete.encode(video)
    assert torch.equal(encode_in_pieces(discrete, video, plan), indices)
    torch.testing.assert_close(decode_in_pieces(discrete, indices, plan), discrete.decode(indices), **CLOSE)


def test_where_tiles_overlap_each_code_is_of_the_tile_that_counts_most(discrete):
    """Tiles of four of six columns: to the left of the middle the left one, to the right the right one."""
    video = drawn_video(0, 9, 32, 96)
    indices = encode_in_pieces(discrete, video, Plan(1, 32, 64))
    left, right = discrete.encode(video[..., :64]), discrete.encode(video[..., 32:])
    assert torch.equal(indices, torch.cat([left[..., :3], right[..., 1:]], dim=-1))
    assert not torch.equal(left[..., 2:], right[..., :2])


def test_only_a_piece_at_a_time_takes_the_precision_of_the_tokenizer(tokenizer):
    video, plan = clip(tokenizer).float(), Plan(2, 16, 24)
    latents = encode_in_pieces(tokenizer, video, plan)
    decoded = decode_in_pieces(tokenizer, latents, plan)
    assert latents.dtype == decoded.dtype == torch.float32
    exact = dict(rtol=1e-6, atol=1e-6)  # one rounding to float32
    torch.testing.assert_close(latents, tokenizer.encode(video.double()).float(), **exact)
    torch.testing.assert_close(decoded, tokenizer.decode(latents.double()).float(), **exact)


@pytest.mark.parametrize(
    ("shape", "plan", "message"),
    [
        ((4, 16, 16), Plan(1, 16, 16), "a clip of 4 frames does not fit"),
        ((1, 12, 16), Plan(1, 16, 16), "height 12 does not fit: it must be a multiple of 8"),
        ((1, 16, 16), Plan(1, 16, 12), "tile_width 12 does not fit: it must be a multiple of 8"),
        ((1, 16, 16), Plan(1, 0, 16), "tile_height 0 does not fit: it must be a multiple of 8"),
        ((1, 16, 16), Plan(0, 16, 16), "latent_frames 0 does not fit: a chunk has at least one"),
    ],
)
def test_what_does_not_fit_is_refused(tokenizer, shape, plan, message):
    with pytest.raises(UserError, match=message):
        encode_in_pieces(tokenizer, torch.zeros(1, 3, *shape).double(), plan)


def test_a_later_chunk_off_the_grid_is_refused(tokenizer):
    past = Past()
    tokenizer.encode(drawn_video(0, 1), past)
    with pytest.raises(UserError, match=f"later chunk of 1 frames does not fit.*{tokenizer.temporal_factor}"):
        tokenizer.encode(drawn_video(0, 1), past)
    with pytest.raises(UserError, match="later chunk of 0 frames"):
        tokenizer.encode(drawn_video(0, 1)[:, :, :0], past)
