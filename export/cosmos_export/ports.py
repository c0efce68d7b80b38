"""What goes into a graph and what comes out: names, sizes and their ranges, meanings, examples to trace with."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cosmos_export.compare import call_inputs
from cosmos_ref.config import Config


@dataclass(frozen=True)
class Size:
    """A size that varies: multiples of a number from `min` to `max`, plus one for the first frame of a clip."""

    min: int
    max: int | None
    multiple_of: int
    plus: int
    meaning: str


@dataclass(frozen=True)
class Port:
    """An input or output of a graph: its name, its dims (a number, or the name of one that varies) and its meaning."""

    name: str
    dims: tuple[str | int, ...]
    meaning: str
    dtype: str = "float32"


@dataclass(frozen=True)
class Graph:
    """What one ONNX file of the bundle takes and gives, and the example that it is traced with."""

    name: str
    inputs: tuple[Port, ...]
    output: Port
    sizes: Mapping[str, Size]
    """The range of every name in the inputs' dims."""
    example: Mapping[str, Tensor] = field(repr=False)

    def dynamic_shapes(self) -> dict[str, dict[int, torch.export.Dim]]:
        """The same for the tracer: for every input, which of its axes vary how."""
        dims = {name: _dim(name, size) for name, size in self.sizes.items()}
        return {p.name: {axis: dims[dim] for axis, dim in enumerate(p.dims) if dim in dims} for p in self.inputs}


def _dim(name: str, size: Size) -> torch.export.Dim:
    """Names of factors end in `units`, so that a complaint of the tracer is understood."""
    if (size.multiple_of, size.plus) == (1, 0):
        return torch.export.Dim(name, min=size.min, max=size.max)
    least, most = ((limit - size.plus) // size.multiple_of if limit else None for limit in (size.min, size.max))
    dim = torch.export.Dim(f"{name}_units", min=least, max=most)
    return size.multiple_of * dim + size.plus if size.plus else size.multiple_of * dim


def denoiser_graph(config: Config) -> Graph:
    """The denoiser's ports. Height and width are multiples of the patch, the grid is bounded by the position tables."""
    model = config.model
    latents = ("batch", model.channels, "frames", "height", "width")
    inputs = [
        Port("x", latents, "noisy latents, unscaled: clean latents times sigma_data, plus sigma times unit noise"),
        Port("sigma", ("batch",), "noise level of every sample"),
        Port("text_embeddings", ("batch", "text_length", model.text_width), "prompt; zeros where padded or absent"),
        Port("fps", ("batch",), "frames a second of every clip"),
        Port("padding_mask", ("batch", 1, "height", "width"), "1 where a latent pixel is padding, else 0"),
    ]
    if model.video2world:
        inputs += [
            Port("frame_mask", ("batch", 1, "frames", 1, 1), "1 where a latent frame is given, else 0"),
            Port("given_latents", latents, "given frames, scaled by sigma_data, plus augment_sigma times unit noise"),
            Port("augment_sigma", ("batch",), "noise level of the given frames; they are used while sigma is larger"),
        ]
    t, h, w = _example_sizes(config)
    example = call_inputs(config, batch=2, frames=t, height=h, width=w, text_length=5, sigma=1.0, seed=0)
    varying = {
        "batch": Size(1, None, 1, 0, "samples of a call; guidance takes two for every clip"),
        **latent_sizes(config),
        "text_length": Size(1, None, 1, 0, f"embeddings of a prompt; the encoder gives {config.text.length}"),
    }
    output = Port("denoised", latents, "estimate of the clean latents, scaled by sigma_data")
    return Graph("denoiser", tuple(inputs), output, varying, {name: torch.from_numpy(a) for name, a in example.items()})


def tokenizer_graphs(config: Config) -> tuple[Graph, Graph]:
    """The ports of the tokenizer's encoder and decoder, at the sizes of latents that the denoiser can take."""
    factor, side, C = config.tokenizer.temporal_factor, config.tokenizer.spatial_factor, config.tokenizer.channels
    clips = {"clips": Size(1, None, 1, 0, "clips at once")}
    latent = latent_sizes(config)
    pixels = {}
    for name, size in latent.items():
        if name == "frames":
            most = None if size.max is None else 1 + (size.max - 1) * factor
            pixels["video_frames"] = Size(1, most, factor, 1, f"frames of a clip, 1 + k * {factor}")
        else:
            most = None if size.max is None else size.max * side
            meaning = f"{name} of a clip in pixels"
            pixels[f"video_{name}"] = Size(size.min * side, most, size.multiple_of * side, 0, meaning)
    video = Port("video", ("clips", 3, *pixels), f"RGB in [-1, 1], 1 + k * {factor} frames")
    latents = Port("latents", ("clips", C, *latent), "latents of unit variance, before sigma_data")
    t, h, w = _example_sizes(config)
    clip = torch.zeros(2, 3, 1 + (t - 1) * factor, h * side, w * side)
    return (
        Graph("tokenizer_encoder", (video,), latents, clips | pixels, {"video": clip}),
        Graph("tokenizer_decoder", (latents,), video, clips | latent, {"latents": torch.zeros(2, C, t, h, w)}),
    )


def latent_sizes(config: Config) -> dict[str, Size]:
    """Sizes of latents: whole patches, as many as the position tables have rows."""
    meanings = {"frames": "frames of latents", "height": "height of latents", "width": "width of latents"}
    limits = zip(meanings, config.model.patch_size, config.model.max_tokens, strict=True)
    return {name: Size(patch, patch * rows, patch, 0, meanings[name]) for name, patch, rows in limits}


def _example_sizes(config: Config) -> tuple[int, int, int]:
    """Frames, height and width of the latents to trace with: small, and no two alike."""
    limits = zip((3, 2, 4), config.model.max_tokens, config.model.patch_size, strict=True)
    t, h, w = (min(tokens, most) * patch for tokens, most, patch in limits)
    return t, h, w
