"""Batches: all that is random belongs to the sample, not to the batch."""

import dataclasses

import pytest
import torch

from cosmos_ref.conditioning.text import build_text_encoder
from cosmos_ref.config import PRESETS
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.training.data import draw_batch
from cosmos_ref.training.random import philox
from cosmos_ref.training.sources import Clips, WorldSource

MICRO = PRESETS["micro"]
TEXT = build_text_encoder(MICRO.text)


class Still:
    """Clips that cost nothing, for statistics over many samples."""

    identity, captions = "still", []

    def clips(self, indices, domain="video", bucket=None):
        B = len(indices)
        return Clips(torch.zeros(B, 3, 5, 8, 8), ["a red marble"] * B, torch.full((B,), 24.0))


@pytest.fixture(scope="module")
def world():
    return WorldSource(MICRO.clip, "mixed", seed=0)


@pytest.fixture(scope="module")
def tokenizer(world):
    return HaarPCATokenizer.fit(MICRO.tokenizer, world.clips(range(2**39, 2**39 + 64)).video)


@pytest.fixture(scope="module")
def many(tokenizer):
    return draw_batch(Still(), MICRO, tokenizer, TEXT, range(4000))


def test_a_sample_does_not_depend_on_its_batch(world, tokenizer):
    whole = draw_batch(world, MICRO, tokenizer, TEXT, range(6))
    parts = [draw_batch(world, MICRO, tokenizer, TEXT, part) for part in ([5, 0], [3], [1, 4, 2])]
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    for name in ("noise", "sigma"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(together, getattr(whole, name)[order])
    for name, value in whole.condition.items():
        together = torch.cat([part.condition[name] for part in parts])
        torch.testing.assert_close(together, value[order])  # given latents come from matrix products, up to rounding
    torch.testing.assert_close(torch.cat([part.x0 for part in parts]), whole.x0[order])


def test_another_seed_is_another_noise(tokenizer):
    other = dataclasses.replace(MICRO, train=dataclasses.replace(MICRO.train, seed=1))
    one, two = (draw_batch(Still(), config, tokenizer, TEXT, range(2)) for config in (MICRO, other))
    assert not torch.equal(one.noise, two.noise)
    assert not torch.equal(one.sigma, two.sigma)


def test_noise_is_normal_and_the_given_frames_have_noise_of_their_own(many):
    n = many.noise.numel()
    assert many.noise.mean().abs() < 5 / n**0.5
    assert many.noise.var() == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    given = many.condition["frame_mask"].expand_as(many.x0) == 1
    sigma = many.condition["augment_sigma"].reshape(-1, 1, 1, 1, 1).expand_as(many.x0)
    own = ((many.condition["given_latents"] - many.x0) / sigma)[given]
    assert own.var() == pytest.approx(1, abs=1e-2)  # x0 / sigma is large for the smallest levels: float32 rounds
    assert (own * many.noise[given]).mean().abs() < 5 / own.numel() ** 0.5


def test_latents_have_the_diffusions_standard_deviation(world, tokenizer):
    batch = draw_batch(world, MICRO, tokenizer, TEXT, range(2**39, 2**39 + 64))  # the clips of the fit
    assert batch.x0.std() == pytest.approx(MICRO.diffusion.sigma_data, rel=1e-3)


@pytest.mark.parametrize("which", ["sigma", "augment_sigma"])
def test_noise_levels_are_log_normal(many, which):
    d = MICRO.diffusion
    p_mean, p_std = {"sigma": (d.p_mean, d.p_std), "augment_sigma": (d.augment_p_mean, d.augment_p_std)}[which]
    z = ((many.sigma if which == "sigma" else many.condition[which]).log() - p_mean) / p_std
    assert z.mean().abs() < 5 / len(z) ** 0.5
    assert z.var() == pytest.approx(1, abs=5 * (2 / len(z)) ** 0.5)
    for quantile in (0.05, 0.5, 0.95):
        share = (z < torch.distributions.Normal(0, 1).icdf(torch.tensor(quantile))).float().mean()
        assert share == pytest.approx(quantile, abs=5 * (0.25 / len(z)) ** 0.5)


def test_frames_are_given_as_often_as_asked(many):
    given = many.condition["frame_mask"].sum((1, 2, 3, 4)).int()
    for count, probability in enumerate(MICRO.train.given_latents):
        assert (given == count).float().mean() == pytest.approx(probability, abs=5 * (0.25 / len(given)) ** 0.5)


def test_text_is_dropped_as_often_as_asked_and_by_a_coin_of_its_own(many):
    dropped = (many.condition["text_embeddings"] == 0).all(-1).all(-1).float()
    tolerance = 5 * (0.25 / len(dropped)) ** 0.5
    assert dropped.mean() == pytest.approx(MICRO.train.text_dropout, abs=tolerance)
    given = many.condition["frame_mask"].sum((1, 2, 3, 4))
    for part in (given == 0, given == 2, many.sigma > 1):
        assert dropped[part].mean() == pytest.approx(dropped.mean().item(), abs=2 * tolerance)


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, True), (1.0, False)])
def test_text_is_dropped_never_or_always(tokenizer, dropout, kept):
    config = dataclasses.replace(MICRO, train=dataclasses.replace(MICRO.train, text_dropout=dropout))
    text = draw_batch(Still(), config, tokenizer, TEXT, range(200)).condition["text_embeddings"]
    assert (text != 0).any(-1).any(-1).all() == kept


def test_a_text2world_model_is_told_nothing_of_frames(tokenizer):
    config = dataclasses.replace(MICRO, model=dataclasses.replace(MICRO.model, video2world=False))
    batch = draw_batch(Still(), config, tokenizer, TEXT, range(2))
    assert batch.condition.keys() == {"text_embeddings", "fps", "padding_mask"}
    assert torch.equal(batch.noise, draw_batch(Still(), MICRO, tokenizer, TEXT, range(2)).noise)


def test_streams_of_a_sample_differ():
    assert philox(0, 1, stream=0).random() != philox(0, 1, stream=1).random()
