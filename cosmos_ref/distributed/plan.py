"""What a training would take on processes that need not be there: memory, communication, time.

Everything follows from a configuration, a layout and a clip by the formulas of `equations.costs`. Parameters, bytes
sent and activations kept are exact: tests count them on fake processes with the real shapes. The time is not: it rests
on the numbers of `Machine`.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations, product
from math import log2, prod
from typing import NamedTuple

import torch

from cosmos_ref.config import BUCKETS, ClipConfig, Config, ModelConfig, ParallelConfig, latent_shape
from cosmos_ref.distributed.mesh import Split, split_processes
from cosmos_ref.equations import costs
from cosmos_ref.errors import UserError
from cosmos_ref.model.dit import CosmosDiT
from cosmos_ref.model.sizes import flops, network_sizes, parameter_count, token_count
from cosmos_ref.training.schedule import check_shares, plan_step, share_out

FLOAT = 4
"""Bytes of a number in float32, in which weights, gradients, moments and averages are kept and gradients summed."""
INDEX = 8
"""Bytes of an integer."""
WORKING_WIDTHS = 3
"""Tensors of the tokens' width alive in the backward pass beside what is kept: counted, on fake tensors."""
LATENT_COPIES = 12
"""Tensors of the latents' size in float32 around the network: sample, noise, input, estimate, error, gradients."""
MOST_PROCESSES = 4096
"""Where the search for a larger world ends."""
MOST_CP = 64
"""And for more processes to a clip."""


@dataclass(frozen=True)
class Machine:
    """What the time of a step rests on. The numbers are those of an H100 in a machine of eight."""

    memory: float = 80
    """Of a process, in GB (10^9 bytes)."""
    usable: float = 0.9
    """Share of the memory that can be planned with; the rest is for the driver, buffers of NCCL, and gaps."""
    peak: float = 989
    """Dense bfloat16 operations of a process, in TFLOP/s; data sheets that count on sparsity print twice as much."""
    efficiency: float = 0.5
    """Share of the peak that matrix products and attention reach. An assumption: measure it."""
    neighbours: int = 8
    """Processes that are joined by the fast links."""
    bandwidth: float = 450
    """GB/s that a process sends to its neighbours."""
    network: float = 50
    """GB/s that a process sends to all others."""

    def __post_init__(self):
        for name in ("memory", "usable", "peak", "efficiency", "neighbours", "bandwidth", "network"):
            if not 0 < getattr(self, name) < 1e9:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("usable", "efficiency"):
            if getattr(self, name) > 1:
                raise UserError(f"{name} is {getattr(self, name)}; it is a share, at most 1")


class Shards(NamedTuple):
    """Numbers of the parts that weights are spread in, as one process holds them, filled up to equal size."""

    block: int
    """Of one block."""
    rest: int
    """Of the network around the blocks."""
    uncertainty: int
    """Of u(sigma)."""


