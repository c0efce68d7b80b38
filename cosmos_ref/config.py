"""Every number of a model and its training, as frozen dataclasses; the command line is made from them."""

import math
from dataclasses import dataclass
from typing import Literal

from cosmos_ref.equations.causal import clip_length, latent_length
from cosmos_ref.errors import UserError


@dataclass(frozen=True)
class ModelConfig:
    """The transformer F_theta. 7B and 14B are other numbers here, nothing else."""

    width: int
    depth: int
    num_heads: int
    text_width: int
    adaln_lora_dim: int
    video2world: bool
    """Whether the network has the channel that marks given frames."""
    channels: int = 16
    """Latent channels, in and out."""
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (1, 2, 2)
    rope_ratios: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """NTK extrapolation ratios of the (t, h, w) axes."""
    max_tokens: tuple[int, int, int] = (128, 120, 120)
    """Rows of the learned position tables (t, h, w): the largest grid of tokens."""
    qk_norm_eps: float = 1e-6
    """Epsilon in the norm of queries and keys."""
    angles: Literal["fp32", "bf16"] = "fp32"
    """Precision of the rotary angles: NVIDIA's inference rounds them to bfloat16."""

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads

    @property
    def in_channels(self) -> int:
        """Latents, then the given-frame mask (Video2World), then the padding mask."""
        return self.channels + self.video2world + 1


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise: what the latents are scaled to, how strong it is in training, how it falls in sampling."""

    sigma_data: float = 0.5
    p_mean: float = 0.0
    p_std: float = 1.0
    augment_p_mean: float = -3.0
    augment_p_std: float = 2.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    uncertainty_channels: int = 128


@dataclass(frozen=True)
class HaarPCAConfig:
    """The training-free tokenizer: Haar levels per axis, then that many principal components."""

    levels: tuple[int, int, int] = (1, 2, 2)
    channels: int = 16

    def __post_init__(self):
        if min(self.levels) < 0:
            raise UserError(f"tokenizer.levels {self.levels}: an axis cannot have fewer than 0")
        if self.levels[1] != self.levels[2]:
            raise UserError(f"tokenizer.levels {self.levels}: height and width must have as many")
        if not 1 <= self.channels <= (bands := 3 * 2 ** sum(self.levels)):
            raise UserError(
                f"tokenizer.channels {self.channels} does not work: levels {self.levels} make {bands} bands to keep"
            )

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame, after the first."""
        return 2 ** self.levels[0]

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel, along height and width."""
        return 2 ** self.levels[1]


@dataclass(frozen=True)
class ConvTokenizerConfig:
    """The Cosmos tokenizer; as CV8x8x8: wavelets take a factor of 4 in time and space, one stride 2 more."""

    patch_levels: int = 2
    """Levels of the wavelet transform, along all three axes."""
    strides: tuple[tuple[int, int], ...] = ((2, 2), (1, 1))
    """(time, space) between the encoder's three levels; the decoder has them in reverse."""
    encoder_widths: tuple[int, ...] = (128, 256, 512, 512)
    decoder_widths: tuple[int, ...] = (512, 512, 512, 256)
    num_blocks: int = 2
    """Residual blocks at each level of the encoder; the decoder has one more."""
    channels: int = 16
    """Channels between encoder and decoder: of the latents, if there is no quantizer."""
    latent_frames: int = 16
    """Latent frames that have statistics of their own; a longer clip goes on with the last."""
    fsq_levels: tuple[int, ...] = ()
    """Levels of the finite scalar quantizer, one number a code dimension; none is a continuous tokenizer."""

    def __post_init__(self):
        above_zero = {
            "patch_levels": self.patch_levels,
            "encoder_widths": min(self.encoder_widths, default=0),
            "decoder_widths": min(self.decoder_widths, default=0),
            "num_blocks": self.num_blocks,
            "channels": self.channels,
            "latent_frames": self.latent_frames,
        }
        for name, value in above_zero.items():
            if value < 1:
                raise UserError(f"tokenizer.{name} is {getattr(self, name)}; it must be above 0")
        if len(self.decoder_widths) != len(self.encoder_widths):
            raise UserError(
                f"tokenizer.decoder_widths {self.decoder_widths} must be as many as encoder_widths "
                f"{self.encoder_widths}"
            )
        if len(self.strides) != len(self.encoder_widths) - 2:
            raise UserError(
                f"tokenizer.strides {self.strides} must be two fewer than encoder_widths {self.encoder_widths}"
            )
        if any(stride not in (1, 2) for pair in self.strides for stride in pair):
            raise UserError(f"tokenizer.strides {self.strides} does not work: each number must be 1 or 2")
        if min(self.fsq_levels, default=2) < 2:
            raise UserError(f"tokenizer.fsq_levels {self.fsq_levels} does not work: each number must be at least 2")

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame, after the first."""
        return 2**self.patch_levels * math.prod(time for time, _ in self.strides)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel, along height and width."""
        return 2**self.patch_levels * math.prod(space for _, space in self.strides)


