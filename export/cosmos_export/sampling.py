"""Text2World and Video2World: guidance, given frames and the sampler around the calls of a bundle's graphs.

The same as `cosmos_ref.pipelines`, convention by convention, written again because that package imports PyTorch; tests
hold the two equal.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from cosmos_export.bundle import Bundle
from cosmos_export.errors import BundleError, EngineFailure
from cosmos_export.solvers import (
    Denoise,
    Progress,
    active_frames,
    cfg,
    frame_mask,
    integrate,
    karras_sigmas,
    noise_from_seed,
    replace_frames,
)

AUGMENT_STREAM = 2**32
"""Indices between one draw of noise and the next: first that which starts the sampler, then that on given frames."""
SHADE = 1 / 255
"""A clip whose values are all within this is one colour: less than a step of a byte lies between its pixels."""


@dataclass
class Seconds:
    """How long every stage of a sampling took."""

    text: float = 0.0
    encode: float = 0.0
    steps: list[float] = field(default_factory=list)
    """Of the solver, one by one: the first may pay for what is made once."""
    decode: float = 0.0


class Generated(NamedTuple):
    """What `sample` made."""

    video: np.ndarray
    """`B 3 T H W` in [-1, 1]."""
    x0: np.ndarray
    """The latents it was decoded from, at the diffusion's scale."""
    seconds: Seconds
    """How long it took."""


def guided(
    denoiser: Callable[..., np.ndarray],
    condition: Mapping[str, np.ndarray],
    null_text: np.ndarray,
    guidance: float,
    x0: np.ndarray | None = None,
    draw_given: Callable[[], np.ndarray] | None = None,
) -> Denoise:
    """D = D_c + g (D_c - D_u) in one call of twice the batch; while given frames of `x0` are in use, D holds them.

    Without guidance (g = 0) the second branch is not computed. `draw_given` gives `given_latents` with new noise, for
    each branch at each call; without it theirs is fixed.
    """
    branches = [condition, {**condition, "text_embeddings": null_text}] if guidance else [condition]
    told = {name: np.concatenate([branch[name] for branch in branches]) for name in condition}

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        fresh = {"given_latents": np.concatenate([draw_given() for _ in branches])} if draw_given else {}
        each = np.full(len(branches) * len(x), sigma, np.float32)
        D = denoiser(x=np.concatenate([x] * len(branches)), sigma=each, **told | fresh)
        if not np.isfinite(D).all():
            raise EngineFailure(
                f"what the denoiser made at sigma {sigma:.4g} is not finite: take another variant (fp32 has the widest "
                "range), or guidance nearer 0"
            )
        if guidance:
            D_conditional, D_unconditional = np.split(D, 2)
            D = cfg(D_conditional, D_unconditional, guidance)
        if x0 is not None:
            active = active_frames(condition["frame_mask"], each[: len(x)], condition["augment_sigma"])
            D = replace_frames(D, x0, active)
        return D

    return denoise


def schedule(config: Mapping[str, Any], num_steps: int) -> list[float]:
    """The noise levels of a sampler; the last one is zero, or `sigma_min` again where the preset says so.

    Raises:
        BundleError: if the preset says something else, or there are too few steps.
    """
    diffusion, last = config["diffusion"], config["sample"].get("last_sigma", "zero")
    sigmas = karras_sigmas(num_steps, diffusion["sigma_min"], diffusion["sigma_max"], diffusion["rho"]).tolist()
    _check_choice("last_sigma", last, ("zero", "sigma_min"))
    return sigmas if last == "zero" else [*sigmas[:-1], sigmas[-2]]


def check_settings(
    *,
    seed: int | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
    augment_sigma: float | None = None,
    fps: float | None = None,
) -> None:
    """Refuse settings that mean nothing; None stands for the preset's.

    Raises:
        BundleError: naming the first of them, its value and what is accepted.
    """
    if seed is not None and not 0 <= seed < 2**64:
        raise BundleError(f"seed {seed} is not accepted: give one from 0 to 2**64 - 1")
    if num_steps is not None and num_steps < 2:
        raise BundleError(f"num_steps {num_steps} is too few: a sampler takes at least 2")
    if guidance is not None and not abs(guidance) <= 1000:  # also what is not a number
        raise BundleError(f"guidance {guidance} is not a number to guide with: give 0 for none, Cosmos has 7")
    if augment_sigma is not None and not 0 < augment_sigma < 1000:
        raise BundleError(f"augment_sigma {augment_sigma:g} is not a noise level: give one above 0, Cosmos has 0.001")
    if fps is not None and not 0 < fps < math.inf:
        raise BundleError(f"fps {fps:g} is not accepted: give frames a second above 0")


