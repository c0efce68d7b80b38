"""What a training needs of its configuration, checked before any work starts."""

import math
from dataclasses import replace

from cosmos_ref.config import Config, ConvTokenizerConfig, HaarPCAConfig, latent_shape
from cosmos_ref.errors import UserError
from cosmos_ref.training.sources import MAX_SEED
from cosmos_ref.training.sources.clips import bucket_sizes


def check_config(config: Config) -> None:
    """Check that the model takes the clips of a configuration and that every number can be trained with.

    Raises:
        UserError: they do not; all that is wrong is listed.
    """
    train, data, (_, latent_frames, _, _) = config.train, config.data, latent_shape(config, config.clip)
    for height, width in bucket_sizes(config.clip, data.buckets):
        latent_shape(config, replace(config.clip, height=height, width=width))
    discrete = isinstance(config.tokenizer, ConvTokenizerConfig) and bool(config.tokenizer.fsq_levels)
    rules = [
        (train.num_steps >= 1, f"train.num_steps is {train.num_steps}; it must be at least 1"),
        (train.batch_size >= 1, f"train.batch_size is {train.batch_size}; it must be at least 1"),
        (
            train.micro_batch < 1 or train.batch_size % train.micro_batch == 0,
            f"train.micro_batch {train.micro_batch} does not divide train.batch_size {train.batch_size}; it must",
        ),
        (
            not data.image_share or config.model.patch_size[0] == 1,
            f"data.image_share is {data.image_share} for patches of {config.model.patch_size[0]} latent frames; an "
            "image has one: it must be 0",
        ),
        (
            not discrete,
            "tokenizer.fsq_levels are of a discrete tokenizer; diffusion is trained on continuous latents: give none",
        ),
        (0 < train.learning_rate < math.inf, f"train.learning_rate is {train.learning_rate}; it must be above 0"),
        (0 <= train.weight_decay < math.inf, f"train.weight_decay is {train.weight_decay}; it must not be negative"),
        (all(0 <= beta < 1 for beta in train.betas), f"train.betas is {train.betas}; both must be from 0 to below 1"),
        (train.eps >= 0, f"train.eps is {train.eps}; it must not be negative"),
        (train.max_grad_norm > 0, f"train.max_grad_norm is {train.max_grad_norm}; it must be above 0"),
        (train.warmup_steps >= 0, f"train.warmup_steps is {train.warmup_steps}; it must not be negative"),
        (train.cooling_steps >= 0, f"train.cooling_steps is {train.cooling_steps}; it must not be negative"),
        (train.micro_batch >= 0, f"train.micro_batch is {train.micro_batch}; it must not be negative"),
        (0 < train.loss_scale < math.inf, f"train.loss_scale is {train.loss_scale}; it must be above 0"),
        (
            bool(train.ema_stds) and all(0 < std < 0.25 for std in train.ema_stds),
            f"train.ema_stds is {train.ema_stds}; give at least one, each between 0 and 0.25",
        ),
        (
            len(set(train.ema_stds)) == len(train.ema_stds),
            f"train.ema_stds is {train.ema_stds}; they must all be different",
        ),
        (0 <= train.text_dropout <= 1, f"train.text_dropout is {train.text_dropout}; it must be from 0 to 1"),
        (
            bool(train.given_latents) and min(train.given_latents) >= 0 and abs(sum(train.given_latents) - 1) < 1e-6,
            f"train.given_latents is {train.given_latents}; it must be probabilities with the sum 1",
        ),
        (
            len(train.given_latents) <= latent_frames,
            f"train.given_latents has {len(train.given_latents)} entries for {latent_frames} latent frames; "
            "with 0, 1, 2, ... given, one must be left to generate",
        ),
        (0 <= train.seed < MAX_SEED, f"train.seed is {train.seed}; it must be from 0 to {MAX_SEED - 1}"),
        (train.checkpoint_every >= 1, f"train.checkpoint_every is {train.checkpoint_every}; it must be at least 1"),
        (train.keep_checkpoints >= 1, f"train.keep_checkpoints is {train.keep_checkpoints}; it must be at least 1"),
    ]
    wrong = [message for holds, message in rules if not holds]
    if wrong:
        raise UserError("this configuration cannot be trained:\n  " + "\n  ".join(wrong))


def check_fitted(config: Config) -> None:
    """Check that a training can make its tokenizer itself.

    Raises:
        UserError: the tokenizer has weights, which must come from somewhere.
    """
    if not isinstance(config.tokenizer, HaarPCAConfig):
        raise UserError(
            f"the tokenizer of {config.name!r} has weights of its own: give them by --tokenizer-weights, the folder of "
            "a released tokenizer or of a checkpoint, or train on clips that `cosmos-ref prepare` has encoded"
        )