@dataclass(frozen=True)
class Plan:
    """A video step of a training on one layout. Bytes are those of one process, unless they say otherwise."""

    config: Config
    """With the batch of the plan in it."""
    parallel: ParallelConfig
    machine: Machine
    split: Split

    # --- what there is to do

    @property
    def clip(self) -> ClipConfig:
        """The clip that is trained on."""
        return self.config.clip

    @property
    def number_bytes(self) -> int:
        """Of a number in matrix products, in gathered weights and in messages."""
        return 2 if self.config.train.precision == "bf16" else FLOAT

    @property
    def clips(self) -> int:
        """Clips of a step, of all processes together."""
        return self.config.train.batch_size

    @cached_property
    def micro_batches(self) -> list[int]:
        """Clips in each of the micro-batches that a process takes in a step."""
        return [len(part.samples) for part in share_out(plan_step(self.config, 0), 0, self.split.data)]

    @cached_property
    def tokens(self) -> int:
        """Of a clip."""
        return token_count(self.config, self.clip)

    @property
    def local_tokens(self) -> int:
        """Of a clip, in one process; rounded up, the last processes fill them up with zeros."""
        return -(-self.tokens // self.split.cp)

    @property
    def parameters(self) -> int:
        """Numbers in the denoiser's weights."""
        return parameter_count(self.config)

    @cached_property
    def shards(self) -> Shards:
        """Numbers of the weights that this process holds."""
        return shards(self.config, self.split.shard)

    @property
    def local_parameters(self) -> int:
        """Numbers in the denoiser's weights, in one process."""
        return self.config.model.depth * self.shards.block + self.shards.rest

    # --- memory

    def state(self) -> dict[str, int]:
        """What stays from step to step: float32 weights, gradients, moments of AdamW and averages."""
        held = self.local_parameters + self.shards.uncertainty
        averages = len(self.config.train.ema_stds)
        return {
            "weights": FLOAT * held,
            "gradients": FLOAT * held,
            "moments of AdamW": 2 * FLOAT * held,
            f"{averages} average{'s' * (averages != 1)}": averages * FLOAT * self.local_parameters,
        }

    @cached_property
    def block_activations(self) -> int:
        """What one block keeps of a micro-batch if nothing is computed again."""
        config, sizes = self.config, network_sizes(self.config)
        return sum(
            costs.kept_activations(
                self.local_tokens,
                config.text.length,
                max(self.micro_batches),
                config.model.width,
                config.model.num_heads,
                sizes["mlp_width"],
                sizes["adaln_lora_dim"],
                self.number_bytes,
            ).values()
        )

    def shared_activations(self, recompute: bool) -> int:
        """What is kept of a micro-batch around the blocks, and once for all of them.

        Norm and modulation of the final layer, angles, the sum of the position tables and its norm; patches and their
        positions, where a slice of the only clip keeps all that it was cut from; text, and what the noise level says.
        """
        config, b, batch, local = self.config, self.number_bytes, max(self.micro_batches), self.local_tokens
        sizes, width, whole = network_sizes(config), config.model.width, local * self.split.cp
        rows = local * (batch * (3 * width * b + 2 * b + 2 * config.model.head_dim * FLOAT) + (width + 2) * b)
        text = config.text.length * config.text.width * b
        level = (6 * width + 3 * width * recompute + sizes["adaln_lora_dim"]) * b + (width + 1) * FLOAT
        patches = (whole if batch == 1 else batch * local) * sizes["patch_in"] * b
        return rows + patches + whole * 3 * INDEX + batch * (text + level)

    def activations(self, recompute: bool) -> dict[str, int]:
        """What is kept for the backward pass where it begins, and what it works with."""
        depth, batch = self.config.model.depth, max(self.micro_batches)
        row = self.local_tokens * self.config.model.width * self.number_bytes
        kept = {"blocks": depth * self.block_activations}
        if recompute:  # what enters each block, and the positions, which enter all
            kept = {"blocks": (depth * batch + 1) * row, "one block computed again": self.block_activations}
        latents = LATENT_COPIES * batch * prod(latent_shape(self.config, self.clip)) * FLOAT
        return kept | {
            "around the blocks": self.shared_activations(recompute),
            "working memory": WORKING_WIDTHS * batch * row + latents,
        }

    @property
    def gathered(self) -> int:
        """Whole weights and their gradients, as far as they are there at once; an estimate.

        Of a block: weights of the one that computes, those of the next and the message they come in, gradients, and the
        float32 message that they leave in. Of the rest: weights and gradients.
        """
        block, rest = (self.split.shard * part for part in self.shards[:2])
        return block * (4 * self.number_bytes + FLOAT) + rest * 2 * self.number_bytes

    def memory(self, recompute: bool) -> int:
        """The most that is needed at once."""
        return sum(self.state().values()) + self.gathered + sum(self.activations(recompute).values())

    @property
    def room(self) -> float:
        """What can be planned with."""
        return self.machine.memory * 1e9 * self.machine.usable

    @property
    def fits(self) -> bool:
        """Whether the layout fits into the memory."""
        return self.memory(self.parallel.recompute) <= self.room

    # --- communication

    def sent(self) -> dict[str, int]:
        """Bytes that a process sends in the forward and backward passes of a step, by what they are for."""
        each = [self.sent_for(batch) for batch in self.micro_batches]
        return {kind: sum(sent[kind] for sent in each) for kind in each[0]}

    def sent_for(self, batch: int) -> dict[str, int]:
        """Bytes that a process sends for one micro-batch of that many clips."""
        split, b, depth, model = self.split, self.number_bytes, self.config.model.depth, self.config.model
        # How often each part is gathered: blocks twice, but the last is kept for the backward pass, and so is the rest.
        block, rest, uncertainty = self.shards
        parts = [*[(block, 2, b)] * (depth - 1), (block, 1, b), (rest, 1, b), (uncertainty, 1, FLOAT)]
        sharded = [costs.sharding_bytes(part, split.shard, gathers, size, FLOAT) for part, gathers, size in parts]
        passes = 1 + self.parallel.recompute
        tokens = batch * self.local_tokens
        heads = costs.ulysses_bytes(tokens, model.width, split.ulysses, b)
        ring, ring_back = costs.ring_bytes(tokens, model.width, split.ring, b)
        patches = costs.sharding_bytes(tokens * network_sizes(self.config)["patch_out"], split.cp, 1, b, b)
        return {
            "weights": sum(gathered for gathered, _ in sharded),
            "gradients": sum(scattered for _, scattered in sharded),
            "replicas": sum(costs.all_reduce_bytes(part * FLOAT, split.replicate) for part, _, _ in parts),
            "heads": depth * (passes + 1) * heads,
            "ring": depth * (passes * ring + ring_back),
            "tokens": sum(patches),
        }

    def link(self, kind: str) -> float:
        """GB/s on the way that such messages take: the fast one if all that talk are neighbours."""
        split, machine = self.split, self.machine
        reach = {"heads": split.ulysses, "ring": split.cp, "tokens": split.cp, "replicas": split.world}
        within = reach.get(kind, split.shard) <= machine.neighbours
        return machine.bandwidth if within else machine.network

    # --- time

    @cached_property
    def forward_flops(self) -> int:
        """Operations of the forward pass of all clips of a step, in all processes together."""
        return self.clips * sum(flops(self.config, self.clip).values())

    @property
    def done_flops(self) -> int:
        """Operations of a step, in all processes together, what is computed again included."""
        return (4 if self.parallel.recompute else 3) * self.forward_flops

    @property
    def compute_seconds(self) -> float:
        """A step, if nothing had to be sent."""
        return self.done_flops / (self.split.world * self.machine.peak * 1e12 * self.machine.efficiency)

    def seconds_sent(self) -> dict[str, float]:
        """A step's messages, if nothing had to be computed."""
        return {kind: sent / (self.link(kind) * 1e9) for kind, sent in self.sent().items()}

    @property
    def seconds(self) -> float:
        """A step: weights, gradients and the ring travel during computation, heads and tokens are waited for."""
        sent = self.seconds_sent()
        waited = sent["heads"] + sent["tokens"]
        return max(self.compute_seconds, sum(sent.values()) - waited) + waited

    @property
    def most_seconds(self) -> float:
        """A step in which nothing travels during computation."""
        return self.compute_seconds + sum(self.seconds_sent().values())

    def utilization(self, seconds: float) -> float:
        """Share of the peak that the model makes use of in a step of this length."""
        return costs.utilization(self.forward_flops, seconds, self.split.world, self.machine.peak * 1e12)

    # --- the paper's count

    @property
    def paper_state(self) -> int:
        """20 bytes a parameter, of all processes together."""
        return costs.training_bytes(self.parameters)

    @property
    def paper_activations(self) -> int:
        """15 numbers a token, channel and block, of the processes that share a clip together."""
        model = self.config.model
        return costs.stored_activations(
            self.tokens, max(self.micro_batches), model.width, model.depth, self.number_bytes
        )


def plan(
    config: Config, parallel: ParallelConfig, machine: Machine, batch_size: int | None = None, micro_batch: int = 0
) -> Plan:
    """Plan a training.

    Args:
        config: what is trained; its clip is the one that is planned for.
        parallel: the layout; a world of 0 is the smallest that it fits.
        machine: where.
        batch_size: clips a step; None is the preset's, or a clip for each group of processes if that cannot be shared.
        micro_batch: clips that a process takes at once; 0 is all of its share.

    Raises:
        UserError: the clip does not fit the model, or the numbers of the layout do not divide one another.
    """
    latent_shape(config, config.clip)
    for name, least in (("world", 0), ("cp", 1), ("replicate", 1), ("ulysses", 0)):
        if getattr(parallel, name) < least:
            raise UserError(f"--parallel.{name} is {getattr(parallel, name)}; it must be at least {least}")
    world = parallel.world or parallel.replicate * parallel.cp
    split = split_processes(replace(parallel, world=world), world, config.model.num_heads)
    if batch_size is None:
        micro = micro_batch or 1
        preset = config.train.batch_size
        batch_size = preset if preset % (split.data * micro) == 0 else split.data * micro
    if batch_size < 1 or micro_batch < 0:
        raise UserError(f"{batch_size} clips a step, {micro_batch} at once: give at least 1 a step")
    train = replace(config.train, batch_size=batch_size, micro_batch=micro_batch)
    config = replace(config, train=train, data=replace(config.data, image_share=0.0))
    if micro_batch and batch_size % micro_batch:
        raise UserError(f"--batch-size {batch_size} must be a multiple of --micro-batch {micro_batch}")
    check_shares(config, {"video": split.data})
    return Plan(config, replace(parallel, world=world), machine, split)


def clip_of(config: Config, frames: int | None, resolution: str | None) -> ClipConfig:
    """The preset's clip, with another length or size.

    Args:
        config: whose clip.
        frames: length; None is the preset's.
        resolution: a key of `BUCKETS`, of which the 16:9 size is taken, or HEIGHTxWIDTH; None is the preset's.

    Raises:
        UserError: the resolution is neither.
    """
    clip = replace(config.clip, frames=config.clip.frames if frames is None else frames)
    if resolution is None:
        return clip
    if resolution in BUCKETS:
        height, width = next(size for size in BUCKETS[resolution] if size[1] == max(w for _, w in BUCKETS[resolution]))
    else:
        sides = resolution.lower().split("x")
        if len(sides) != 2 or not all(side.isascii() and side.isdigit() for side in sides):
            raise UserError(
                f"resolution {resolution!r} is not understood: give HEIGHTxWIDTH in pixels, or one of "
                f"{', '.join(BUCKETS)} for its 16:9 size"
            )
        height, width = map(int, sides)
    return replace(clip, height=height, width=width)


@cache
def weight_shapes(model: ModelConfig) -> tuple[tuple[bool, tuple[int, ...]], ...]:
    """Shapes of the weights of a network with one block, and whether they belong to it."""
    with torch.device("meta"):
        weights = CosmosDiT(replace(model, depth=1)).named_parameters()
    return tuple((name.startswith("blocks."), tuple(weight.shape)) for name, weight in weights)


def shards(config: Config, ranks: int) -> Shards:
    """Numbers of the weights that each of `ranks` processes holds, part by part."""
    sizes = [(of_block, costs.sharded_size(shape, ranks)) for of_block, shape in weight_shapes(config.model)]
    block, rest = (sum(size for of_block, size in sizes if of_block == part) for part in (True, False))
    return Shards(block, rest, costs.sharded_size((1, config.diffusion.uncertainty_channels), ranks))


class Change(NamedTuple):
    """A plan that fits where another does not, and the options that make the difference."""

    options: dict[str, int]
    plan: Plan


def changes(asked: Plan) -> list[Change]:
    """The smallest change of each kind that makes a plan fit, best first; kinds together only if one will not do.

    Kinds: computing blocks again, more processes to a clip, fewer clips at once, fewer replicas, more processes, fewer
    frames. The best leaves the clip as it is, then the number of processes, and then takes the least time.
    """
    levers = {name: values for name, values in _levers(asked).items() if values}
    for kinds in (1, 2, 3):
        # Computing again is the strongest: what does not fit with it does not fit without.
        sets = [
            names for names in combinations(levers, kinds) if kinds == 1 or {"recompute"} & set(levers) <= set(names)
        ]
        found = [change for names in sets if (change := _smallest(asked, {name: levers[name] for name in names}))]
        if found:
            return sorted(found, key=lambda change: _price(asked, change.plan))
    return []


def _levers(asked: Plan) -> dict[str, dict[int, float]]:
    """What can be changed of a plan: the values, and how far each is from the present one, in doublings."""
    parallel, clip, at_once = asked.parallel, asked.clip, max(asked.micro_batches)
    step = asked.config.tokenizer.temporal_factor * asked.config.model.patch_size[0]
    more = range(1, MOST_PROCESSES.bit_length())
    return {
        "recompute": {} if parallel.recompute else {1: 0.0},
        "cp": {cp: log2(cp / parallel.cp) for cp in range(parallel.cp + 1, MOST_CP + 1)},
        "micro_batch": {size: log2(at_once / size) for size in range(1, at_once) if at_once % size == 0},
        "replicate": {n: log2(parallel.replicate / n) for n in range(1, parallel.replicate)},
        # Twice as far as the rest: another layout is free, another machine is not.
        "world": {w: 2.0 * k for k in more if (w := parallel.world * 2**k) <= MOST_PROCESSES},
        "frames": {frames: log2(clip.frames / frames) for frames in range(clip.frames - step, 0, -step)},
    }


def _smallest(asked: Plan, levers: dict[str, dict[int, float]]) -> Change | None:
    """The nearest plan that fits, of those in which all these options are changed."""
    for choice in sorted(product(*(values.items() for values in levers.values())), key=lambda c: sum(d for _, d in c)):
        options = {name: value for name, (value, _) in zip(levers, choice, strict=True)}
        changed = _changed(asked, options)
        if changed is not None and changed.fits:
            return Change(options, changed)
    return None


def _changed(asked: Plan, options: dict[str, int]) -> Plan | None:
    """The plan with other options, as many clips at once as before; none if they do not divide one another."""
    layout = {name: options[name] for name in ("cp", "replicate", "world") if name in options}
    parallel = replace(asked.parallel, recompute=asked.parallel.recompute or "recompute" in options, **layout)
    if "cp" in options:
        parallel = replace(parallel, ulysses=0)
    clip = replace(asked.clip, frames=options.get("frames", asked.clip.frames))
    at_once = options.get("micro_batch", max(asked.micro_batches))
    try:
        return plan(replace(asked.config, clip=clip), parallel, asked.machine, micro_batch=at_once)
    except UserError:
        return None


def _price(asked: Plan, changed: Plan) -> tuple[bool, bool, float]:
    a_clip = changed.seconds * changed.split.world / changed.clips
    return changed.clip != asked.clip, changed.split.world > asked.split.world, a_clip
