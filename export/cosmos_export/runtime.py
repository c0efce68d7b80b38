"""Text2World and Video2World from a bundle, with numpy and ONNX Runtime only.

The graph holds D_theta; what is left is here: the schedule, the solvers, guidance, the given frames and the noise. The
formulas are those of `cosmos_ref.equations`, written again because that package imports PyTorch; tests hold them equal.

    python -m cosmos_export.runtime BUNDLE --prompt "a red marble falls" --out clip.mp4
"""

import argparse
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

BUNDLE_FORMAT = 1
"""Version of the manifest; another one is refused."""
AUGMENT_STREAM = 2**32
"""Index from which the noise on given frames is drawn, away from the noise that starts the sampler."""
# FFmpeg would also render a text file as a "video" and follow a playlist to other hosts: allow videos only.
VIDEO_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,ogg",
    "protocol_whitelist": "file",
}

Denoise = Callable[[np.ndarray, float], np.ndarray]
"""D at a noisy sample and its level: the network with everything else fixed."""
Progress = Callable[[Iterable], Iterable]
"""Wraps the solver's steps, to show how far they are."""


class BundleError(ValueError):
    """A bundle or a request that cannot be used: the message says why, and what is accepted."""


def karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> np.ndarray:
    """The noise levels of an N-step sampler in float64, falling; N levels, then zero.

    Raises:
        BundleError: if there are fewer than two steps.
    """
    if num_steps < 2:
        raise BundleError(f"num_steps is {num_steps}; the schedule needs at least 2")
    ramp = np.linspace(0, 1, num_steps)
    levels = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return np.append(levels, 0.0)


def euler_step(x: np.ndarray, D: np.ndarray, sigma: float, sigma_next: float) -> np.ndarray:
    """First-order step along dx/dsigma = (x - D) / sigma."""
    return x + (sigma_next - sigma) * ((x - D) / sigma)