TokenizerConfig = HaarPCAConfig | ConvTokenizerConfig

TOKENIZERS: dict[str, ConvTokenizerConfig] = {
    "CV4x8x8": ConvTokenizerConfig(patch_levels=1, strides=((2, 2), (1, 2))),
    "CV8x8x8": ConvTokenizerConfig(),
    "DV4x8x8": ConvTokenizerConfig(
        patch_levels=1, strides=((2, 2), (1, 2)), channels=256, fsq_levels=(8, 8, 8, 5, 5, 5)
    ),
    "DV8x16x16": ConvTokenizerConfig(strides=((2, 2), (1, 2)), fsq_levels=(8, 8, 8, 5, 5, 5)),
}
"""NVIDIA's tokenizers by their released names: C continuous, D discrete; V video; time x height x width."""


@dataclass(frozen=True)
class TextConfig:
    """What turns a prompt into `length` embeddings of width `width`."""

    encoder: Literal["words", "t5"] = "words"
    length: int = 24
    width: int = 64


@dataclass(frozen=True)
class ClipConfig:
    """The clips a preset is made for."""

    frames: int = 9
    height: int = 32
    width: int = 32
    fps: float = 24.0
    fps_range: tuple[float, float] = (0.01, 1000.0)
    """Frame rates that a model was made for."""

    def __post_init__(self):
        low, high = self.fps_range
        if not low <= self.fps <= high:
            raise UserError(f"fps {self.fps:g} is not accepted: give a frame rate from {low:g} to {high:g}")


BUCKETS: dict[str, tuple[tuple[int, int], ...]] = {
    "32": ((32, 32), (24, 32), (32, 24), (24, 40), (40, 24)),
    "48": ((48, 48), (48, 64), (64, 48), (40, 72), (72, 40)),
    "256": ((256, 256), (256, 320), (320, 256), (192, 320), (320, 192)),
    "480": ((480, 480), (480, 640), (640, 480), (432, 768), (768, 432)),
    "512": ((512, 512), (512, 640), (640, 512), (384, 640), (640, 384)),
    "720": ((960, 960), (704, 960), (960, 704), (704, 1280), (1280, 704)),
    "1024": ((1024, 1024), (1024, 1280), (1280, 1024), (768, 1280), (1280, 768)),
    "1080": ((1024, 1024), (1056, 1440), (1440, 1056), (1056, 1920), (1920, 1056)),
}
"""Sizes (height, width) of the aspect ratios 1:1, 4:3, 3:4, 16:9 and 9:16; 32 and 48 are toys of ours."""


@dataclass(frozen=True)
class DataConfig:
    """Which clips a training sees."""

    world: str = "mixed"
    """Kind of simulated scene, where there are no files."""
    buckets: str = "one"
    """Sizes that clips are brought to, by their aspect ratio: a key of BUCKETS, or `one`, the clip's own."""
    image_share: float = 0.0
    """Share of the updates that see images, as many tokens of them as an update of videos has."""
    min_height: int = 0
    """Files with fewer lines than this are left out."""
    min_sharpness: float = 0.0
    """Clips that are more blurred than this are left out; `prepare` measures it."""

    def __post_init__(self):
        if self.buckets != "one" and self.buckets not in BUCKETS:
            raise UserError(f"data.buckets {self.buckets!r} is unknown: give one of one, {', '.join(BUCKETS)}")
        if not 0 <= self.image_share <= 1:
            raise UserError(f"data.image_share is {self.image_share}; it must be from 0 to 1")


@dataclass(frozen=True)
class LoRAConfig:
    """Adapters that learn in the place of the network: see `cosmos_ref/equations/adapters.py`."""

    rank: int = 0
    """Rank of the change of each weight; 0 trains the whole network."""
    alpha: float = 8.0
    """Scale of the change, which is then divided by the rank."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out", "layer1", "layer2")
    """Linear layers that get an adapter, by the last part of their names: both attentions and the MLP."""

    def __post_init__(self):
        if self.rank < 0:
            raise UserError(f"lora.rank is {self.rank}; it must be above 0, or 0 for none")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha is {self.alpha}; it must be above 0")
        if not self.targets:
            raise UserError("lora.targets is empty; give the names of linear layers, for example to_q to_v")


@dataclass(frozen=True)
class ParallelConfig:
    """How a training is spread over processes; it decides nothing about the result.

    world = replicate * shard * cp, where `shard` is what is left.
    """

    world: int = 0
    """Processes; 0 is as many as the launcher starts."""
    replicate: int = 1
    """Groups that each hold all the weights (hybrid sharding)."""
    cp: int = 1
    """Processes that share the tokens of each clip (context parallelism)."""
    ulysses: int = 0
    """Of these, how many exchange heads; the rest is a ring. 0 is the most that divides the number of heads."""
    recompute: bool = False
    """Whether the backward pass computes each block's activations again instead of keeping them."""
    compile: bool = False
    """Whether each block is compiled."""


