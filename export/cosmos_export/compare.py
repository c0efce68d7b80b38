"""How far two engines are apart: one call, or a whole sampling. PyTorch is imported only where it is one of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cosmos_export.solvers import Denoise, integrate

CALL_LIMIT = 1e-5
"""Largest relative difference of one call in float32: rounding, in another order of summation."""
SAMPLING_LIMIT = 1e-3
"""Largest relative difference of the final latents of a whole sampling, where the calls' differences add up."""

Call = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""D_theta as a function of its named inputs."""


@dataclass(frozen=True)
class Parity:
    """One comparison: the largest absolute difference, and that over the largest magnitude of the reference."""

    what: str
    max_abs: float
    relative: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether it is within the limit (a value that is not a number is not)."""
        return self.relative <= self.limit

    def __str__(self) -> str:
        return f"{self.what}: {self.relative:.1e} relative, limit {self.limit:.0e}"


def compare(what: str, reference: np.ndarray, candidate: np.ndarray, limit: float) -> Parity:
    """Compare two arrays of one shape.

    Raises:
        ValueError: if the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"{what}: shapes {reference.shape} and {candidate.shape} differ")
    max_abs = float(np.abs(reference - candidate).max())
    return Parity(what, max_abs, max_abs / float(np.abs(reference).max()), limit)


def compare_calls(reference: Call, candidate: Call, cases: Mapping[str, Mapping[str, np.ndarray]]) -> list[Parity]:
    """One call of each engine for every named case; `call_inputs` makes cases."""
    return [compare(what, reference(inputs), candidate(inputs), CALL_LIMIT) for what, inputs in cases.items()]


def compare_sampling(
    reference: Denoise, candidate: Denoise, noise: np.ndarray, sigmas: Sequence[float], solver: str
) -> Parity:
    """Final latents of two denoisers, led from the same noise over the same levels by the same solver."""
    expected, latents = (integrate(denoise, noise, sigmas, solver) for denoise in (reference, candidate))
    return compare(f"sampling, {solver}, {len(sigmas) - 1} steps", expected, latents, SAMPLING_LIMIT)


def call_inputs(
    config: Any, *, batch: int, frames: int, height: int, width: int, text_length: int, sigma: float, seed: int
) -> dict[str, np.ndarray]:
    """Random inputs of the denoiser at latent sizes; the first of several frames is given, one pixel is padding."""
    model, random = config.model, np.random.Generator(np.random.Philox(key=[seed, 0]))
    latents = (batch, model.channels, frames, height, width)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    inputs = {
        "x": np.float32(np.hypot(sigma, config.diffusion.sigma_data)) * normal(*latents),
        "sigma": np.full(batch, sigma, np.float32),
        "text_embeddings": normal(batch, text_length, model.text_width),
        "fps": np.linspace(12, 30, batch, dtype=np.float32),
        "padding_mask": np.zeros((batch, 1, height, width), np.float32),
    }
    inputs["padding_mask"][:, :, -1, -1] = 1
    if model.video2world:
        inputs["frame_mask"] = np.zeros((batch, 1, frames, 1, 1), np.float32)
        inputs["frame_mask"][:, :, : min(1, frames - 1)] = 1
        inputs["given_latents"] = np.float32(config.diffusion.sigma_data) * normal(*latents)
        inputs["augment_sigma"] = np.geomspace(0.001, 1, batch, dtype=np.float32)
    return inputs


def torch_call(denoiser: Callable[..., Any]) -> Call:
    """A PyTorch denoiser as a function of numpy arrays."""
    import torch

    def call(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            return denoiser(**{name: torch.from_numpy(np.asarray(a)) for name, a in inputs.items()}).numpy()

    return call


def table(rows: Sequence[Parity]) -> str:
    """The comparisons as aligned lines of text."""
    width = max(len(row.what) for row in rows)
    lines = [f"{'comparison':{width}}  {'max abs':>8}  {'relative':>8}  {'limit':>6}"]
    for row in rows:
        verdict = "" if row.ok else "  TOO FAR"
        lines.append(f"{row.what:{width}}  {row.max_abs:8.1e}  {row.relative:8.1e}  {row.limit:6.0e}{verdict}")
    return "\n".join(lines)
