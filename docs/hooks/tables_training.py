"""Tables of what the code has: the stages of the recipes, and how many clips and tokens a process gets."""

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from unittest import mock

from cosmos_ref.config import BUCKETS, Config, ParallelConfig, latent_shape
from cosmos_ref.distributed.mesh import split_processes
from cosmos_ref.equations.costs import tokens
from cosmos_ref.training.schedule import images_per_video, plan_step, share_out
from cosmos_ref.training.stages import RECIPES, Stage

Words = dict[str, tuple[str, str]]

FIELDS: Words = {
    "clip": ("frames, height x width", "quadros, altura x largura"),
    "buckets": ("buckets", "formatos"),
    "latents": ("latents", "latentes"),
    "tokens": ("tokens of a clip", "tokens de um clipe"),
    "rope": ("rotary ratios (t, h, w)", "razões rotatórias (t, h, w)"),
    "batch": ("videos an update (at once)", "vídeos por atualização (de uma vez)"),
    "images": ("images an update", "imagens por atualização"),
    "share": ("share of image updates", "fração de atualizações com imagens"),
    "steps": ("updates", "atualizações"),
    "rate": ("learning rate", "taxa de aprendizado"),
    "schedule": ("warm-up, cooling-down", "aquecimento, resfriamento"),
    "decay": ("weight decay", "decaimento dos pesos"),
    "given": ("given latent frames", "quadros latentes dados"),
    "filter": ("clips", "clipes"),
}
NOTHING = "&#8211;"
NONE = ("none", "nenhum")
WORLD = ("world", "mundo")
LINES = ("lines", "linhas")
SHARP = ("sharpness", "nitidez")
FROM = ("from", "a partir de")


def number(value: float, language: str) -> str:
    """A count with its thousands apart, or a power of two, or what it is."""
    if isinstance(value, int):
        return f"{value:,}" if language == "en" else f"{value:,}".replace(",", ".")
    exponent = math.log2(value) if value > 0 else 0.5
    if value < 1e-3 and exponent == round(exponent):
        return f"2<sup>{round(exponent)}</sup>".replace("-", "−")
    return f"{value:g}" if language == "en" else f"{value:g}".replace(".", ",")


def grid(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))


def token_count(config: Config) -> int:
    return tokens(latent_shape(config, config.clip)[1:], config.model.patch_size)


def cells(config: Config, language: str) -> dict[str, str]:
    """What a stage has in each row of the table."""
    i = ("en", "pt").index(language)
    train, data, clip = config.train, config.data, config.clip
    given = [n for n, probability in enumerate(train.given_latents) if probability]
    filters = [f"{WORLD[i]} <code>{data.world}</code>"] if data.buckets in ("32", "48") else []
    if data.min_height:
        filters.append(f"{FROM[i]} {data.min_height} {LINES[i]}")
    if data.min_sharpness:
        filters.append(f"{SHARP[i]} {FROM[i]} {number(data.min_sharpness, language)}")
    return {
        "clip": f"{clip.frames}, {clip.height} x {clip.width}",
        "buckets": f"<code>{data.buckets}</code>",
        "latents": grid(latent_shape(config, clip)[1:]),
        "tokens": number(token_count(config), language),
        "rope": ", ".join(f"{ratio:.4g}" if language == "en" else f"{ratio:.4g}".replace(".", ",")
                          for ratio in config.model.rope_ratios).replace(", ", "; " if language == "pt" else ", "),
        "batch": f"{number(train.batch_size, language)} ({train.micro_batch or train.batch_size})",
        "images": number(train.batch_size * images_per_video(config), language) if data.image_share else NOTHING,
        "share": number(float(data.image_share), language),
        "steps": number(train.num_steps, language),
        "rate": number(train.learning_rate, language),
        "schedule": f"{number(train.warmup_steps, language)}, {number(train.cooling_steps, language)}",
        "decay": number(train.weight_decay, language),
        "given": ", ".join(map(str, given)) if config.model.video2world else NONE[i],
        "filter": ", ".join(filters) or NOTHING,
    }  # fmt: skip


