"""What every variant of every graph must agree on with PyTorch in float32 before a bundle is written."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property

import numpy as np
import torch

from cosmos_export.card import sizes_of_clip, sizes_of_latents
from cosmos_export.compare import LIMITS, Call, Parity, call_inputs, compare, torch_call
from cosmos_export.verify import verify_variant
from cosmos_ref.config import Config
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.tokenizer import VideoTokenizer

NUM_LEVELS = 6
"""Noise levels from the preset's lowest to its highest at which single calls of the preset's clip are compared."""


class DenoiserParity:
    """The denoiser in PyTorch, against which every variant is measured.

    Args:
        config: the preset's numbers.
        denoiser: D_theta in float32.
        condition: a call's inputs as in use, for a whole sampling; its sizes, text and given frames are kept.
        decode: from clean latents at the diffusion's scale to a video.
    """

    def __init__(
        self,
        config: Config,
        denoiser: Denoiser,
        condition: Mapping[str, np.ndarray],
        decode: Callable[[np.ndarray], np.ndarray],
    ):
        self.config, self.condition, self.decode = config, condition, decode
        self.call = torch_call(denoiser)

    @cached_property
    def cases(self) -> dict[str, dict[str, np.ndarray]]:
        """Inputs: sizes that no graph was traced with, one of each size included; then all noise levels.

        The sizes are met at moderate noise, the levels at the preset's own size. At strong noise a trained network
        magnifies rounding at sizes that it never saw (bfloat16 has a cosine of 0.9987 there, tiny, latents of 10 x 2),
        and beyond its highest level at all sizes (float32 is 1e-5).
        """
        config, (pt, ph, pw) = self.config, self.config.model.patch_size
        usual, most = sizes_of_clip(config, config.clip), config.model.max_tokens
        preset = {name: usual[name] for name in ("frames", "height", "width", "text_length")}
        low, high = config.diffusion.sigma_min, config.diffusion.sigma_max
        two, three, five = min(2, most[0]) * pt, min(3, most[2]) * pw, min(5, most[1]) * ph
        settings = [
            (dict(batch=1, frames=pt, height=ph, width=pw, text_length=1), low),
            (dict(batch=3, frames=two, height=five, width=pw, text_length=7), min(1.0, high)),
            (dict(batch=2, frames=pt, height=ph, width=three, text_length=2), math.sqrt(low * high)),
        ]
        settings += [(dict(batch=1) | preset, float(sigma)) for sigma in np.geomspace(low, high, NUM_LEVELS)]
        return {
            f"call, {' '.join(f'{name} {n}' for name, n in size.items())}, sigma {sigma:.3g}": call_inputs(
                config, **size, sigma=sigma, seed=seed
            )
            for seed, (size, sigma) in enumerate(settings)
        }

    def measure(self, variant: str, candidate: Call) -> list[Parity]:
        """Single calls, calls along a whole sampling, and where it ends."""
        return verify_variant(
            self.call,
            candidate,
            LIMITS[variant],
            asdict(self.config),
            cases=self.cases,
            condition=self.condition,
            decode=self.decode,
        )


class TokenizerParity:
    """The tokenizer in PyTorch, both ways, at sizes that no graph was traced with; one frame included."""

    def __init__(self, config: Config, tokenizer: VideoTokenizer):
        self.config, self.tokenizer = config, tokenizer

    @cached_property
    def cases(self) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """Size in words, video, latents and the video that they are decoded to."""
        config, (_, ph, pw) = self.config, self.config.model.patch_size
        random = np.random.Generator(np.random.Philox(key=[0, 0]))
        usual = sizes_of_clip(config, config.clip)
        most = config.model.max_tokens[0] * config.model.patch_size[0]
        made = []
        for clips, latent in ((1, (1, ph, pw)), (1, tuple(usual[n] for n in ("frames", "height", "width"))),
                              (3, (min(2, most), ph, 3 * pw))):  # fmt: skip
            size = sizes_of_latents(config, *latent)
            shape = tuple(size[f"video_{side}"] for side in ("frames", "height", "width"))
            video = random.uniform(-1, 1, (clips, 3, *shape)).astype(np.float32)
            with torch.no_grad():
                latents = self.tokenizer.encode(torch.from_numpy(video))
                decoded = self.tokenizer.decode(latents).numpy()
            what = f"clips {clips}, frames {shape[0]}, height {shape[1]}, width {shape[2]}"
            made.append((what, video, latents.numpy(), decoded))
        return made

    def measure(self, graph: str, variant: str, candidate: Call) -> list[Parity]:
        """Single calls of one half."""
        limit = LIMITS[variant].call
        if graph == "tokenizer_encoder":
            return [compare(f"encoder, {w}", z, candidate({"video": v}), *limit) for w, v, z, _ in self.cases]
        return [compare(f"decoder, {w}", v, candidate({"latents": z}), *limit) for w, _, z, v in self.cases]


def samples(
    config: Config, condition: Mapping[str, np.ndarray], denoiser: Call, tokenizer: VideoTokenizer
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One example of every input, and what PyTorch makes of it in float32: an engine's first test.

    Args:
        config: the preset's numbers.
        condition: the denoiser's inputs.
        denoiser: D_theta.
        tokenizer: as in training.
    """
    frames, height, width = condition["x"].shape[2:]
    size = sizes_of_latents(config, frames, height, width)
    shape = tuple(size[f"video_{side}"] for side in ("frames", "height", "width"))
    video = np.random.Generator(np.random.Philox(key=[0, 1])).uniform(-1, 1, (1, 3, *shape)).astype(np.float32)
    with torch.no_grad():
        latents = tokenizer.encode(torch.from_numpy(video))
        decoded = tokenizer.decode(latents)
    inputs = {f"denoiser/{name}": value for name, value in condition.items()}
    inputs |= {"tokenizer_encoder/video": video, "tokenizer_decoder/latents": latents.numpy()}
    return inputs, {
        "denoiser/denoised": denoiser(condition),
        "tokenizer_encoder/latents": latents.numpy(),
        "tokenizer_decoder/video": decoded.numpy(),
    }
