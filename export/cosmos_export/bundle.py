"""A bundle: the folder that the exporter writes, its manifest checked and its graphs ready to run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cosmos_export.engines import CPU, Engine, Optimise, check_inputs, open_engine
from cosmos_export.errors import BundleError
from cosmos_export.manifest import GRAPHS, check_files
from cosmos_export.manifest import read_manifest as read_manifest
from cosmos_export.text import words_embedding

Backend = Literal["onnxruntime", "tensorrt"]

_OPTIMISE: dict[str, Optimise] = {"int8": "basic", "fp8": "none"}  # what ONNX Runtime bears of graphs made for TensorRT


@dataclass(frozen=True)
class Bundle:
    """A folder written by the exporter, its graphs loaded; `config` holds the preset's numbers."""

    manifest: dict[str, Any]
    denoiser: Engine
    encoder: Engine
    decoder: Engine
    variants: Mapping[str, str] = field(default_factory=dict)
    """Which form of every graph was loaded."""
    profiles: Mapping[str, str] = field(default_factory=dict)
    """The profile that a graph's sizes are bound to, where there is one."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        variant: str | None = None,
        backend: Backend = "onnxruntime",
        providers: Sequence[str] = (CPU,),
        threads: int = 0,
        profile: str | None = None,
        fallback: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> "Bundle":
        """Check what is to be loaded against the manifest, then open the graphs.

        Args:
            path: the folder.
            variant: form of the graphs; else the manifest's default, or the first one that runs here. A tokenizer that
                has none of that name is taken in its own default.
            backend: what runs the graphs.
            providers: of ONNX Runtime, of which the first that can takes each operator.
            threads: of the CPU; 0 is one per core.
            profile: sizes to be bound to. TensorRT has an engine for each, and takes the manifest's first one by
                default; where a profile's sizes are fixed, ONNX Runtime makes use of it.
            fallback: let the CPU take over where a provider cannot be had; else that is refused.
            say: is told how far checking large files is.

        Raises:
            BundleError: if the folder is no bundle, of another format, or a file is missing or altered; if variant,
                backend, provider or profile cannot be had.
            EngineFailure: if memory is short.
        """
        path = Path(path)
        manifest = read_manifest(path, files=())
        if backend not in ("onnxruntime", "tensorrt"):
            raise BundleError(f"unknown engine {backend!r}; accepted: onnxruntime, tensorrt")
        if profile is None and backend == "tensorrt":
            profile = next(iter(manifest["profiles"]), None)
        if profile is not None and profile not in manifest["profiles"]:
            raise BundleError(f"{path} has no profile {profile!r}; it has: {', '.join(manifest['profiles']) or 'none'}")
        on_cpu = backend == "onnxruntime" and tuple(providers) == (CPU,)
        variants = {name: choose_variant(manifest, name, variant, backend, on_cpu) for name in GRAPHS}
        forms = {name: manifest["graphs"][name]["variants"][variants[name]] for name in GRAPHS}
        needed = dict.fromkeys(file for form in forms.values() for file in (form["file"], form["weights"]) if file)
        check_files(path, manifest["files"], needed, say)
        if backend == "tensorrt":
            from cosmos_export.tensorrt_engine import open_plan

            denoiser, encoder, decoder = (open_plan(path, name, variants[name], str(profile)) for name in GRAPHS)
            return cls(manifest, denoiser, encoder, decoder, variants, dict.fromkeys(GRAPHS, str(profile)))
        fixed = {} if profile is None else {"denoiser": fixed_sizes(manifest, profile)}
        denoiser, encoder, decoder = (
            open_engine(
                path / forms[name]["file"],
                providers,
                threads,
                optimise=_OPTIMISE.get(variants[name], "all"),
                fixed_shapes=fixed.get(name, False),
                fallback=fallback,
            )
            for name in GRAPHS
        )
        return cls(manifest, denoiser, encoder, decoder, variants, {} if profile is None else {"denoiser": profile})

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
        return self._run("denoiser", self.denoiser, inputs)

    def encode(self, video: np.ndarray) -> np.ndarray:
        """Latents `B C t h w` of unit variance from a video `B 3 T H W` in [-1, 1]."""
        return self._run("tokenizer_encoder", self.encoder, {"video": np.asarray(video, np.float32)})

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Video in [-1, 1] from latents of unit variance."""
        return self._run("tokenizer_decoder", self.decoder, {"latents": latents})

    def _run(self, graph: str, engine: Engine, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        self.check_sizes(graph, check_inputs(graph, self.manifest["graphs"][graph]["inputs"], inputs))
        return engine(**inputs)

    def check_sizes(self, graph: str, sizes: Mapping[str, int]) -> None:
        """Refuse sizes that a graph does not take.

        Raises:
            BundleError: naming the first of them, what is accepted, and which profile takes them.
        """
        profiles = self.manifest["profiles"]
        for name, size in sizes.items():
            limit, profile = self.manifest["dims"][name], self.profiles.get(graph)
            low, high = limit["min"], limit["max"]
            if profile is not None:
                low, high = profiles[profile]["min"][name], profiles[profile]["max"][name]
            if low <= size <= (size if high is None else high) and (size - limit["plus"]) % limit["multiple_of"] == 0:
                continue
            bounds = f"{low} or more" if high is None else f"{low} to {high}" if low < high else f"{low}"
            if limit["multiple_of"] > 1 and low != high:
                unit, plus = limit["multiple_of"], limit["plus"]
                bounds += f", {plus} + k * {unit}" if plus else f" in multiples of {unit}"
            advice = ""
            if profile is not None:
                others = [other for other in profiles if all(_within(profiles[other], n, s) for n, s in sizes.items())]
                advice = f" in the profile {profile!r}; " + (
                    f"these sizes are in the profile {' and '.join(map(repr, others))}" if others else "no profile fits"
                )
            raise BundleError(f"{graph}: {name} ({limit['meaning']}) is {size}; accepted: {bounds}{advice}")

    def warm_up(self, sizes: Mapping[str, int]) -> None:
        """Run every graph once at these sizes, by the manifest's names, so that later calls take as long as any.

        Raises:
            BundleError: if a size is not accepted.
            EngineFailure: if running failed.
        """
        for graph, engine in zip(GRAPHS, (self.denoiser, self.encoder, self.decoder), strict=True):
            ports = self.manifest["graphs"][graph]["inputs"]
            if all(dim in sizes for port in ports for dim in port["dims"] if isinstance(dim, str)):
                shapes = [[sizes[dim] if isinstance(dim, str) else dim for dim in port["dims"]] for port in ports]
                ones = {port["name"]: np.ones(shape, np.float32) for port, shape in zip(ports, shapes, strict=True)}
                self._run(graph, engine, ones)

    def encode_text(self, prompts: Sequence[str | None]) -> np.ndarray:
        """Text embeddings `B M E`; None is the null text.

        Raises:
            BundleError: if a prompt is empty or too long, or the model's text encoder is not one that runs here.
        """
        text = self.config["text"]
        if text["encoder"] != "words" and any(prompt is not None for prompt in prompts):
            raise BundleError(
                f"the text encoder {text['encoder']!r} is not in the bundle: write embeddings by "
                "`cosmos-ref encode-text`, and pass them by --text-embeddings"
            )
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


def choose_variant(manifest: Mapping[str, Any], graph: str, wanted: str | None, backend: str, on_cpu: bool) -> str:
    """The form of a graph to load.

    Raises:
        BundleError: if the wanted one is not there or does not run on the backend, or none does.
    """
    forms, default = manifest["graphs"][graph]["variants"], manifest["default"][graph]
    if wanted is not None and wanted not in manifest["graphs"]["denoiser"]["variants"]:
        there = ", ".join(manifest["graphs"]["denoiser"]["variants"])
        raise BundleError(f"this bundle has no variant {wanted!r}; it has: {there}. `cosmos-ref export` makes others")
    if wanted is not None and wanted in forms:
        if backend not in forms[wanted]["engines"]:
            fitting = [name for name, form in forms.items() if backend in form["engines"]]
            raise BundleError(
                f"the variant {wanted!r} of the {graph} runs on {' and '.join(forms[wanted]['engines'])}, not on "
                f"{backend}; these do: {', '.join(fitting) or 'none'}"
            )
        return wanted
    for name in [default, *forms]:
        if name in forms and backend in forms[name]["engines"] and (on_cpu or not name.startswith("cpu")):
            return name
    raise BundleError(f"no variant of the {graph} in this bundle runs on {backend} here; it has: {', '.join(forms)}")


def fixed_sizes(manifest: Mapping[str, Any], profile: str) -> dict[str, int]:
    """The sizes of the denoiser that a profile leaves no choice of; none if it leaves one."""
    limits = manifest["profiles"][profile]
    dims = {dim for port in manifest["graphs"]["denoiser"]["inputs"] for dim in port["dims"] if isinstance(dim, str)}
    fixed = all(limits["min"][dim] == limits["max"][dim] for dim in dims)
    return {dim: limits["opt"][dim] for dim in sorted(dims)} if fixed else {}


def _within(limits: Mapping[str, Mapping[str, int]], name: str, size: int) -> bool:
    return limits["min"][name] <= size <= limits["max"][name]
