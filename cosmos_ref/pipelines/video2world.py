"""Video2World: how a video goes on."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count

import torch

from cosmos_ref.conditioning.condition import Condition, give_frames, text_condition
from cosmos_ref.config import ClipConfig, Config, SampleConfig, latent_shape
from cosmos_ref.equations.causal import latent_length
from cosmos_ref.equations.conditioning import last_frames
from cosmos_ref.errors import UserError
from cosmos_ref.pipelines.sample import noise_from_seed
from cosmos_ref.pipelines.text2world import Generated, denoise_fully
from cosmos_ref.pipelines.world_model import WorldModel
from cosmos_ref.shapes import Latents, Video

AUGMENT_STREAM = 2**32
"""Indices between one draw of noise and the next: first that which starts the sampler, then that on given frames."""


def video2world(
    model: WorldModel,
    video: Video,
    prompts: Sequence[str | None],
    clip: ClipConfig,
    settings: SampleConfig,
    negative_prompt: str | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Generated:
    """Clips that begin with the given frames.

    Args:
        model: trained Video2World model.
        video: the given frames, all of them used: 1 + (n - 1) * temporal_factor frames for n latents.
        prompts: what happens, one a clip; None is the null text.
        clip: length and frame rate of the result; its size is that of the given frames.
        settings: solver, steps, guidance, noise on the given frames, and seed.
        negative_prompt: what guidance leads away from, instead of the null text.
        progress: wraps the solver's steps.

    Raises:
        UserError: if the model takes no frames, or their number or size does not fit, or that of the prompts.
    """
    B, _, frames, height, width = video.shape
    if len(prompts) != B:
        raise UserError(f"{len(prompts)} prompts for {B} given clips: give each clip one, or None")
    clip = replace(clip, height=height, width=width)
    given, shape = given_latents(model.config, frames, clip), latent_shape(model.config, clip)
    text = model.encode_prompts(prompts)
    null_text = model.encode_prompts([negative_prompt] * B)
    streams = count()

    def draw() -> Latents:
        """Unit noise, each time new."""
        stream = next(streams) * AUGMENT_STREAM
        return torch.stack([noise_from_seed(settings.seed, stream + i, shape) for i in range(B)]).to(model.device)

    noise = draw()
    clean = torch.zeros_like(noise)
    clean[:, :, :given] = model.encode(video)
    counts = torch.full((B,), given, device=model.device)
    augment_sigma = noise.new_full((B,), settings.augment_sigma)
    told = text_condition(text, noise, noise.new_full((B,), clip.fps))

    def give() -> Condition:
        """The condition, with new noise on the given frames."""
        return give_frames(told, clean, counts, augment_sigma, draw())

    fresh = (lambda: give()["given_latents"]) if settings.given_noise == "fresh" else None
    x0 = denoise_fully(model, noise, give(), null_text, settings, clean, fresh, progress)
    return Generated(model.decode(x0), x0)


def given_latents(config: Config, frames: int, clip: ClipConfig) -> int:
    """Latent frames that so many given frames are.

    Raises:
        UserError: if the model takes no frames, not so many, or they leave nothing of the clip to generate.
    """
    if not config.model.video2world:
        raise UserError(f"preset {config.name!r} is a Text2World model: it takes no frames, only a prompt")
    given = latent_length(frames, config.tokenizer.temporal_factor)
    if given >= latent_shape(config, clip)[1]:
        raise UserError(f"{frames} given frames leave nothing to generate in a clip of {clip.frames}: give fewer")
    return given


def extend(
    model: WorldModel,
    video: Video,
    given: int,
    prompts: Sequence[str | None],
    clip: ClipConfig,
    settings: SampleConfig,
    negative_prompt: str | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Video:
    """The video with a clip more, which goes on from its last `given` frames; they are not shown twice.

    Args:
        model: trained Video2World model.
        video: what there is.
        given: frames to go on from, 1 + (n - 1) * temporal_factor.
        prompts: what happens next, one a video; None is the null text.
        clip: length and frame rate of the clip that is added, the given frames included.
        settings: as of `video2world`; the seed should not be that of the clip before.
        negative_prompt: what guidance leads away from, instead of the null text.
        progress: wraps the solver's steps.

    Raises:
        UserError: as `video2world`.
    """
    more = video2world(model, last_frames(video, given), prompts, clip, settings, negative_prompt, progress).video
    return torch.cat([video, more[:, :, given:].to(video)], dim=2)
