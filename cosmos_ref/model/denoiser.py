"""The denoiser D_theta: the only place where the network's output becomes an estimate of the clean latents."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.equations import conditioning, edm
from cosmos_ref.model.dit import CosmosDiT, grid_positions, token_grid
from cosmos_ref.shapes import Latents, expand


class Text2WorldDenoiser(nn.Module):
    """D_theta from noisy latents, their noise level and a text."""

    def __init__(self, network: CosmosDiT, sigma_data: float):
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(
        self,
        x: Latents,
        sigma: Float[Tensor, "B"],
        text_embeddings: Float[Tensor, "B M E"],
        fps: Float[Tensor, "B"],
        padding_mask: Float[Tensor, "B 1 H W"],
    ) -> Latents:
        """Estimate of the clean latents.

        Args:
            x: noisy latents, unscaled (standard deviation sqrt(sigma^2 + sigma_data^2)).
            sigma: noise level of every sample.
            text_embeddings: prompt, zeros where it is padded.
            fps: frames a second of every clip.
            padding_mask: 1 where a latent pixel is padding.
        """
        scaled = expand(edm.c_in(sigma, self.sigma_data), x) * x
        network_input = torch.cat([scaled, frames_of(padding_mask, x)], dim=1)
        F = call_network(self.network, network_input, sigma, text_embeddings, fps)
        return edm.denoise(F, x, sigma, self.sigma_data)


class Video2WorldDenoiser(nn.Module):
    """D_theta that also sees given frames; with none given it is a Text2World denoiser."""

    def __init__(self, network: CosmosDiT, sigma_data: float):
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(
        self,
        x: Latents,
        sigma: Float[Tensor, "B"],
        text_embeddings: Float[Tensor, "B M E"],
        fps: Float[Tensor, "B"],
        padding_mask: Float[Tensor, "B 1 H W"],
        frame_mask: Float[Tensor, "B 1 T 1 1"],
        given_latents: Latents,
        augment_sigma: Float[Tensor, "B"],
    ) -> Latents:
        """Estimate of the clean latents; in the given frames it is what the network makes of them, not the given ones.

        Args:
            x: noisy latents, unscaled.
            sigma: noise level of every sample.
            text_embeddings: prompt, zeros where it is padded.
            fps: frames a second of every clip.
            padding_mask: 1 where a latent pixel is padding.
            frame_mask: 1 where a latent frame is given.
            given_latents: the given frames, noised by `augment_sigma`; anything finite elsewhere.
            augment_sigma: noise level of the given frames, which the network is not told.
        """
        # Also in training, where NVIDIA's code keeps noisier frames than the sample: they tell it nothing new, and the
        # loss does not look at them.
        active = conditioning.active_frames(frame_mask, sigma, augment_sigma)
        scaled = conditioning.augment_frames(x, given_latents, active, sigma, augment_sigma, self.sigma_data)
        indicator = frame_mask.expand(-1, -1, -1, x.shape[3], x.shape[4])  # stays 1 after the frames are released
        network_input = torch.cat([scaled, indicator, frames_of(padding_mask, x)], dim=1)
        F = call_network(self.network, network_input, sigma, text_embeddings, fps)
        return edm.denoise(F, x, sigma, self.sigma_data)


Denoiser = Text2WorldDenoiser | Video2WorldDenoiser


def call_network(
    network: CosmosDiT,
    network_input: Float[Tensor, "B C T H W"],
    sigma: Float[Tensor, "B"],
    text_embeddings: Float[Tensor, "B M E"],
    fps: Float[Tensor, "B"],
) -> Float[Tensor, "B C2 T H W"]:
    """Network output in the sampler's precision; the network runs in that of its weights, the angles in that of fps."""
    dtype = network.patch_embedding.weight.dtype
    positions = grid_positions(token_grid(network_input, network.config.patch_size), network_input.device)
    F = network(network_input.to(dtype), edm.c_noise(sigma), text_embeddings.to(dtype), positions, fps)
    return F.to(network_input.dtype)


def frames_of(mask: Float[Tensor, "B 1 H W"], like: Latents) -> Float[Tensor, "B 1 T H W"]:
    """A spatial mask, repeated for every frame."""
    return mask[:, :, None].expand(-1, -1, like.shape[2], -1, -1)


def scale_latents(latents: Latents, sigma_data: float) -> Latents:
    """The tokenizer's latents (unit variance) at the standard deviation the diffusion works with."""
    return latents * sigma_data


def unscale_latents(x: Latents, sigma_data: float) -> Latents:
    """The way back to the tokenizer: undoes `scale_latents`."""
    return x / sigma_data