def stages(*names: str) -> Callable[[str], str]:
    """A table of recipes whose stages have the same names; where they differ, each says its own."""

    def table(language: str) -> str:
        i = ("en", "pt").index(language)
        columns: list[tuple[Stage, ...]] = list(zip(*(RECIPES[name] for name in names), strict=True))
        filled = [[cells(stage.config, language) for stage in column] for column in columns]
        head = "| | " + " | ".join(f"`{column[0].name}`" for column in columns) + " |"
        rows = [head, "|---" * (len(columns) + 1) + "|"]
        for key, label in FIELDS.items():
            values = [" / ".join(dict.fromkeys(each[key] for each in column)) for column in filled]
            rows.append(f"| {label[i]} | " + " | ".join(values) + " |")
        return "\n".join(rows)

    return table


LAYOUTS: tuple[tuple[tuple[str, str], str, str, int, ParallelConfig], ...] = (
    (("toy, 1 process", "brinquedo, 1 processo"), "toy", "high-res", 1, ParallelConfig()),
    (("toy, 2 processes", "brinquedo, 2 processos"), "toy", "high-res", 2, ParallelConfig()),
    (("toy, 4 processes", "brinquedo, 4 processos"), "toy", "high-res", 4, ParallelConfig(cp=2)),
    (("7B at 720p, 8 GPUs", "7B em 720p, 8 GPUs"), "7b", "high-res", 8, ParallelConfig(cp=8)),
    (("7B at 512p, 64 GPUs", "7B em 512p, 64 GPUs"), "7b", "low-res", 64, ParallelConfig(replicate=2, cp=2)),
    (("7B at 720p, 64 GPUs", "7B em 720p, 64 GPUs"), "7b", "high-res", 64, ParallelConfig(replicate=2, cp=8)),
    (("14B at 720p, 64 GPUs", "14B em 720p, 64 GPUs"), "14b", "high-res", 64, ParallelConfig(cp=8)),
    (("14B, cp 16, 64 GPUs", "14B, cp 16, 64 GPUs"), "14b", "high-res", 64, ParallelConfig(cp=16)),
)
"""Name, recipe, stage, processes, what is asked for."""
BATCH_HEAD = {
    "en": ("", "replicate x shard", "groups x cp", "ring x ulysses", "clips", "micro-batches", "tokens", "images"),
    "pt": ("", "replicate x shard", "grupos x cp", "anel x ulysses", "clipes", "microlotes", "tokens", "imagens"),
}


def batches(language: str) -> str:
    """How an update is spread, for several clusters."""
    i = ("en", "pt").index(language)
    head = BATCH_HEAD[language]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for title, recipe, stage, world, parallel in LAYOUTS:
        (config,) = [each.config for each in RECIPES[recipe] if each.name == stage]
        split = split_processes(parallel, world, config.model.num_heads)
        clips = config.train.batch_size
        mine = share_out(plan_step(config, 0), 0, split.data)
        with_images = replace(config, data=replace(config.data, image_share=1.0))
        images = share_out(plan_step(with_images, 0), 0, world, split.cp)
        at_once = len(mine[0].samples) * -(-token_count(config) // split.cp)
        values = (
            title[i],
            f"{split.replicate} x {split.shard}",
            f"{split.data} x {split.cp}",
            f"{split.ring} x {split.ulysses}",
            number(clips, language),
            f"{len(mine)} x {len(mine[0].samples)}",
            number(at_once, language),
            f"{len(images)} x {len(images[0].samples)}",
        )
        rows.append("| " + " | ".join(map(str, values)) + " |")
    return "\n".join(rows)


def buckets(language: str) -> str:
    """Sizes by name and aspect ratio, as height x width."""
    rows = ["| | 1:1 | 4:3 | 3:4 | 16:9 | 9:16 |", "|---" * 6 + "|"]
    for name, sizes in BUCKETS.items():
        rows.append(f"| `{name}` | " + " | ".join(f"{height} x {width}" for height, width in sizes) + " |")
    return "\n".join(rows)


@cache
def plan_output() -> str:
    """What the plan command prints of the 14B model, in a block of code."""
    from cosmos_ref.commands.plan import plan

    wide, out = mock.patch.dict("os.environ", {"COLUMNS": "88", "NO_COLOR": "1"}), io.StringIO()
    with wide, contextlib.redirect_stdout(out):
        plan("14b", ParallelConfig(world=64, cp=8), frames=121, resolution="720")
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(["```text", *lines, "```"])


TABLES: dict[str, Callable[[str], str]] = {
    "stages.toy": stages("toy"),
    "stages.cosmos": stages("7b", "14b"),
    "buckets": buckets,
    "batches": batches,
    "plan": lambda language: plan_output(),
}
