"""A trained model as its parts: what reads a prompt, what denoises, what turns video into latents and back."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.checkpoint import find_checkpoint, list_groups, load_strict, read_checkpoint, read_group, stored_tensors
from cosmos_ref.conditioning.text import TextEncoder, build_text_encoder
from cosmos_ref.config import Config, HaarPCAConfig
from cosmos_ref.equations.edm import scale_latents, unscale_latents
from cosmos_ref.errors import UserError
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import build_denoiser, find_device
from cosmos_ref.shapes import Latents, Video
from cosmos_ref.tokenizer import VideoTokenizer
from cosmos_ref.tokenizer.build import build_tokenizer
from cosmos_ref.tokenizer.pieces import decode_in_pieces, encode_in_pieces
from cosmos_ref.tokenizer.plan import Plan

Offload = Literal["none", "cpu", "disk"]
Part = str
"""`text_encoder`, `denoiser` or `tokenizer`."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class WorldModel:
    """Text encoder, denoiser and tokenizer of a trained model, each loaded when it is first used.

    Args:
        config: their numbers.
        load: what makes each part.
        device: where they run; text, noise and given frames are brought there.
        offload: what becomes of the others while one part is used: they stay where they are (`none`), wait in the
            CPU's memory (`cpu`), or are forgotten and loaded again when they are next used (`disk`).
        tokenizer_plan: pieces in which a convolutional tokenizer works; without one, it takes clips whole.
    """

    def __init__(
        self,
        config: Config,
        load: Mapping[Part, Callable[[], Any]],
        device: torch.device | str = "cpu",
        offload: Offload = "none",
        tokenizer_plan: Plan | None = None,
    ):
        self.config = config
        self.device = torch.device(device)
        self.offload = offload
        self.tokenizer_plan = tokenizer_plan
        self._load = dict(load)
        self._loaded: dict[Part, Any] = {}

    @property
    def text_encoder(self) -> TextEncoder:
        """What reads prompts, ready to run."""
        return self.use("text_encoder")

    @property
    def denoiser(self) -> Denoiser:
        """D_theta, ready to run."""
        return self.use("denoiser")

    @property
    def tokenizer(self) -> VideoTokenizer:
        """What turns video into latents and back, ready to run."""
        return self.use("tokenizer")

    def use(self, part: Part) -> Any:
        """A part on the device; the others make room for it, as `offload` says."""
        for other in [name for name in self._loaded if name != part]:
            if self.offload == "cpu":
                self._loaded[other].to("cpu")
            elif self.offload == "disk":
                del self._loaded[other]
        if part not in self._loaded:
            self._loaded[part] = self._load[part]()
        return self._loaded[part].to(self.device)

    def load_all(self) -> None:
        """Load every part, so that what is damaged is found now; where parts make room for each other, only later."""
        if self.offload == "none":
            for part in self._load:
                self.use(part)

    def encode_prompts(self, prompts: Sequence[str | None]) -> Float[Tensor, "B M E"]:
        """Text embeddings on the device.

        Raises:
            UserError: a prompt is blank or too long.
        """
        return self.text_encoder.encode(prompts).to(self.device)

    def encode(self, video: Video) -> Latents:
        """Latents of a video at the diffusion's scale, on the device."""
        tokenizer = self.use("tokenizer")
        if self.tokenizer_plan is None:
            latents = tokenizer.encode(video.to(tokenizer.mean))
        else:
            latents = encode_in_pieces(tokenizer, video, self.tokenizer_plan)
        return scale_latents(latents.to(self.device, torch.float32), self.config.diffusion.sigma_data)

    def decode(self, x0: Latents) -> Video:
        """Video of latents at the diffusion's scale."""
        tokenizer = self.use("tokenizer")
        latents = unscale_latents(x0, self.config.diffusion.sigma_data)
        if self.tokenizer_plan is None:
            return tokenizer.decode(latents.to(tokenizer.mean)).float()
        return decode_in_pieces(tokenizer, latents, self.tokenizer_plan)


def in_memory(config: Config, denoiser: Denoiser, tokenizer: VideoTokenizer, text_encoder: TextEncoder) -> WorldModel:
    """A world model of parts that are there already."""
    return WorldModel(
        config,
        {"denoiser": lambda: denoiser, "tokenizer": lambda: tokenizer, "text_encoder": lambda: text_encoder},
        next(denoiser.parameters()).device,
    )


def load_world_model(path: Path, t5_folder: Path | None = None, device: torch.device | str = "cpu") -> WorldModel:
    """The model of a checkpoint, or of the newest checkpoint of a training run: its averaged weights, if it has them.

    Args:
        path: folder of a checkpoint or of a run.
        t5_folder: local folder of the T5 encoder, for presets that use it.
        device: where it runs.

    Raises:
        UserError: if there is no checkpoint, or it is damaged, or the device or the text encoder's folder is missing.
    """
    device, folder = find_device(device), find_checkpoint(path)
    config = read_checkpoint(folder, names=()).config
    load, _ = checkpoint_parts(folder, config, device, t5_folder)
    require_parts(load, folder)
    model = WorldModel(config, load, device)
    model.load_all()
    return model


def checkpoint_parts(
    folder: Path, config: Config, device: torch.device, t5_folder: Path | None
) -> tuple[dict[Part, Callable[[], Any]], dict[Part, int]]:
    """What loads each part that a checkpoint has, and the bytes of their weights in memory; T5's are not counted."""
    groups = list_groups(folder)
    files = {"tokenizer": "tokenizer", "denoiser": "ema" if "ema" in groups else "model"}
    precision = DTYPES[config.sample.precision]
    fitted = isinstance(config.tokenizer, HaarPCAConfig)  # a few sums that gain nothing from less precision
    dtypes = {"denoiser": precision, "tokenizer": torch.float32 if fitted else precision}

    def load_module(part: Part) -> nn.Module:
        module = build_denoiser(config) if part == "denoiser" else build_tokenizer(config.tokenizer)
        load_strict(module, read_group(folder, files[part], device, dtypes[part]), what=part)
        return module.to(device).eval().requires_grad_(False)

    load: dict[Part, Callable[[], Any]] = {
        "text_encoder": lambda: build_text_encoder(config.text, t5_folder, precision),
    }
    weights: dict[Part, int] = {"text_encoder": 0}
    for part, group in files.items():
        if group in groups:
            load[part] = partial(load_module, part)
            weights[part] = count_numbers(folder, group) * dtypes[part].itemsize
    return load, weights


def require_parts(load: Mapping[Part, Any], folder: Path) -> None:
    """Refuse a checkpoint that cannot be sampled from.

    Raises:
        UserError: if a part is not there.
    """
    for part, name in (("denoiser", "network"), ("tokenizer", "tokenizer")):
        if part not in load:
            raise UserError(f"{folder} holds no {name}: convert it again, and give the {name}'s weights too")


def count_numbers(folder: Path, group: str) -> int:
    """Numbers in a group of a checkpoint, from its files' headers.

    Raises:
        UserError: if a file is damaged.
    """
    return sum(prod(tensor.shape) for tensor in stored_tensors(folder, group).values())
