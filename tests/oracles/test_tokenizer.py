"""The continuous tokenizers against diffusers' AutoencoderKLCosmos, with the same random weights."""

import pytest
import torch

from cosmos_ref.config import TOKENIZERS
from cosmos_ref.interop.tokenizer_names import tokenizer_names
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from tests.strategies import normal
from tests.tokenizer.small import SMALL, drawn_tokenizer, drawn_video

pytestmark = pytest.mark.oracle

FULL = {"CV8x8x8": TOKENIZERS["CV8x8x8"], "CV4x8x8": TOKENIZERS["CV4x8x8"]}
# Relative to the largest value. Both add up the same products in another order, through some forty layers.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def diffusers_tokenizer(config):
    from diffusers import AutoencoderKLCosmos

    return AutoencoderKLCosmos(
        latent_channels=config.channels,
        encoder_block_out_channels=config.encoder_widths,
        decode_block_out_channels=config.decoder_widths[::-1],
        num_layers=config.num_blocks,
        patch_size=2**config.patch_levels,
        spatial_compression_ratio=config.spatial_factor,
        temporal_compression_ratio=config.temporal_factor,
    )


def both(config, dtype=torch.float64):
    """Our tokenizer and diffusers' with its weights, identity statistics in ours."""
    ours = drawn_tokenizer(config)
    theirs = diffusers_tokenizer(config).double()
    state = ours.state_dict()
    theirs.load_state_dict({there: state[name] for name, there in tokenizer_names(config, "diffusers").items()})
    for part in (theirs.encoder.patch_embed, theirs.decoder.unpatch_embed):
        # Diffusers rounds the filter to float32 when it is built; in float64 that alone is an error of 2e-8.
        part.wavelets = torch.full_like(part.wavelets, 0.5).sqrt()
    ours.mean.zero_()
    ours.std.fill_(1)
    return ours.to(dtype), theirs.to(dtype)


def assert_same(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE[found.dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize("more", [0, 1, 2], ids=["image", "two-latents", "three-latents"])
@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_encode_and_decode_are_those_of_diffusers(name, more, dtype):
    ours, theirs = both(SMALL[name], dtype)
    video = drawn_video(1, 1 + more * ours.temporal_factor, clips=2).to(dtype)
    latents = theirs.encode(video).latent_dist.mode()
    assert_same(ours.encode(video), latents)
    decoded = theirs.decode(latents).sample
    assert 0.1 < decoded.abs().max() < 1  # so that our clamp to [-1, 1] hides nothing
    assert_same(ours.decode(latents), decoded)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_every_weight_and_of_the_video_are_those_of_diffusers(name):
    ours, theirs = both(SMALL[name])
    seen, answered = (
        drawn_video(1, 1 + ours.temporal_factor).requires_grad_(),
        drawn_video(1, 1 + ours.temporal_factor).requires_grad_(),
    )
    direction = normal(5, *seen.shape)
    (ours.decode(ours.encode(seen)) * direction).sum().backward()
    (theirs.decode(theirs.encode(answered).latent_dist.mode()).sample * direction).sum().backward()
    assert_same(seen.grad, answered.grad)
    weights, names = dict(theirs.named_parameters()), tokenizer_names(SMALL[name])
    scale = max(weight.grad.abs().max() for weight in weights.values())
    for our_name, weight in ours.named_parameters():
        # Against the largest gradient of all: a bias just before a norm or a softmax has none but rounding.
        error = (weight.grad - weights[names[our_name]].grad).abs().max()
        assert error <= 1e-9 * scale, our_name


@pytest.mark.parametrize("name", FULL)
def test_full_size_names_and_shapes_are_those_of_diffusers_one_to_one(name):
    with torch.device("meta"):
        ours, theirs = ContinuousTokenizer(FULL[name]), diffusers_tokenizer(FULL[name])
    state, names = ours.state_dict(), tokenizer_names(FULL[name], "diffusers")
    assert {*state} - {*names} == {"mean", "std"}
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {there: state[name].shape for name, there in names.items()} == shapes
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@torch.no_grad()
def test_published_statistics_standardise_as_diffusers_does():
    """Its pipelines keep them flat, channel by channel; the clip is shorter than they are."""
    config = SMALL["CV8x8x8"]
    plain, theirs = both(config)
    flat = normal(3, 5 * 3), normal(4, 5 * 3).exp()
    ours = ContinuousTokenizer(config).double()
    state = theirs.state_dict()
    weights = {name: state[there] for name, there in tokenizer_names(config, "diffusers").items()}
    ours.load_state_dict(weights | {name: x.view(5, 3) for name, x in zip(("mean", "std"), flat, strict=True)})
    video = drawn_video(1, 9)
    mean, std = (x.view(1, 5, -1, 1, 1)[:, :, :2] for x in flat)
    assert_same(ours.encode(video), (plain.encode(video) - mean) / std)