def sample(
    bundle: Bundle,
    prompts: Sequence[str | None] = (None,),
    *,
    text_embeddings: np.ndarray | None = None,
    null_embeddings: np.ndarray | None = None,
    negative_prompt: str | None = None,
    given_video: np.ndarray | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    noise: np.ndarray | None = None,
    seed: int | None = None,
    num_steps: int | None = None,
    solver: str | None = None,
    guidance: float | None = None,
    augment_sigma: float | None = None,
    progress: Progress = iter,
) -> Generated:
    """Clips from prompts, or from given frames and prompts; what is left out is as the preset says.

    Args:
        bundle: the model.
        prompts: one a clip; None is the null text.
        text_embeddings: `B M E`, instead of prompts.
        null_embeddings: `B M E`, instead of a negative prompt.
        negative_prompt: what guidance leads away from, instead of the null text.
        given_video: `B 3 T H W` in [-1, 1], all of it used: 1 + (n - 1) * temporal_factor frames for n latents.
        frames: length of the clips, 1 + k * temporal_factor.
        height: in pixels; that of the given frames where there are some.
        width: in pixels, likewise.
        fps: frames a second.
        noise: unit noise `B C t h w` to start from, instead of that of the seed.
        seed: of the noise; clip i depends on the seed and i alone.
        num_steps: steps of the solver.
        solver: "euler", "heun" or "res_2ab".
        guidance: g; 0 is none.
        augment_sigma: noise on the given frames.
        progress: wraps the solver's steps.

    Raises:
        BundleError: if the request does not fit the model.
        EngineFailure: if running failed, or what was made is not finite, or one colour.
    """
    check_settings(seed=seed, num_steps=num_steps, guidance=guidance, augment_sigma=augment_sigma, fps=fps)
    config, seconds, started = bundle.config, Seconds(), time.perf_counter()
    clip, settings = config["clip"], config["sample"]
    seed = int(settings["seed"]) if seed is None else seed
    guidance = float(settings["guidance"]) if guidance is None else guidance
    sigmas = schedule(config, settings["num_steps"] if num_steps is None else num_steps)
    if given_video is not None:
        height, width = given_video.shape[3:]
    shape = bundle.latent_shape(frames or clip["frames"], height or clip["height"], width or clip["width"])
    text, null_text = _texts(bundle, prompts, text_embeddings, null_embeddings, negative_prompt)
    B, (_, t, h, w) = len(text), shape
    latent = {"frames": t, "height": h, "width": w}
    batch = 2 * B if guidance else B
    bundle.check_sizes("denoiser", {"batch": batch, "text_length": text.shape[1], **latent})
    bundle.check_sizes("tokenizer_decoder", {"clips": B, **latent})
    streams = count()

    def draw() -> np.ndarray:
        """Unit noise, each time new."""
        stream = next(streams) * AUGMENT_STREAM
        return np.stack([noise_from_seed(seed, stream + i, shape) for i in range(B)])

    drawn = draw()
    noise = drawn if noise is None else noise
    if noise.shape != drawn.shape:
        raise BundleError(f"the noise has shape {noise.shape}; this request needs {drawn.shape}")
    condition = {
        "text_embeddings": text,
        "fps": np.full(B, clip["fps"] if fps is None else fps, np.float32),
        "padding_mask": np.zeros((B, 1, h, w), np.float32),
    }
    seconds.text, started = _since(started)
    x0 = draw_given = None
    if given_video is not None:
        given = _given_latents(bundle, given_video, drawn.shape)
        level = settings["augment_sigma"] if augment_sigma is None else augment_sigma
        x0 = clean = np.zeros_like(drawn)
        clean[:, :, :given] = bundle.encode(given_video) * config["diffusion"]["sigma_data"]
        condition |= give_frames(clean, given, level, draw())
        convention = settings.get("given_noise", "fixed")
        _check_choice("given_noise", convention, ("fixed", "fresh"))

        def fresh() -> np.ndarray:
            return give_frames(clean, given, level, draw())["given_latents"]

        draw_given = fresh if convention == "fresh" else None
    elif bundle.video2world:
        condition |= give_frames(np.zeros_like(drawn), 0, 0.0, np.zeros_like(drawn))
    seconds.encode, started = _since(started)

    def timed(steps: Iterable) -> Iterator:
        for step in progress(steps):
            begun = time.perf_counter()
            yield step
            seconds.steps.append(time.perf_counter() - begun)

    denoise = guided(bundle.denoise, condition, null_text, guidance, x0, draw_given)
    conventions = {name: settings[name] for name in ("initial_noise", "state") if name in settings}
    latents = integrate(denoise, noise, sigmas, solver or settings["solver"], timed, **conventions)
    _check_made("the latents", latents, shade=0)
    started = time.perf_counter()
    video = bundle.decode(latents / config["diffusion"]["sigma_data"])
    _check_made("the clip", video, SHADE)
    seconds.decode, _ = _since(started)
    return Generated(video, latents, seconds)


