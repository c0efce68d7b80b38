"""Whole guided samplings against diffusers' pipelines, with the same weights, text and noise; and NVIDIA's order."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    CosmosTextToWorldPipeline,
    CosmosVideoToWorldPipeline,
    EDMEulerScheduler,
)
from torch import nn

from cosmos_ref.conditioning.condition import give_frames, text_condition
from cosmos_ref.config import PRESETS, DiffusionConfig
from cosmos_ref.model.denoiser import Text2WorldDenoiser, Video2WorldDenoiser
from cosmos_ref.model.dit import CosmosDiT
from cosmos_ref.pipelines.conventions import like
from cosmos_ref.pipelines.sample import guided, sample, schedule
from tests.blocks.filled import filled
from tests.oracles.promotion import float32_means_float64
from tests.oracles.test_dit import theirs_from
from tests.strategies import normal

pytestmark = pytest.mark.oracle

GUIDANCE, STEPS = 3.0, 8
LATENTS = (16, 3, 4, 4)
TEXT, NULL = normal(1, 1, 5, 16), normal(2, 1, 5, 16)
NOISE, CLEAN = normal(3, 1, *LATENTS), normal(4, 1, *LATENTS)  # CLEAN as the tokenizer gives it, at unit variance
MEAN, STD = normal(5, 16, 3).float().double(), normal(6, 16, 3).exp().float().double()  # float32 in diffusers' hands
GIVEN, AUGMENT_SIGMA = 2, 0.1
EXACT = dict(rtol=0, atol=1e-8)
"""float64; only the scheduler's last level goes through float32, which leaves a step of 2e-10 where there is none."""


class FakeTokenizer(nn.Module):
    """Knows one clip's latents, given as the released tokenizer gives them: not yet standardised."""

    dtype, device = torch.float64, torch.device("cpu")
    config = SimpleNamespace(
        temporal_compression_ratio=8,
        spatial_compression_ratio=8,
        latent_channels=16,
        latents_mean=MEAN.flatten().tolist(),
        latents_std=STD.flatten().tolist(),
    )

    def encode(self, video):
        return SimpleNamespace(latents=CLEAN * STD[:, :, None, None] + MEAN[:, :, None, None])


class NoGuard:
    """Looks at nothing."""

    def to(self, device):
        return self


def both(video2world):
    """Our denoiser and diffusers' pipeline with its weights, and our configuration with diffusers' conventions."""
    preset = PRESETS["micro"]
    preset = replace(preset, model=replace(preset.model, video2world=video2world), diffusion=DiffusionConfig())
    config = like(preset, "diffusers")
    network = filled(CosmosDiT(config.model))
    with float32_means_float64():
        transformer, _ = theirs_from(network, config, torch.float64)
    kind, pipeline = (
        (Video2WorldDenoiser, CosmosVideoToWorldPipeline)
        if video2world
        else (Text2WorldDenoiser, CosmosTextToWorldPipeline)
    )
    diffusion = config.diffusion
    scheduler = EDMEulerScheduler(
        sigma_min=diffusion.sigma_min,
        sigma_max=diffusion.sigma_max,
        sigma_data=diffusion.sigma_data,
        final_sigmas_type="sigma_min",
    )
    theirs = pipeline(None, None, transformer, FakeTokenizer(), scheduler, safety_checker=NoGuard())
    theirs.set_progress_bar_config(disable=True)
    config = replace(config, sample=replace(config.sample, num_steps=STEPS, guidance=GUIDANCE))
    return kind(network, diffusion.sigma_data), theirs, config


def their_trajectory(pipeline, **arguments):
    """Latents after every step, at the diffusion's scale."""
    met = []
    with float32_means_float64():
        pipeline(
            prompt_embeds=TEXT,
            negative_prompt_embeds=NULL,
            height=32,
            width=32,
            num_frames=17,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            fps=30,
            latents=NOISE,
            output_type="latent",
            callback_on_step_end=lambda pipe, i, t, seen: met.append(seen["latents"]) or {},
            **arguments,
        )
    return met


