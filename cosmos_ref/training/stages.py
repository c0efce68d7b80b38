"""The paper's progressive training as data: a recipe is a row of stages, and a stage is a configuration.

Each stage is a training like any other that starts from the averaged weights of the stage before. Resolution and
length grow, then the learning rate cools down on the best clips, then frames are given (Video2World).
"""

from dataclasses import dataclass, replace

from cosmos_ref.config import ClipConfig, Config, DataConfig, DiffusionConfig, ModelConfig, preset
from cosmos_ref.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One training of a recipe."""

    name: str
    """Of its folder, and of its clips' where there is one for each stage."""
    config: Config


def recipe(name: str) -> tuple[Stage, ...]:
    """The recipe called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in RECIPES:
        raise UserError(f"no recipe is called {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]


def grown(model: ModelConfig, clip: ClipConfig, before: ClipConfig, temporal_factor: int) -> ModelConfig:
    """The model with its rotary frequencies stretched by as much as the grid of latents grew (NTK)."""
    lengths = [(c.frames - 1) // temporal_factor + 1 for c in (clip, before)]
    growth = lengths[0] / lengths[1], clip.height / before.height, clip.width / before.width
    t, h, w = (ratio * grew for ratio, grew in zip(model.rope_ratios, growth, strict=True))
    return replace(model, rope_ratios=(t, h, w))


def _toy() -> tuple[Stage, ...]:
    """All stages on two CPU cores in less than twenty minutes, in the simulated world."""
    tiny = preset("tiny")
    low, high = ClipConfig(frames=9, height=32, width=32), ClipConfig(frames=17, height=48, width=48)
    text2world = replace(tiny.model, video2world=False)
    low_res = replace(
        tiny,
        model=text2world,
        clip=low,
        # The shift by the square root of the latent frames makes it the preset's p_mean for videos again.
        diffusion=replace(tiny.diffusion, p_mean=0.4),
        data=DataConfig(world="single", buckets="32", image_share=0.25),
        train=replace(
            tiny.train,
            num_steps=400,
            batch_size=32,
            micro_batch=16,
            cooling_steps=0,
            given_latents=(1.0,),
            video_noise_shift=True,
            checkpoint_every=100,
        ),
    )
    high_res = replace(
        low_res,
        model=grown(text2world, high, low, tiny.tokenizer.temporal_factor),
        clip=high,
        data=replace(low_res.data, buckets="48"),
        train=replace(low_res.train, num_steps=120, batch_size=16, micro_batch=8, learning_rate=3e-3, warmup_steps=20),
    )
    cooling = replace(
        high_res,
        train=replace(high_res.train, num_steps=200, cooling_steps=200, warmup_steps=0),
    )
    video2world = replace(
        cooling,
        model=replace(high_res.model, video2world=True),
        data=replace(cooling.data, image_share=0.0),
        train=replace(
            high_res.train,
            num_steps=200,
            cooling_steps=150,
            given_latents=tiny.train.given_latents,
        ),
    )
    return _named(
        "toy",
        {"low-res": low_res, "high-res": high_res, "cooling-down": cooling, "video2world": video2world},
    )


def _cosmos(name: str) -> tuple[Stage, ...]:
    """The paper's stages. Learning rates, decay and warm-up are the paper's; how many updates, it does not say."""
    final, large = preset(name), name == "14b"
    low, high = ClipConfig(frames=57, height=512, width=640, fps_range=(12.0, 40.0)), final.clip
    train = replace(
        final.train,
        batch_size=64,
        micro_batch=1,
        learning_rate=2**-16 if large else 2**-15,
        weight_decay=0.2 if large else 0.1,
        loss_scale=10.0,
        video_noise_shift=True,
        given_latents=(1.0,),
        checkpoint_every=1000,
    )
    high_res = replace(
        final,
        diffusion=DiffusionConfig(),
        clip=high,
        data=DataConfig(buckets="720", image_share=0.5, min_height=704),
        train=replace(train, num_steps=50_000),
    )
    low_res = replace(
        high_res,
        model=replace(final.model, rope_ratios=(1.0, 1.0, 1.0)),
        clip=low,
        data=replace(high_res.data, buckets="512", min_height=384),
        train=replace(train, num_steps=100_000, batch_size=256),
    )
    cooling = replace(
        high_res,
        # The paper says "high quality". Blurred over nine pixels, a clip has about 2; sharp ones have 15 to 400.
        data=replace(high_res.data, min_sharpness=10.0),
        train=replace(high_res.train, num_steps=10_000, cooling_steps=10_000, warmup_steps=0),
    )
    frames = preset(f"{name}-video2world")
    video2world = replace(
        cooling,
        model=frames.model,
        data=replace(cooling.data, image_share=0.0),
        train=replace(high_res.train, num_steps=10_000, given_latents=frames.train.given_latents),
    )
    return _named(
        name,
        {"low-res": low_res, "high-res": high_res, "cooling-down": cooling, "video2world": video2world},
    )


def _named(recipe_name: str, configs: dict[str, Config]) -> tuple[Stage, ...]:
    return tuple(Stage(name, replace(config, name=f"{recipe_name}/{name}")) for name, config in configs.items())


RECIPES: dict[str, tuple[Stage, ...]] = {"toy": _toy(), "7b": _cosmos("7b"), "14b": _cosmos("14b")}
"""The paper's stages, and their toy twins."""