def heun_step(denoise: Denoise, x: np.ndarray, sigma: float, sigma_next: float) -> np.ndarray:
    """Second-order step: the mean of the slopes at both ends."""
    D = denoise(x, sigma)
    x_euler = euler_step(x, D, sigma, sigma_next)
    if sigma_next == 0:
        return x_euler
    slope, slope_next = (x - D) / sigma, (x_euler - denoise(x_euler, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (slope + slope_next) / 2


def res_2ab_step(
    x: np.ndarray, D: np.ndarray, D_previous: np.ndarray, sigma: float, sigma_next: float, sigma_previous: float
) -> np.ndarray:
    """Second-order exponential multistep, from this step's estimate and the one before; a step to zero returns D."""
    if sigma_next == 0:
        return D
    h = math.log(sigma / sigma_next)
    c2 = -math.log(sigma_previous / sigma) / h
    phi1 = math.expm1(-h) / -h
    phi2 = (phi1 - 1) / -h
    b2 = phi2 / c2
    return math.exp(-h) * x + h * ((phi1 - b2) * D + b2 * D_previous)


def integrate(
    denoise: Denoise, noise: np.ndarray, sigmas: Sequence[float], solver: str, progress: Progress = iter
) -> np.ndarray:
    """Clean latents from unit noise, over falling noise levels of which the last is 0.

    Raises:
        BundleError: if the solver is unknown.
    """
    if solver not in ("euler", "heun", "res_2ab"):
        raise BundleError(f"unknown solver {solver!r}; accepted: euler, heun, res_2ab")
    levels = [float(sigma) for sigma in sigmas]
    x, previous = levels[0] * noise, None
    for sigma, sigma_next in progress(list(pairwise(levels))):
        if solver == "heun":
            x = heun_step(denoise, x, sigma, sigma_next)
            continue
        D = denoise(x, sigma)
        if solver == "euler" or previous is None:  # the first step has none before it
            x_next = euler_step(x, D, sigma, sigma_next)
        else:
            x_next = res_2ab_step(x, D, previous[0], sigma, sigma_next, previous[1])
        x, previous = x_next, (D, sigma)
    return x


def noise_from_seed(seed: int, index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Unit noise in float32, the same as the PyTorch pipelines draw: Philox, keyed by seed and index."""
    return np.random.Generator(np.random.Philox(key=[seed, index])).standard_normal(shape, dtype=np.float32)


def words_embedding(prompts: Sequence[str | None], length: int, width: int) -> np.ndarray:
    """Text embeddings `B M E` of the words encoder: a fixed random vector per word, plus its place; None is zeros.

    Raises:
        BundleError: if a prompt holds no word, or more than `length`.
    """
    rows = np.zeros((len(prompts), length, width), np.float32)
    for row, prompt in zip(rows, prompts, strict=True):
        if prompt is None:
            continue
        words = re.findall(r"\w+", prompt.lower())
        if not words:
            raise BundleError(f"the prompt {prompt!r} is empty: write what should be seen, or leave the prompt out")
        if len(words) > length:
            raise BundleError(f"the prompt {prompt[:60]!r}... has {len(words)} words; at most {length} are accepted")
        place = np.arange(len(words))[:, None] * 100.0 ** (-2 * np.arange(width // 2) / width)
        row[: len(words)] = np.concatenate([np.sin(place), np.cos(place)], axis=1)
        row[: len(words)] += [_word_vector(word, width) for word in words]
    return rows


def _word_vector(word: str, width: int) -> np.ndarray:
    key = np.frombuffer(hashlib.sha256(word.encode()).digest()[:16], "<u8")
    vector = np.random.Generator(np.random.Philox(key=key)).standard_normal(width, dtype=np.float32)
    return vector / np.sqrt(np.mean(vector**2))


def open_session(
    path: Path, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 0
) -> ort.InferenceSession:
    """A graph in ONNX Runtime, on the first of `providers` that takes each operator; `threads` 0 is one per core.

    Raises:
        BundleError: if a provider is not there. It would be left out in silence otherwise.
    """
    if missing := set(providers) - set(ort.get_available_providers()):
        there = ", ".join(ort.get_available_providers())
        raise BundleError(f"ONNX Runtime has no {', '.join(sorted(missing))} here; it has: {there}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=list(providers))


def run_session(session: ort.InferenceSession, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The single output of a graph."""
    return np.asarray(session.run(None, inputs)[0])


@dataclass(frozen=True)
class Bundle:
    """A folder written by the exporter, its graphs loaded; `config` holds the preset's numbers."""

    manifest: dict[str, Any]
    denoiser: ort.InferenceSession
    encoder: ort.InferenceSession
    decoder: ort.InferenceSession

    @classmethod
    def load(cls, path: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 0) -> "Bundle":
        """Check every file against the manifest, then open the graphs.

        Raises:
            BundleError: if the folder is no bundle, of another format, or a file is missing or altered.
        """
        path = Path(path)
        manifest = read_manifest(path)
        names = ("denoiser", "tokenizer_encoder", "tokenizer_decoder")
        return cls(manifest, *(open_session(path / f"{name}.onnx", providers, threads) for name in names))

    @property
    def config(self) -> dict[str, Any]:
        """The preset's numbers: model, diffusion, tokenizer, text, clip, sample."""
        return self.manifest["config"]

    @property
    def video2world(self) -> bool:
        """Whether the model takes given frames."""
        return self.config["model"]["video2world"]

    def denoise(self, **inputs: np.ndarray) -> np.ndarray:
        """One call of D_theta; the manifest lists its inputs."""
        return run_session(self.denoiser, inputs)

    def encode(self, video: np.ndarray) -> np.ndarray:
        """Latents `B C t h w` of unit variance from a video `B 3 T H W` in [-1, 1]."""
        return run_session(self.encoder, {"video": np.asarray(video, np.float32)})

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Video in [-1, 1] from latents of unit variance."""
        return run_session(self.decoder, {"latents": latents})

    def encode_text(self, prompts: Sequence[str | None]) -> np.ndarray:
        """Text embeddings `B M E`; None is the null text.

        Raises:
            BundleError: if a prompt is empty or too long, or the model's text encoder is not one that runs here.
        """
        text = self.config["text"]
        if text["encoder"] != "words" and any(prompt is not None for prompt in prompts):
            raise BundleError(f"the text encoder {text['encoder']!r} is not in the bundle: pass text embeddings")
        return words_embedding(prompts, text["length"], text["width"])

    def latent_length(self, frames: int) -> int:
        """Latent frames of a clip.

        Raises:
            BundleError: if the clip's length is not 1 + k * temporal_factor.
        """
        factor = self.manifest["temporal_factor"]
        if frames < 1 or (frames - 1) % factor:
            raise BundleError(f"a clip of {frames} frames does not fit: its length must be 1 + k * {factor}")
        return 1 + (frames - 1) // factor

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape `C t h w` of a clip's latents.

        Raises:
            BundleError: if the model cannot take a clip of this length or size.
        """
        model, factor = self.config["model"], self.manifest["spatial_factor"]
        patch, most = model["patch_size"], model["max_tokens"]
        t = self.latent_length(frames)
        if t % patch[0] or t > most[0] * patch[0]:
            longest = 1 + (most[0] * patch[0] - 1) * self.manifest["temporal_factor"]
            raise BundleError(f"{frames} frames do not fit: this model takes at most {longest}")
        for name, size, unit, tokens in (("height", height, factor * patch[1], most[1]),
                                         ("width", width, factor * patch[2], most[2])):  # fmt: skip
            if size < unit or size % unit or size > tokens * unit:
                raise BundleError(f"{name} {size} does not fit: a multiple of {unit}, at most {tokens * unit}")
        return model["channels"], t, height // factor, width // factor


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files are all there and as they were written.

    Raises:
        BundleError: if they are not.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        version, files = manifest["format"], manifest["files"]
    except FileNotFoundError:
        raise BundleError(f"{path} is not a bundle: it has no manifest.json") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path / 'manifest.json'} cannot be read: {error!r}") from error
    if version != BUNDLE_FORMAT:
        raise BundleError(f"{path} has format {version}; this runtime reads {BUNDLE_FORMAT}: export it again")
    for name, expected in files.items():
        if not (path / name).is_file():
            raise BundleError(f"{path / name} is missing: copy the whole folder, or export it again")
        with (path / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise BundleError(f"{path / name} is not the file that was exported: copy it again")
    return manifest


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
        "fps": np.full(B, fps or clip["fps"], np.float32),
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


def read_last_frames(path: str | Path, count: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """The last `count` frames of a video file, `3 T H W` in [-1, 1], scaled to (height, width) where given.

    Raises:
        BundleError: if the file is missing, no video, or has fewer frames.
    """
    import av
    from av.error import FFmpegError

    kept: list[np.ndarray] = []
    try:
        with av.open(str(Path(path).absolute()), options=VIDEO_OPTIONS) as container:
            for frame in container.decode(video=0):
                if size is not None:
                    frame = frame.reformat(height=size[0], width=size[1], interpolation="AREA")
                kept = [*kept, frame.to_ndarray(format="rgb24")][-count:]
    except (FFmpegError, IndexError, OSError) as error:
        raise BundleError(f"{path} cannot be read as a video: {error}") from error
    if len(kept) < count:
        raise BundleError(f"{path} has {len(kept)} frame(s), {count} are needed: use a longer video")
    return np.stack(kept).transpose(3, 0, 1, 2).astype(np.float32) / 127.5 - 1


def write_mp4(path: str | Path, video: np.ndarray, fps: float) -> None:
    """Write a clip `3 T H W` in [-1, 1] as H.264; the file appears whole or not at all.

    Raises:
        ValueError: if the clip holds values that are not finite.
    """
    import av

    path = Path(path)
    if not np.isfinite(video).all():
        raise ValueError("the clip holds values that are not finite")
    pixels = ((video.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 3, 0)
    pixels = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), mode="edge")
    beside = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    try:
        with av.open(str(beside.absolute()), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = pixels.shape[1:3]
            stream.pix_fmt, stream.options = "yuv420p", {"crf": "12"}
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            context.color_range = 1  # 16..235
            for picture in pixels:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                yuv = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
                container.mux(stream.encode(yuv))
            container.mux(stream.encode())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


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
    add("--given-frames", type=int, default=1, help="how many of its last frames are given, 1 + k * temporal factor")
    add("--resize", action="store_true", help="scale the given frames to --height and --width")
    add("--num-frames", type=int, help="length of the clip, 1 + k * temporal factor")
    add("--height", type=int, help="in pixels")
    add("--width", type=int, help="in pixels")
    add("--fps", type=float, help="frames a second")
    add("--num-steps", type=int, help="steps of the solver")
    add("--solver", choices=("euler", "heun", "res_2ab"))
    add("--guidance", type=float, help="0 is none")
    add("--seed", type=int)
    add("--provider", default="CPUExecutionProvider", help="ONNX Runtime's execution provider")
    add("--threads", type=int, default=0, help="0 is one per core")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    out = arguments.out
    if out.suffix.lower() != ".mp4":
        raise BundleError(f"cannot write {out}: the suffix must be .mp4")
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise BundleError(f"cannot write {out}: {out.absolute().parent} is not a writable folder")
    for name in ("num_frames", "height", "width", "given_frames", "fps"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise BundleError(f"--{name.replace('_', '-')} is {value}; it must be above 0")
    if arguments.seed is not None and not 0 <= arguments.seed < 2**63:
        raise BundleError(f"--seed is {arguments.seed}; it must be from 0 to 2**63 - 1")
    if arguments.prompt is not None and arguments.text_embeddings is not None:
        raise BundleError("--prompt and --text-embeddings exclude each other")
    if not math.isfinite(arguments.guidance or 0):
        raise BundleError(f"--guidance is {arguments.guidance}; it must be a finite number")
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
        bundle.latent_length(arguments.given_frames)
        size = (arguments.height or clip["height"], arguments.width or clip["width"])
        given = read_last_frames(arguments.frames, arguments.given_frames, size if arguments.resize else None)[None]
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
        fps=arguments.fps,
        seed=arguments.seed,
        num_steps=arguments.num_steps,
        solver=arguments.solver,
        guidance=arguments.guidance,
        progress=_show,
    )
    sampled = time.perf_counter()
    write_mp4(out, result.video[0], arguments.fps or clip["fps"])
    print(f"{out}: loaded in {loaded - start:.1f} s, sampled in {sampled - loaded:.1f} s")


def _show(steps: Iterable) -> Iterable:
    steps = list(steps)
    for n, step in enumerate(steps, 1):
        yield step
        print(f"\rstep {n}/{len(steps)}", end="" if n < len(steps) else "\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
