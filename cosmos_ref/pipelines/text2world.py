"""Text2World: a video from a prompt."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.conditioning.condition import Condition, give_frames, text_condition
from cosmos_ref.config import ClipConfig, SampleConfig, latent_shape
from cosmos_ref.errors import UserError
from cosmos_ref.pipelines.sample import guided, noise_from_seed, sample, schedule
from cosmos_ref.pipelines.world_model import WorldModel
from cosmos_ref.shapes import Latents, Video


class Generated(NamedTuple):
    """What a pipeline made."""

    video: Video
    x0: Latents
    """The latents it was decoded from, at the diffusion's scale."""


def text2world(
    model: WorldModel,
    prompts: Sequence[str | None],
    clip: ClipConfig,
    settings: SampleConfig,
    negative_prompt: str | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Generated:
    """One clip for every prompt; the clip at place i depends on the seed and i, not on the others.

    Args:
        model: trained model.
        prompts: what to show; None is the null text.
        clip: length, size and frame rate.
        settings: solver, steps, guidance and seed.
        negative_prompt: what guidance leads away from, instead of the null text.
        progress: wraps the solver's steps.

    Raises:
        UserError: if the clip does not fit the model or a prompt is empty or too long.
    """
    shape = latent_shape(model.config, clip)
    if not prompts:
        raise UserError("there are no prompts: give at least one, None for the null text")
    text = model.encode_prompts(prompts)
    null_text = model.encode_prompts([negative_prompt] * len(prompts))
    noise = torch.stack([noise_from_seed(settings.seed, i, shape) for i in range(len(prompts))]).to(model.device)
    condition = text_condition(text, noise, noise.new_full((len(prompts),), clip.fps))
    if model.config.model.video2world:
        none = noise.new_zeros(len(prompts))
        condition = give_frames(condition, torch.zeros_like(noise), none.long(), none, torch.zeros_like(noise))
    x0 = denoise_fully(model, noise, condition, null_text, settings, progress=progress)
    return Generated(model.decode(x0), x0)


def denoise_fully(
    model: WorldModel,
    noise: Latents,
    condition: Condition,
    null_text: Float[Tensor, "B M E"],
    settings: SampleConfig,
    clean: Latents | None = None,
    draw_given: Callable[[], Latents] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Latents:
    """From noise to latents; no name here outlives the denoiser's turn, so that its memory can be had again.

    Args:
        model: trained model.
        noise: unit noise to start from.
        condition: what the denoiser is told.
        null_text: what guidance leads away from.
        settings: solver, steps and guidance.
        clean: latents with the given frames in them, if there are any.
        draw_given: draws new noise on them, see `guided`.
        progress: wraps the solver's steps.
    """
    sigmas = schedule(model.config.diffusion, settings)
    denoise = guided(model.denoiser, noise, sigmas, condition, null_text, settings.guidance, clean, draw_given)
    return sample(denoise, noise, sigmas, settings, progress)
