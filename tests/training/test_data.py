"""Batches: all that is random belongs to the sample, not to the batch."""

import dataclasses

import numpy as np
import pytest
import torch

from cosmos_ref.conditioning.text import build_text_encoder
from cosmos_ref.config import PRESETS
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.training.data import IMAGE_CLIPS, MIN_STD, draw_batch, image_statistics
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


# --- Images, padding, and what comes encoded


class Moving:
    """Clips of noise: an image is a clip of one frame."""

    identity, captions = "moving", []

    def clips(self, indices, domain="video", bucket=None):
        frames, (height, width) = 1 if domain == "image" else 5, bucket or (16, 16)
        stream = 1 if domain == "image" else 2
        videos = [philox(0, i, stream).random((3, frames, height, width), np.float32) for i in indices]
        video = torch.from_numpy(np.stack(videos)) * 2 - 1
        return Clips(video, ["a red marble"] * len(indices), torch.full((len(indices),), 24.0))

    def bucket(self, micro_batch, domain="video"):
        return 16, 16


def test_images_have_a_noise_of_their_own_and_no_given_frames(tokenizer):
    videos = draw_batch(Moving(), MICRO, tokenizer, TEXT, range(200))
    images = draw_batch(Moving(), MICRO, tokenizer, TEXT, range(200), domain="image")
    assert images.x0.shape[2] == 1
    assert not (images.sigma == videos.sigma).any()
    assert videos.condition["frame_mask"].any() and not images.condition["frame_mask"].any()
    assert images.condition.keys() == videos.condition.keys()


@pytest.mark.parametrize("domain", ["video", "image"])
def test_the_noise_shift_raises_levels_of_videos_by_the_root_of_their_latent_frames(tokenizer, domain):
    shifted = dataclasses.replace(MICRO, train=dataclasses.replace(MICRO.train, video_noise_shift=True))
    plain, raised = (draw_batch(Moving(), c, tokenizer, TEXT, range(8), domain=domain) for c in (MICRO, shifted))
    torch.testing.assert_close(raised.sigma, plain.sigma * (3**0.5 if domain == "video" else 1))
    # The noise on given frames is not shifted: it says how far they are trusted.
    assert torch.equal(raised.condition["augment_sigma"], plain.condition["augment_sigma"])


def test_images_are_standardised_as_images(world, tokenizer):
    """The tokenizer's statistics are of videos; with its own, each channel of the images has unit variance."""
    statistics = image_statistics(world, tokenizer, torch.device("cpu"), chunk=256)
    sigma_data = MICRO.diffusion.sigma_data
    plain, own = (
        draw_batch(world, MICRO, tokenizer, TEXT, IMAGE_CLIPS, domain="image", images=images).x0 / sigma_data
        for images in (None, statistics)
    )
    assert (plain.std((0, 2, 3, 4)) - 1).abs().max() > 0.02  # or nothing was to be done
    kept = statistics.std > MIN_STD
    assert kept.sum() >= 8
    # Statistics and latents are float32, and the deviation here divides by one sample less.
    torch.testing.assert_close(own.std((0, 2, 3, 4))[kept], torch.ones(int(kept.sum())), rtol=1e-3, atol=0)
    torch.testing.assert_close(own.mean((0, 2, 3, 4))[kept], torch.zeros(int(kept.sum())), rtol=0, atol=1e-3)


def test_statistics_of_images_do_not_depend_on_how_they_are_read(tokenizer):
    one, other = (image_statistics(Moving(), tokenizer, torch.device("cpu"), chunk) for chunk in (1024, 300))
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.std, other.std, rtol=1e-5, atol=0)


def test_a_padded_pixel_marks_the_latent_pixel_whose_corner_it_is(tokenizer):
    class Padded(Moving):
        def clips(self, indices, domain="video", bucket=None):
            mask = torch.zeros(len(indices), 1, 16, 16)
            mask[:, :, :5] = 1  # one line more than a latent pixel
            return dataclasses.replace(super().clips(indices, domain, bucket), padding_mask=mask)

    mask = draw_batch(Padded(), MICRO, tokenizer, TEXT, range(2)).condition["padding_mask"]
    assert mask[:, 0].tolist() == [[[1.0] * 4, [1.0] * 4, [0.0] * 4, [0.0] * 4]] * 2
    assert not draw_batch(Moving(), MICRO, tokenizer, TEXT, range(2)).condition["padding_mask"].any()


def test_clips_that_are_encoded_already_are_taken_as_they_are(tokenizer):
    class Encoded(Moving):
        def clips(self, indices, domain="video", bucket=None):
            clips = super().clips(indices, domain, bucket)
            latents, text = tokenizer.encode(clips.video), TEXT.encode(clips.captions)
            return dataclasses.replace(clips, video=None, latents=latents, text_embeddings=text)

    plain = draw_batch(Moving(), MICRO, tokenizer, TEXT, range(4))
    encoded = draw_batch(Encoded(), MICRO, tokenizer, None, range(4))
    assert torch.equal(encoded.x0, plain.x0)
    assert all(torch.equal(encoded.condition[name], value) for name, value in plain.condition.items())