def our_trajectory(denoiser, config, condition, x0=None, draw_given=None):
    sigmas = schedule(config.diffusion, config.sample)
    denoise = guided(denoiser, NOISE, sigmas, condition, NULL, config.sample.guidance, x0, draw_given)
    met = []
    end = sample(lambda x, sigma: met.append(x) or denoise(x, sigma), NOISE, sigmas, config.sample)
    return [*met[1:], end]


def told(config):
    return text_condition(TEXT, NOISE, torch.tensor([config.clip.fps], dtype=torch.float64))


def test_a_text2world_sampling_is_that_of_diffusers():
    """Its two calls a step are our one; its last step does nothing, and ours is not taken."""
    denoiser, pipeline, config = both(video2world=False)
    theirs, ours = their_trajectory(pipeline), our_trajectory(denoiser, config, told(config))
    assert len(theirs) == STEPS == len(ours) + 1
    for found, expected in zip([*ours, ours[-1]], theirs, strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


def test_a_video2world_sampling_is_that_of_diffusers():
    """New noise on the given frames in each branch of each step, until they are released on the way down."""
    denoiser, pipeline, config = both(video2world=True)
    seed, given = 11, torch.tensor([GIVEN])
    theirs = their_trajectory(
        pipeline,
        video=torch.zeros(1, 9, 3, 32, 32, dtype=torch.float64),
        augment_sigma=AUGMENT_SIGMA,
        generator=torch.Generator().manual_seed(seed),
    )
    x0, generator = CLEAN * config.diffusion.sigma_data, torch.Generator().manual_seed(seed)
    x0[:, :, GIVEN:] = 0

    def condition():
        noise = torch.randn(NOISE.shape, generator=generator, dtype=torch.float64)
        return give_frames(told(config), x0, given, torch.tensor([AUGMENT_SIGMA], dtype=torch.float64), noise)

    fixed, _ = condition(), generator.manual_seed(seed)
    ours = our_trajectory(denoiser, config, fixed, x0, lambda: condition()["given_latents"])
    sigmas = schedule(config.diffusion, config.sample)
    assert (sigmas > AUGMENT_SIGMA).any() and (sigmas < AUGMENT_SIGMA).any()
    for found, expected in zip([*ours, ours[-1]], theirs, strict=True):
        torch.testing.assert_close(found, expected, **EXACT)
    frozen = our_trajectory(denoiser, config, fixed, x0)
    assert (frozen[-1] - ours[-1]).abs().max() > 1e-4  # the comparison would see noise that is drawn once


def test_nvidias_guidance_of_the_network_is_ours_of_the_estimate():
    """Both are linear: F_c + g (F_c - F_u) becomes D_c + g (D_c - D_u). Its loop, from the first noise of 80.00625."""
    denoiser, _, config = both(video2world=False)
    config = like(config, "nvidia")
    settings, S = replace(config.sample, num_steps=STEPS, state="fp32"), config.diffusion.sigma_data
    sigmas = schedule(config.diffusion, settings)
    fps, padding = torch.tensor([24.0], dtype=torch.float64), NOISE.new_zeros(1, 1, *LATENTS[1:])
    positions = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(2))
    x = NOISE * 80.00624975587844
    theirs = []
    with torch.no_grad():
        for sigma, sigma_next in pairwise(sigmas):
            network_input = torch.cat([x / (sigma**2 + S**2).sqrt(), padding], dim=1)
            F_text, F_null = (
                denoiser.network(network_input, sigma.log()[None] / 4, text, positions, fps) for text in (TEXT, NULL)
            )
            F = F_text + GUIDANCE * (F_text - F_null)
            x0 = x * S**2 / (sigma**2 + S**2) + F * sigma * S / (sigma**2 + S**2).sqrt()
            x = x + (x - x0) / sigma * (sigma_next - sigma)
            theirs.append(x)
    ours = our_trajectory(denoiser, replace(config, sample=settings), told(config))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
