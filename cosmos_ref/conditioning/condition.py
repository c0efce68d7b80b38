"""What a denoiser is told besides the noisy latents: a dict of tensors, its keyword arguments."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cosmos_ref.equations.conditioning import frame_mask
from cosmos_ref.equations.noise import add_noise
from cosmos_ref.shapes import Latents

Condition = dict[str, Tensor]


def text_condition(text_embeddings: Float[Tensor, "B M E"], latents: Latents, fps: Float[Tensor, "B"]) -> Condition:
    """Text and frame rate; nothing is padded. `latents` only lends its size."""
    B, _, _, H, W = latents.shape
    return {"text_embeddings": text_embeddings, "fps": fps, "padding_mask": latents.new_zeros(B, 1, H, W)}


def give_frames(
    condition: Condition,
    x0: Latents,
    given: Int[Tensor, "B"],
    augment_sigma: Float[Tensor, "B"],
    noise: Latents,
) -> Condition:
    """The condition with the first `given` latent frames of x0 in it, noised by `augment_sigma`.

    With none given it is the Text2World condition of a Video2World model.
    """
    mask = frame_mask(given, x0.shape[2]).to(x0)
    given_latents = mask * add_noise(x0, noise, augment_sigma)  # what is not given is not passed on
    return condition | {"frame_mask": mask, "given_latents": given_latents, "augment_sigma": augment_sigma}


def both_branches(condition: Condition, null_text: Float[Tensor, "B M E"]) -> Condition:
    """One batch with the condition and, behind it, the same without the text: for guidance in a single call."""
    double = {name: torch.cat([value, value]) for name, value in condition.items()}
    return double | {"text_embeddings": torch.cat([condition["text_embeddings"], null_text])}