@dataclass(frozen=True)
class TrainConfig:
    """How a preset is trained."""

    num_steps: int = 900
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    cooling_steps: int = 300
    """Last steps, over which the learning rate falls to zero."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-10
    max_grad_norm: float = 1.0
    micro_batch: int = 0
    """Clips that a process takes at once, all of one bucket; 0 is all of its share."""
    video_noise_shift: bool = False
    """Whether noise levels of videos are raised by the square root of their latent frames."""
    loss_scale: float = 1.0
    """Factor of the loss; the paper has 10. AdamW does not mind it, the limit of the gradient's norm does."""
    ema_stds: tuple[float, ...] = (0.05,)
    """Widths of the weight averages, relative to the length of the training; the first is sampled from."""
    text_dropout: float = 0.2
    given_latents: tuple[float, ...] = (0.3, 0.2, 0.5)
    """Probability of 0, 1, 2, ... given latent frames: Text2World and Video2World in one batch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    checkpoint_every: int = 200
    keep_checkpoints: int = 2


@dataclass(frozen=True)
class SampleConfig:
    """How a preset is sampled."""

    solver: Literal["euler", "heun", "res_2ab"] = "res_2ab"
    num_steps: int = 20
    guidance: float = 1.5
    """g in D_c + g (D_c - D_u); 0 is no guidance."""
    augment_sigma: float = 0.001
    """Noise on given frames."""
    seed: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and matrix products: of the denoiser, and of a tokenizer or text encoder with weights."""
    last_sigma: Literal["zero", "sigma_min"] = "zero"
    """Where the last step ends; at `sigma_min` it does nothing, and that much noise is left."""
    initial_noise: Literal["sigma_max", "total"] = "sigma_max"
    """Standard deviation of the first sample: sigma_max, or sqrt(sigma_max^2 + 1), of noise and unit data."""
    given_noise: Literal["fixed", "fresh"] = "fixed"
    """Noise on given frames: drawn once, or anew in each step."""
    state: Literal["fp32", "bf16"] = "fp32"
    """Precision that the sample is rounded to after each step."""

    def __post_init__(self):
        if self.num_steps < 2:
            raise UserError(f"num_steps {self.num_steps} is too few: a sampler takes at least 2")
        if not abs(self.guidance) <= 1000:  # also what is not a number
            raise UserError(f"guidance {self.guidance} is not a number to guide with: give 0 for none, Cosmos has 7")
        if not 0 < self.augment_sigma < 1000:
            raise UserError(
                f"augment_sigma {self.augment_sigma:g} is not a noise level: give one above 0, Cosmos has 0.001"
            )
        if not 0 <= self.seed < 2**64:
            raise UserError(f"seed {self.seed} is not accepted: give one from 0 to 2**64 - 1")


@dataclass(frozen=True)
class Config:
    """A preset: everything that decides what a checkpoint is and does."""

    name: str
    model: ModelConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    tokenizer: TokenizerConfig = HaarPCAConfig()
    text: TextConfig = TextConfig()
    clip: ClipConfig = ClipConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    lora: LoRAConfig = LoRAConfig()
    sample: SampleConfig = SampleConfig()

    def __post_init__(self):
        model, diffusion, tokenizer, text = self.model, self.diffusion, self.tokenizer, self.text
        above_zero = {
            "model.depth": model.depth,
            "model.num_heads": model.num_heads,
            "model.adaln_lora_dim": model.adaln_lora_dim,
            "model.mlp_ratio": model.mlp_ratio,
            "model.patch_size": min(model.patch_size),
            "model.rope_ratios": min(model.rope_ratios),
            "model.max_tokens": min(model.max_tokens),
            "model.qk_norm_eps": model.qk_norm_eps,
            "diffusion.sigma_data": diffusion.sigma_data,
            "diffusion.sigma_min": diffusion.sigma_min,
            "diffusion.rho": diffusion.rho,
            "diffusion.uncertainty_channels": diffusion.uncertainty_channels,
            "text.length": text.length,
            "text.width": text.width,
        }
        for name, value in above_zero.items():
            if not 0 < value < math.inf:
                raise UserError(f"{name} is {value}; it must be above 0")
        if not diffusion.sigma_min < diffusion.sigma_max < math.inf:
            raise UserError(
                f"diffusion.sigma_max {diffusion.sigma_max:g} must be above sigma_min {diffusion.sigma_min:g}"
            )
        if text.width % 2:
            raise UserError(f"text.width {text.width} must be even: half of it are sines, half cosines")
        if model.width % model.num_heads or model.head_dim < 16 or model.head_dim % 2:
            raise UserError(
                f"width {model.width} with {model.num_heads} heads does not work: "
                "each head needs the same even number of channels, at least 16"
            )
        if model.text_width != text.width:
            raise UserError(f"model.text_width {model.text_width} and text.width {text.width} must be the same")
        if model.channels != tokenizer.channels:
            raise UserError(
                f"model.channels {model.channels} and tokenizer.channels {tokenizer.channels} must be the same"
            )


