"""A bundle: the folder that the exporter writes, its manifest checked and its graphs in ONNX Runtime."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

BUNDLE_FORMAT = 1
"""Version of the manifest; another one is refused."""


class BundleError(ValueError):
    """A bundle or a request that cannot be used: the message says why, and what is accepted."""


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
