"""How far two engines are apart: one call, or a whole sampling. PyTorch is imported only where it is one of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from cosmos_export.solvers import Denoise, integrate

CALL_LIMIT = 1e-5
"""Largest relative difference of one call in float32: rounding, in another order of summation."""
SAMPLING_LIMIT = 1e-3
"""Largest relative difference of the final latents of a whole sampling, where the calls' differences add up."""
PEAK = 2.0
"""From the darkest to the brightest value of a video."""

Call = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""D_theta as a function of its named inputs."""
Measure = Literal["relative", "l2", "cosine", "psnr"]
"""What a limit is put on: the first two are to stay below, the others above."""


class Limit(NamedTuple):
    """What is accepted of one comparison."""

    value: float
    measure: Measure = "relative"


class Contract(NamedTuple):
    """What a variant promises, against the model in float32."""

    call: Limit
    sampling: Limit


FLOAT32 = Contract(Limit(CALL_LIMIT), Limit(SAMPLING_LIMIT))
SAMPLING_PSNR = Limit(35.0, "psnr")
"""What differs by less is not seen. Single clips may be 10 dB worse than the mean: at strong noise, where a clip is
decided, a small difference can lead to another one."""
LIMITS: dict[str, Contract] = {
    "fp32": FLOAT32,
    "cpu": FLOAT32,
    "fp16": Contract(Limit(0.9995, "cosine"), SAMPLING_PSNR),
    "bf16": Contract(Limit(0.9995, "cosine"), SAMPLING_PSNR),
    "int8": Contract(Limit(0.985, "cosine"), SAMPLING_PSNR),
    "fp8": Contract(Limit(0.95, "cosine"), SAMPLING_PSNR),
    "cpu-int8": Contract(Limit(0.995, "cosine"), SAMPLING_PSNR),
}
"""The contract of every variant. That of 8 bits is measured on the trained tiny. On clips of our world, over all noise
levels, the worst of 32 calls has 0.997 in int8, 0.994 in fp8, 0.9994 in cpu-int8; samplings of 35 steps have 52, 50 and
54 dB (bf16: 43). Random inputs are unlike anything it was trained on and magnify what rounding does: the worst of 80
has 0.993, 0.971 and 0.9976 (bf16: 0.9995). An error is let through that is one and a half times as large as that."""


@dataclass(frozen=True)
class Parity:
    """One comparison of a candidate with a reference, its limit, and what is wrong with the output in itself."""

    what: str
    max_abs: float
    relative: float
    """The largest absolute difference, over the largest magnitude of the reference."""
    l2: float
    """The norm of the difference, over that of the reference."""
    cosine: float
    psnr: float | None
    """Of the decoded videos, in dB; None where nothing was decoded."""
    limit: float
    measure: Measure
    fault: str = ""
    """"not finite" or "constant", where the candidate is."""

    @property
    def ok(self) -> bool:
        """Whether it is within the limit (a value that is not a number is not)."""
        value = getattr(self, self.measure)
        return not self.fault and (value <= self.limit if self.measure in ("relative", "l2") else value >= self.limit)

    def __str__(self) -> str:
        if self.fault:
            return f"{self.what}: the output is {self.fault}"
        text = {"relative": "{:.1e}", "l2": "{:.1e}", "cosine": "{:.5f}", "psnr": "{:.1f} dB"}[self.measure]
        return (
            f"{self.what}: {self.measure} {text.format(getattr(self, self.measure))}, limit {text.format(self.limit)}"
        )


def compare(
    what: str,
    reference: np.ndarray,
    candidate: np.ndarray,
    limit: float,
    measure: Measure = "relative",
    videos: tuple[np.ndarray, np.ndarray] | None = None,
) -> Parity:
    """Compare two arrays of one shape.

    Args:
        what: a name for the comparison.
        reference: what it should be.
        candidate: what it is.
        limit: what is accepted.
        measure: what the limit is put on.
        videos: both decoded, in [-1, 1], for the PSNR.

    Raises:
        ValueError: if the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"{what}: shapes {reference.shape} and {candidate.shape} differ")
    r, c = reference.astype(np.float64), candidate.astype(np.float64)
    with np.errstate(all="ignore"):  # what is not a number, or divided by zero, is reported
        max_abs = float(np.abs(r - c).max())
        relative = max_abs / float(np.abs(r).max())
        l2 = float(np.linalg.norm(r - c) / np.linalg.norm(r))
        cosine = float(np.vdot(r, c) / (np.linalg.norm(r) * np.linalg.norm(c)))
    ratio = None if videos is None else psnr(*videos)
    return Parity(what, max_abs, relative, l2, cosine, ratio, limit, measure, fault(candidate, reference))


def fault(candidate: np.ndarray, reference: np.ndarray) -> str:
    """What makes an output worthless whatever the limit: "not finite", "constant", or nothing.

    It is constant if the pixels of its frames hardly differ where those of the reference do: one grey picture.
    """
    if not np.isfinite(candidate).all():
        return "not finite"
    return "constant" if contrast(candidate) < 0.01 * contrast(reference) else ""


def contrast(frames: np.ndarray) -> float:
    """How much the pixels of a frame differ: their standard deviation over the last two axes, over all frames."""
    return float(np.sqrt(np.atleast_2d(frames).astype(np.float64).var(axis=(-2, -1)).mean()))


def psnr(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Peak signal over noise of two videos in [-1, 1], in dB, as they are shown; at most 150, which is float32."""
    shown = (np.clip(video, -1, 1).astype(np.float64) for video in (reference, candidate))
    return float(10 * np.log10(PEAK**2 / max(np.mean(np.subtract(*shown) ** 2), PEAK**2 * 1e-15)))


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
    lines = [f"{'comparison':{width}}  max abs  relative  rel. L2   cosine     PSNR  limit"]
    for row in rows:
        ratio = f"{row.psnr:4.0f} dB" if row.psnr is not None else ""
        limit = f"{row.measure} {row.limit:g}"
        verdict = "" if row.ok else f"  TOO FAR: {row.fault}" if row.fault else "  TOO FAR"
        figures = f"{row.max_abs:7.1e}  {row.relative:8.1e}  {row.l2:7.1e}  {row.cosine:7.5f}  {ratio:>7}"
        lines.append(f"{row.what:{width}}  {figures}  {limit}{verdict}")
    return "\n".join(lines)
