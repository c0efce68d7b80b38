"""Text2World and Video2World from a bundle, with numpy and ONNX Runtime only.

The graph holds D_theta; what is left is guidance and the given frames (here), the schedule, the solvers and the noise.

    python -m cosmos_export.runtime BUNDLE --prompt "a red marble falls" --out clip.mp4
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cosmos_export.bundle import Bundle, BundleError
from cosmos_export.solvers import Denoise, Progress, integrate, karras_sigmas, noise_from_seed
from cosmos_export.video import frame_rate, read_last_frames, write_mp4

AUGMENT_STREAM = 2**32
"""Index from which the noise on given frames is drawn, away from the noise that starts the sampler."""


def guided(
    denoiser: Callable[..., np.ndarray],
    condition: dict[str, np.ndarray],
    null_text: np.ndarray,
    guidance: float,
    x0: np.ndarray | None = None,
) -> Denoise:
    """D = D_c + g (D_c - D_u) in one call of twice the batch; while given frames of `x0` are in use, D holds them.

    Without guidance (g = 0) the second branch is not computed.
    """
    both = {name: np.concatenate([value, value]) for name, value in condition.items()}
    both["text_embeddings"] = np.concatenate([condition["text_embeddings"], null_text])

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        levels = np.full(len(x), sigma, np.float32)
        if guidance:
            doubled = denoiser(x=np.concatenate([x, x]), sigma=np.concatenate([levels, levels]), **both)
            D_conditional, D_unconditional = np.split(doubled, 2)
            D = D_conditional + guidance * (D_conditional - D_unconditional)
        else:
            D = denoiser(x=x, sigma=levels, **condition)
        if x0 is not None:
            in_use = (levels > condition["augment_sigma"]).astype(np.float32).reshape(-1, 1, 1, 1, 1)
            active = condition["frame_mask"] * in_use
            D = active * x0 + (1 - active) * D
        return D

    return denoise


class Generated(NamedTuple):
    """What `sample` made."""

    video: np.ndarray
    """`B 3 T H W` in [-1, 1]."""
    x0: np.ndarray
    """The latents it was decoded from, at the diffusion's scale."""


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
    if guidance is not None and not math.isfinite(guidance):
        raise BundleError(f"guidance {guidance} is not accepted: give a finite number, 0 is none")
    if augment_sigma is not None and not 0 < augment_sigma < 1000:
        raise BundleError(f"augment_sigma {augment_sigma:g} is not a noise level: give one above 0, Cosmos has 0.001")
    if fps is not None and not 0 < fps < math.inf:
        raise BundleError(f"fps {fps:g} is not accepted: give frames a second above 0")