def _cosmos(name: str, video2world: bool) -> Config:
    """NVIDIA's release of January 2025: 7B or 14B, Text2World or Video2World."""
    large = name == "14b"
    return Config(
        name=f"{name}-video2world" if video2world else name,
        model=ModelConfig(
            width=5120 if large else 4096,
            depth=36 if large else 28,
            num_heads=40 if large else 32,
            text_width=1024,
            adaln_lora_dim=256,
            video2world=video2world,
            rope_ratios=(2.0, 2.0, 2.0) if large else (2.0, 1.0, 1.0),
        ),
        tokenizer=TOKENIZERS["CV8x8x8"],
        text=TextConfig(encoder="t5", length=512, width=1024),
        clip=ClipConfig(frames=121, height=704, width=1280, fps=24.0, fps_range=(12.0, 40.0)),
        train=TrainConfig(
            num_steps=2000,
            batch_size=1,
            learning_rate=2**-14.3,
            warmup_steps=2500,
            cooling_steps=0,
            weight_decay=0.1,
            ema_stds=(0.1, 0.05, 0.025),
            given_latents=(1 / 3, 1 / 3, 1 / 3),
            precision="bf16",
        ),
        sample=SampleConfig(num_steps=35, guidance=7.0, precision="bf16"),
    )


PRESETS: dict[str, Config] = {
    "micro": Config(
        name="micro",
        model=ModelConfig(
            width=32, depth=2, num_heads=2, text_width=16, adaln_lora_dim=8, video2world=True, max_tokens=(16, 16, 16)
        ),
        text=TextConfig(width=16),
        clip=ClipConfig(frames=5, height=16, width=16),
        train=TrainConfig(num_steps=20, batch_size=4, warmup_steps=4, cooling_steps=5, checkpoint_every=5),
        sample=SampleConfig(num_steps=4),
    ),
    "tiny": Config(
        name="tiny",
        model=ModelConfig(
            width=128, depth=4, num_heads=4, text_width=64, adaln_lora_dim=32, video2world=True, max_tokens=(16, 32, 32)
        ),
        data=DataConfig(world="single"),
        # Motion is decided at strong noise, and given frames tell the speed only while they are hardly noised.
        diffusion=DiffusionConfig(p_mean=1.2, p_std=1.4, augment_p_mean=-5.0, augment_p_std=1.0, sigma_max=40.0),
        train=TrainConfig(
            num_steps=800,
            batch_size=32,
            learning_rate=5e-3,
            cooling_steps=300,
            given_latents=(0.2, 0.1, 0.7),
        ),
        sample=SampleConfig(guidance=1.0),
    ),
    **{config.name: config for config in (_cosmos(name, frames) for name in ("7b", "14b") for frames in (False, True))},
}


def preset(name: str) -> Config:
    """The preset called `name`.

    Raises:
        UserError: if there is none.
    """
    if name not in PRESETS:
        raise UserError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]


def latent_shape(config: Config, clip: ClipConfig) -> tuple[int, int, int, int]:
    """Shape `C t h w` of a clip's latents.

    Raises:
        UserError: if the model cannot take a clip of this length or size.
    """
    tokenizer, model = config.tokenizer, config.model
    frames = latent_length(clip.frames, tokenizer.temporal_factor)
    shape = (frames, clip.height // tokenizer.spatial_factor, clip.width // tokenizer.spatial_factor)
    sides = zip(("height", "width"), (clip.height, clip.width), model.patch_size[1:], model.max_tokens[1:], strict=True)
    for name, size, patch, most in sides:
        unit = tokenizer.spatial_factor * patch
        if size < unit or size % unit or size > most * unit:
            raise UserError(
                f"{name} {size} does not fit preset {config.name!r}: "
                f"it must be a multiple of {unit}, at most {most * unit}"
            )
    if frames % model.patch_size[0] or frames > model.max_tokens[0] * model.patch_size[0]:
        most = clip_length(model.max_tokens[0] * model.patch_size[0], tokenizer.temporal_factor)
        raise UserError(f"{clip.frames} frames do not fit preset {config.name!r}: it takes at most {most}")
    return (model.channels, *shape)
