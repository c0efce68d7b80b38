"""The denoiser D_theta: the only place where the network's output becomes an estimate of the clean latents."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cosmos_ref.equations import conditioning, edm, losses, noise, patches
from cosmos_ref.model.dit import CosmosDiT, Modulations, Prepared, token_grid
from cosmos_ref.shapes import Latents, expand


class Preconditioned(nn.Module):
    """A network, and what denoisers around it share."""

    def __init__(self, network: CosmosDiT, sigma_data: float):
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def prepare(
        self, latents: Float[Tensor, "_ C T H W"], text_embeddings: Float[Tensor, "B M E"], fps: Float[Tensor, "B"]
    ) -> Prepared:
        """Positions and text, ready for any number of calls of `run`. `latents` only lends its size."""
        return self.network.prepare(self.cast(text_embeddings), self.positions(latents), fps)

    def modulations(self, sigma: Float[Tensor, "S"]) -> Modulations:
        """What the noise level says to every sub-block, at S levels."""
        return self.network.modulations(edm.c_noise(sigma))

    def positions(self, latents: Float[Tensor, "_ C T H W"]) -> Int[Tensor, "L 3"]:
        """Where the tokens of latents of this size stand."""
        return patches.grid_positions(token_grid(latents, self.network.config.patch_size), latents.device)

    def cast(self, x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        """In the precision of the network's weights, in which it runs; the rest is in that of the latents."""
        return x.to(self.network.patch_embedding.weight.dtype)

    def estimate(self, F: Latents, x: Latents, sigma: Float[Tensor, "B"]) -> Latents:
        """D from the network's output."""
        return edm.denoise(F.to(x.dtype), x, sigma, self.sigma_data)


class Text2WorldDenoiser(Preconditioned):
    """D_theta from noisy latents, their noise level and a text."""

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
        network_input = self.cast(self.network_input(x, sigma, padding_mask))
        F = self.network(network_input, edm.c_noise(sigma), self.cast(text_embeddings), self.positions(x), fps)
        return self.estimate(F, x, sigma)

    def run(
        self,
        x: Latents,
        sigma: Float[Tensor, "B"],
        modulations: Modulations,
        prepared: Prepared,
        padding_mask: Float[Tensor, "B 1 H W"],
    ) -> Latents:
        """Estimate of the clean latents, with noise level, text and frame rate prepared."""
        F = self.network.run(self.cast(self.network_input(x, sigma, padding_mask)), modulations, prepared)
        return self.estimate(F, x, sigma)

    def network_input(
        self, x: Latents, sigma: Float[Tensor, "B"], padding_mask: Float[Tensor, "B 1 H W"]
    ) -> Float[Tensor, "B C2 T H W"]:
        """Latents at unit variance, and the padding mask."""
        scaled = expand(edm.c_in(sigma, self.sigma_data), x) * x
        return patches.network_input(scaled, None, padding_mask)


class Video2WorldDenoiser(Preconditioned):
    """D_theta that also sees given frames; with none given it is a Text2World denoiser."""

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
        given = padding_mask, frame_mask, given_latents, augment_sigma
        network_input = self.cast(self.network_input(x, sigma, *given))
        F = self.network(network_input, edm.c_noise(sigma), self.cast(text_embeddings), self.positions(x), fps)
        return self.estimate(F, x, sigma)

    def run(
        self,
        x: Latents,
        sigma: Float[Tensor, "B"],
        modulations: Modulations,
        prepared: Prepared,
        padding_mask: Float[Tensor, "B 1 H W"],
        frame_mask: Float[Tensor, "B 1 T 1 1"],
        given_latents: Latents,
        augment_sigma: Float[Tensor, "B"],
    ) -> Latents:
        """Estimate of the clean latents, with noise level, text and frame rate prepared."""
        given = padding_mask, frame_mask, given_latents, augment_sigma
        F = self.network.run(self.cast(self.network_input(x, sigma, *given)), modulations, prepared)
        return self.estimate(F, x, sigma)

    def network_input(
        self,
        x: Latents,
        sigma: Float[Tensor, "B"],
        padding_mask: Float[Tensor, "B 1 H W"],
        frame_mask: Float[Tensor, "B 1 T 1 1"],
        given_latents: Latents,
        augment_sigma: Float[Tensor, "B"],
    ) -> Float[Tensor, "B C2 T H W"]:
        """Latents at unit variance with the given frames in them, and the two masks."""
        # Also in training, where NVIDIA's code keeps noisier frames than the sample: they tell it nothing new, and the
        # loss does not look at them.
        active = conditioning.active_frames(frame_mask, sigma, augment_sigma)
        scaled = conditioning.augment_frames(x, given_latents, active, sigma, augment_sigma, self.sigma_data)
        # The mask itself enters, not the active one: it stays 1 after the frames are released.
        return patches.network_input(scaled, frame_mask, padding_mask)


Denoiser = Text2WorldDenoiser | Video2WorldDenoiser


def weighted_error(
    denoiser: Callable[..., Latents],
    x0: Latents,
    condition: Mapping[str, Tensor],
    unit_noise: Latents,
    sigma: Float[Tensor, "B"],
    sigma_data: float,
) -> Float[Tensor, "B"]:
    r"""Weighted denoising error of every sample, in float32 at least: 1 for a network that says nothing, 0 if given.

    $$\lambda(\sigma)\, \lVert D_\theta(x_0 + \sigma n;\ \sigma, c) - x_0 \rVert^2$$

    Args:
        denoiser: D_theta, `denoiser(x, sigma, **condition)`.
        x0: clean latents, scaled to `sigma_data`.
        condition: what else the denoiser is told; `frame_mask` marks the given frames, if there are any.
        unit_noise: unit Gaussian n.
        sigma: noise level of every sample.
        sigma_data: standard deviation of x0.
    """
    D = denoiser(noise.add_noise(x0, unit_noise, sigma), sigma, **condition)
    given = condition.get("frame_mask", x0.new_zeros(len(x0), 1, x0.shape[2], 1, 1))
    wide = torch.promote_types(D.dtype, torch.float32)
    L = losses.denoising_error(D.to(wide), x0=x0.to(wide), frame_mask=given.to(wide))
    return edm.loss_weight(sigma, sigma_data) * L
