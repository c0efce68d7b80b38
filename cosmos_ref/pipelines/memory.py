"""How much memory a clip takes, stage by stage, before anything is loaded."""

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from cosmos_ref.config import Config, ConvTokenizerConfig, latent_shape
from cosmos_ref.equations import costs
from cosmos_ref.errors import UserError
from cosmos_ref.pipelines.world_model import DTYPES, Offload, Part
from cosmos_ref.tokenizer.plan import Plan, plans_from_whole_to_smallest

MIB, GIB = 2**20, 2**30
LIVE_WIDTHS = 12
"""Tensors of a number a token and channel that are alive at once in a block: in its MLP, or around its rotation."""
T5_WORKING = GIB // 2
"""Of T5-11b on 512 tokens: three tensors of its 65,536 hidden channels in float32, and attention scores."""
NAMES: dict[Part, str] = {"text_encoder": "text encoder", "denoiser": "denoiser", "tokenizer": "tokenizer"}


class Stage(NamedTuple):
    """What one part holds while it is at work, in bytes."""

    part: Part
    weights: int
    working: int
    """Everything that is not weights: the largest sum of tensors alive at once."""
    others: int
    """Weights of the other parts, where they stay on the device."""

    @property
    def peak(self) -> int:
        """All of it together."""
        return self.weights + self.working + self.others


class MemoryPlan(NamedTuple):
    """The stages of making a clip, and how the tokenizer must work to stay within the budget."""

    stages: list[Stage]
    tokenizer: Plan | None
    """None where it takes whole clips only."""


def plan_memory(config: Config, weights: Mapping[Part, int], offload: Offload, budget: float) -> MemoryPlan:
    """What making one clip takes.

    Args:
        config: the model, its clip and how it is sampled.
        weights: bytes of each part's weights, as they are in memory.
        offload: what becomes of the parts not in use, see `WorldModel`.
        budget: bytes there are; the tokenizer works in the largest pieces that fit, else in the smallest there are.
    """
    clip = config.clip
    others = {part: sum(weights.values()) - weights[part] if offload == "none" else 0 for part in weights}
    tokenizer_plan = None
    tokenizer_working = 6 * 4 * 3 * clip.frames * clip.height * clip.width  # wavelets: a few copies of the video
    if isinstance(config.tokenizer, ConvTokenizerConfig):
        precision = DTYPES[config.sample.precision]
        plans = plans_from_whole_to_smallest(config.tokenizer, clip.frames, clip.height, clip.width, precision)
        room = budget - others["tokenizer"]
        smallest = min(plans, key=lambda plan: plan.peak_bytes)
        tokenizer_plan = next((plan for plan in plans if plan.peak_bytes <= room), smallest)
        tokenizer_working = tokenizer_plan.working_bytes
    working: dict[Part, int] = {
        "text_encoder": T5_WORKING if weights["text_encoder"] else 0,
        "denoiser": denoiser_working(config),
        "tokenizer": tokenizer_working,
    }
    return MemoryPlan([Stage(part, weights[part], working[part], others[part]) for part in NAMES], tokenizer_plan)


def check_memory(plan: MemoryPlan, budget: float) -> None:
    """Refuse a plan that does not fit.

    Raises:
        UserError: if a stage takes more than there is.
    """
    if lacking := [stage for stage in plan.stages if stage.peak > budget]:
        worst = max(stage.peak for stage in lacking)
        unit, name = unit_of(worst)
        raise UserError(
            f"{', '.join(NAMES[stage.part] for stage in lacking)}: up to {worst / unit:,.1f} {name} are needed, and "
            f"{budget / unit:,.1f} may be used; try --offload disk, --precision bf16, a smaller or shorter clip, "
            "--text-embeddings instead of T5, or --max-memory if there is more than was found"
        )


def unit_of(size: float) -> tuple[int, str]:
    """The unit in which so many bytes are read best, and its name."""
    return (GIB, "GiB") if size > GIB / 10 else (MIB, "MiB")


def denoiser_working(config: Config) -> int:
    """Bytes alive at once while one clip is denoised, beside the weights."""
    model, sample = config.model, config.sample
    size = 2 if sample.precision == "bf16" else 4
    shape = latent_shape(config, config.clip)
    tokens = costs.tokens(shape[1:], model.patch_size)
    branches = 2 if sample.guidance else 1
    block = LIVE_WIDTHS * branches * tokens * model.width
    text = 2 * model.depth * branches * config.text.length * model.width
    levels = 9 * model.depth * sample.num_steps * model.width
    angles = 2 * branches * tokens * model.head_dim
    latents = 12 * branches * prod(shape)
    return size * (block + text + levels) + 4 * (angles + latents)