def sample(
    bundle: Bundle,
    prompts: Sequence[str | None] = (None,),
    *,
    text_embeddings: np.ndarray | None = None,
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
    """
    check_settings(seed=seed, num_steps=num_steps, guidance=guidance, augment_sigma=augment_sigma, fps=fps)
    config = bundle.config
    clip, settings, diffusion = config["clip"], config["sample"], config["diffusion"]
    sigma_data = diffusion["sigma_data"]
    seed = int(settings["seed"]) if seed is None else seed
    if given_video is not None:
        height, width = given_video.shape[3:]
    shape = bundle.latent_shape(frames or clip["frames"], height or clip["height"], width or clip["width"])
    text = bundle.encode_text(prompts) if text_embeddings is None else np.asarray(text_embeddings, np.float32)
    text_width = config["text"]["width"]
    if text.ndim != 3 or text.shape[2] != text_width:
        raise BundleError(f"text embeddings have shape {text.shape}; accepted: batch, length, {text_width}")
    B = len(text)
    if noise is None:
        noise = np.stack([noise_from_seed(seed, i, shape) for i in range(B)])
    if noise.shape != (B, *shape):
        raise BundleError(f"the noise has shape {noise.shape}; this request needs {(B, *shape)}")
    null_text = bundle.encode_text([negative_prompt] * B)
    if null_text.shape[1] != text.shape[1]:
        if negative_prompt is not None:
            raise BundleError(f"text embeddings of length {text.shape[1]} do not go with a negative prompt")
        null_text = np.zeros_like(text)
    condition = {
        "text_embeddings": text,
        "fps": np.full(B, clip["fps"] if fps is None else fps, np.float32),
        "padding_mask": np.zeros((B, 1, *shape[2:]), np.float32),
    }
    x0 = None
    if given_video is not None:
        x0 = _given_latents(bundle, given_video, (B, *shape))
        strength = settings["augment_sigma"] if augment_sigma is None else augment_sigma
        augment_noise = np.stack([noise_from_seed(seed, AUGMENT_STREAM + i, shape) for i in range(B)])
        condition |= _give_frames(x0, bundle.latent_length(given_video.shape[2]), strength, augment_noise)
    elif bundle.video2world:
        condition |= _give_frames(np.zeros_like(noise), 0, 0.0, np.zeros_like(noise))
    sigmas = karras_sigmas(
        settings["num_steps"] if num_steps is None else num_steps,
        diffusion["sigma_min"], diffusion["sigma_max"], diffusion["rho"],
    )  # fmt: skip
    denoise = guided(bundle.denoise, condition, null_text, settings["guidance"] if guidance is None else guidance, x0)
    latents = integrate(denoise, noise, sigmas.tolist(), solver or settings["solver"], progress)
    return Generated(bundle.decode(latents / sigma_data), latents)


def _given_latents(bundle: Bundle, video: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Latents of the given frames at the diffusion's scale, zeros behind them."""
    if not bundle.video2world:
        raise BundleError("this is a Text2World model: it takes no frames, only a prompt")
    if len(video) != shape[0]:
        raise BundleError(f"{len(video)} given videos for {shape[0]} prompts")
    given = bundle.latent_length(video.shape[2])
    if given >= shape[2]:
        raise BundleError(f"{video.shape[2]} given frames leave nothing to generate: give fewer, or ask for more")
    x0 = np.zeros(shape, np.float32)
    x0[:, :, :given] = bundle.encode(video) * bundle.config["diffusion"]["sigma_data"]
    return x0


def _give_frames(x0: np.ndarray, given: int, augment_sigma: float, noise: np.ndarray) -> dict[str, np.ndarray]:
    """What a Video2World model is told of the given frames; with none given it is a Text2World model."""
    mask = np.zeros((len(x0), 1, x0.shape[2], 1, 1), np.float32)
    mask[:, :, :given] = 1
    level = np.float32(augment_sigma)
    return {
        "frame_mask": mask,
        "given_latents": mask * (x0 + level * noise),
        "augment_sigma": np.full(len(x0), level, np.float32),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 2 if the request cannot be used, 1 if running it failed."""
    arguments = _parser().parse_args(argv)
    try:
        _run(arguments)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # of ONNX Runtime, FFmpeg or the file system
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("cosmos-export", description="Generate a clip from a bundle, without PyTorch.")
    add = parser.add_argument
    add("bundle", type=Path, help="folder written by the exporter")
    add("--out", type=Path, required=True, help="the clip, .mp4")
    add("--prompt", help="what to show; left out, the model chooses")
    add("--negative-prompt", help="what to lead away from")
    add("--text-embeddings", type=Path, help=".npy file, length x width, instead of a prompt")
    add("--frames", type=Path, help="video to continue")
    add("--given", type=int, help="how many of its last frames to use, 1 + k * temporal factor; else as in training")
    add("--resize", action="store_true", help="scale the given frames to --height and --width")
    add("--num-frames", type=int, help="length of the clip, 1 + k * temporal factor")
    add("--height", type=int, help="in pixels")
    add("--width", type=int, help="in pixels")
    add("--fps", type=float, help="frames a second; with given frames, theirs")
    add("--num-steps", type=int, help="steps of the solver")
    add("--solver", choices=("euler", "heun", "res_2ab"))
    add("--guidance", type=float, help="0 is none")
    add("--augment-sigma", type=float, help="noise on the given frames")
    add("--seed", type=int, help="of the noise, from 0 to 2**64 - 1")
    add("--provider", default="CPUExecutionProvider", help="ONNX Runtime's execution provider")
    add("--threads", type=int, default=0, help="0 is one per core")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    out = arguments.out
    if out.suffix.lower() != ".mp4":
        raise BundleError(f"cannot write {out}: the suffix must be .mp4")
    if out.is_dir():
        raise BundleError(f"cannot write {out}: it is a folder; give a file name")
    if arguments.threads < 0:
        raise BundleError(f"--threads {arguments.threads} is not accepted: give a number, 0 is one per core")
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise BundleError(f"cannot write {out}: {out.absolute().parent} is not a writable folder")
    for name in ("num_frames", "height", "width", "given"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise BundleError(f"--{name.replace('_', '-')} is {value}; it must be above 0")
    settings = {name: getattr(arguments, name) for name in ("seed", "num_steps", "guidance", "augment_sigma", "fps")}
    check_settings(**settings)
    if arguments.prompt is not None and arguments.text_embeddings is not None:
        raise BundleError("--prompt and --text-embeddings exclude each other")
    start = time.perf_counter()
    bundle = Bundle.load(arguments.bundle, (arguments.provider,), arguments.threads)
    clip = bundle.config["clip"]
    text, given = None, None
    if arguments.text_embeddings is not None:
        try:
            text = np.load(arguments.text_embeddings, allow_pickle=False)[None]
        except (OSError, ValueError) as error:
            raise BundleError(f"{arguments.text_embeddings} cannot be read: {error}") from error
    if arguments.frames is not None:
        trained_for = 1 + (len(bundle.config["train"]["given_latents"]) - 2) * bundle.manifest["temporal_factor"]
        count = arguments.given or trained_for
        bundle.latent_length(count)
        size = (arguments.height or clip["height"], arguments.width or clip["width"])
        given = read_last_frames(arguments.frames, count, size if arguments.resize else None)[None]
        settings["fps"] = arguments.fps or frame_rate(arguments.frames)
        wanted = (arguments.height or given.shape[3], arguments.width or given.shape[4])
        if given.shape[3:] != wanted:
            raise BundleError(f"the given frames are {given.shape[3]} x {given.shape[4]}, not {wanted}: add --resize")
    loaded = time.perf_counter()
    result = sample(
        bundle,
        (arguments.prompt,),
        text_embeddings=text,
        negative_prompt=arguments.negative_prompt,
        given_video=given,
        frames=arguments.num_frames,
        height=arguments.height,
        width=arguments.width,
        solver=arguments.solver,
        progress=_show,
        **settings,
    )
    sampled = time.perf_counter()
    write_mp4(out, result.video[0], settings["fps"] or clip["fps"])
    print(f"{out}: loaded in {loaded - start:.1f} s, sampled in {sampled - loaded:.1f} s")


def _show(steps: Iterable) -> Iterable:
    steps = list(steps)
    for n, step in enumerate(steps, 1):
        yield step
        print(f"\rstep {n}/{len(steps)}", end="" if n < len(steps) else "\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
