"""The plan of an update: which samples it sees, in which micro-batches, and which process takes which.

Everything follows from the number of the update and the configuration: nothing is counted along the way, so a training
that is resumed, on however many processes, goes on with the very samples that come next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, gcd

from cosmos_ref.config import Config
from cosmos_ref.equations.causal import latent_length
from cosmos_ref.errors import UserError
from cosmos_ref.training.sources import Domain


@dataclass(frozen=True)
class MicroBatch:
    """Samples that go through the network at once; all have the same size."""

    domain: Domain
    number: int
    """Counted over the whole training in its domain: it decides the bucket."""
    samples: range
    """Numbers of the samples, counted over the whole training in their domain."""


def image_steps(steps: int, image_share: float) -> int:
    r"""How many of the first `steps` updates see images: $\lfloor n r \rfloor$."""
    return floor(steps * Fraction(str(image_share)))  # in decimals, as it was written: 100 * 0.29 is 29


def domain_of(step: int, image_share: float) -> Domain:
    """What update number `step`, counted from 0, sees."""
    return "image" if image_steps(step + 1, image_share) > image_steps(step, image_share) else "video"


def images_per_video(config: Config) -> int:
    """Images that are as many tokens as a video of the same size: its latent frames."""
    return latent_length(config.clip.frames, config.tokenizer.temporal_factor) // config.model.patch_size[0]


def plan_step(config: Config, step: int) -> list[MicroBatch]:
    """All micro-batches of update number `step`, counted from 0; those of images have as many tokens as of videos."""
    train, share = config.train, config.data.image_share
    domain, images_before = domain_of(step, share), image_steps(step, share)
    steps_before = images_before if domain == "image" else step - images_before
    count = train.batch_size // (train.micro_batch or train.batch_size)
    size = train.batch_size // count * (images_per_video(config) if domain == "image" else 1)
    numbers = range(steps_before * count, (steps_before + 1) * count)
    return [MicroBatch(domain, number, range(number * size, (number + 1) * size)) for number in numbers]


def share_out(micro_batches: Sequence[MicroBatch], rank: int, size: int, split: int = 1) -> list[MicroBatch]:
    """The part of one of `size` processes: every `size`-th micro-batch.

    Where there are not enough of them to go round, each is cut into as many equal parts as it takes.

    Args:
        micro_batches: of an update, equally large.
        rank: which process.
        size: how many there are.
        split: by how many processes a micro-batch of videos is shared. One of images is not: it goes through the
            network in so many pieces, or one image at a time, so that it takes no more memory.

    Raises:
        UserError: the parts would not be equal.
    """
    pieces = size // gcd(size, len(micro_batches))
    length = len(micro_batches[0].samples)
    if length % pieces:
        what = "videos" if micro_batches[0].domain == "video" else "images"
        raise UserError(
            f"{len(micro_batches)} micro-batch(es) of {length} {what} cannot be shared out evenly to {size} processes"
        )
    parts = [
        MicroBatch(whole.domain, whole.number, whole.samples[i * length // pieces : (i + 1) * length // pieces])
        for whole in micro_batches
        for i in range(pieces)
    ]
    part = length // pieces
    at_once = max(n for n in range(1, part + 1) if part % n == 0 and (n == 1 or n * split <= length))
    return [
        MicroBatch(own.domain, own.number, own.samples[start : start + at_once])
        for own in parts[rank::size]
        for start in range(0, part, at_once)
    ]


def check_shares(config: Config, sizes: dict[Domain, int]) -> None:
    """Check that every update can be shared out evenly.

    Args:
        config: batch size, micro-batch, share of images.
        sizes: how many processes see different videos, and how many see different images.

    Raises:
        UserError: it cannot; the message names batch sizes that can be.
    """
    train = config.train
    if _even(config, train.batch_size, sizes):
        return
    unit = train.micro_batch or 1
    good = [size for size in range(unit, 64 * max(sizes.values()) * unit + 1, unit) if _even(config, size, sizes)]
    near = sorted(sorted(good, key=lambda size: abs(size - train.batch_size))[:3])
    groups = f"{next(iter(sizes.values()))} groups of processes"
    if len(sizes) > 1:
        groups += f" ({sizes['image']} for images)"
    raise UserError(
        f"train.batch_size {train.batch_size} with train.micro_batch {train.micro_batch} cannot be shared out evenly "
        f"to {groups}: give --train.batch-size {', '.join(map(str, near[:-1]))} or {near[-1]}, or another number of "
        "processes"
    )


def _even(config: Config, batch_size: int, sizes: dict[Domain, int]) -> bool:
    count = batch_size // (config.train.micro_batch or batch_size)
    for domain, size in sizes.items():
        length = batch_size // count * (images_per_video(config) if domain == "image" else 1)
        if length % (size // gcd(size, count)):
            return False
    return True