def _texts(
    bundle: Bundle,
    prompts: Sequence[str | None],
    text_embeddings: np.ndarray | None,
    null_embeddings: np.ndarray | None,
    negative_prompt: str | None,
) -> tuple[np.ndarray, np.ndarray]:
    """What guidance leads to, and what it leads away from."""
    if text_embeddings is None and not prompts:
        raise BundleError("there are no prompts: give at least one, None for the null text")
    text = bundle.encode_text(prompts) if text_embeddings is None else np.asarray(text_embeddings, np.float32)
    width = bundle.config["text"]["width"]
    if text.ndim != 3 or text.shape[2] != width:
        raise BundleError(f"text embeddings have shape {text.shape}; accepted: batch, length, {width}")
    if null_embeddings is not None:
        null_text = np.asarray(null_embeddings, np.float32)
    elif negative_prompt is not None:
        null_text = bundle.encode_text([negative_prompt] * len(text))
    else:
        null_text = np.zeros_like(text)
    if null_text.shape != text.shape:
        raise BundleError(
            f"text embeddings of shape {text.shape} do not go with negative ones of {null_text.shape}: give both alike"
        )
    return text, null_text


def _given_latents(bundle: Bundle, video: np.ndarray, shape: tuple[int, ...]) -> int:
    """How many latent frames the given ones are."""
    if not bundle.video2world:
        raise BundleError("this is a Text2World model: it takes no frames, only a prompt")
    if len(video) != shape[0]:
        raise BundleError(f"{len(video)} given videos for {shape[0]} prompts")
    given = bundle.latent_length(video.shape[2])
    if given >= shape[2]:
        raise BundleError(f"{video.shape[2]} given frames leave nothing to generate: give fewer, or ask for more")
    return given


def give_frames(x0: np.ndarray, given: int, augment_sigma: float, noise: np.ndarray) -> dict[str, np.ndarray]:
    """What a Video2World model is told of the given frames; with none given it is a Text2World model."""
    mask = frame_mask(np.full(len(x0), given), x0.shape[2])
    level = np.float32(augment_sigma)
    return {
        "frame_mask": mask,
        "given_latents": mask * (x0 + level * noise),
        "augment_sigma": np.full(len(x0), level, np.float32),
    }


def _check_choice(what: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise BundleError(f"the preset's {what} {value!r} is unknown; accepted: {', '.join(accepted)}")


def _check_made(what: str, values: np.ndarray, shade: float) -> None:
    """Users had grey pictures with exit code 0."""
    if not np.isfinite(values).all():
        raise EngineFailure(f"{what} made is not finite: take another variant (fp32 has the widest range)")
    if np.ptp(values) <= shade:
        raise EngineFailure(
            f"{what} made is constant, {values.flat[0]:.3g} everywhere: the model is not trained, or the variant is "
            "broken; `cosmos-ref verify` says which"
        )


def _since(started: float) -> tuple[float, float]:
    now = time.perf_counter()
    return now - started, now
