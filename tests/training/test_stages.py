"""The recipes: what the paper says of its stages, and what each stage owes the one before."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from cosmos_ref.config import BUCKETS, latent_shape
from cosmos_ref.equations.costs import tokens
from cosmos_ref.errors import UserError
from cosmos_ref.prepare.measures import sharpness
from cosmos_ref.training.stages import RECIPES, grown, recipe

PAPER = ["7b", "14b"]


def token_count(config, height, width):
    grid = latent_shape(config, replace(config.clip, height=height, width=width))[1:]
    return tokens(grid, config.model.patch_size)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_stages_have_the_papers_tokens(name):
    low, high, cooling, video2world = (stage.config for stage in recipe(name))
    assert token_count(low, 512, 640) == 10_240
    for config in (high, cooling, video2world):
        assert token_count(config, 704, 1280) == 56_320


@pytest.mark.parametrize(("name", "rate", "decay"), [("7b", 2**-15, 0.1), ("14b", 2**-16, 0.2)])
def test_the_papers_rates_and_decays(name, rate, decay):
    for stage in recipe(name):
        assert (stage.config.train.learning_rate, stage.config.train.weight_decay) == (rate, decay)
        assert stage.config.train.loss_scale == 10


@pytest.mark.parametrize("name", RECIPES)
def test_every_size_of_a_stages_buckets_fits_its_model(name):
    for stage in recipe(name):
        for height, width in BUCKETS[stage.config.data.buckets]:
            assert token_count(stage.config, height, width) > 0, (stage.name, height, width)


@pytest.mark.parametrize("name", RECIPES)
def test_clips_never_shrink_and_frames_are_given_only_in_the_end(name):
    stages = recipe(name)
    for before, after in pairwise(stages):
        assert after.config.clip.frames >= before.config.clip.frames
        assert after.config.clip.height >= before.config.clip.height
    assert [stage.config.model.video2world for stage in stages] == [False, False, False, True]
    assert all(stage.config.train.given_latents == (1.0,) for stage in stages[:3])


@pytest.mark.parametrize("name", RECIPES)
def test_stages_differ_in_nothing_that_weights_depend_on(name):
    def sizes(config):
        model = config.model
        return (model.width, model.depth, model.num_heads, model.max_tokens, config.tokenizer, config.text)

    assert len({sizes(stage.config) for stage in recipe(name)}) == 1


@pytest.mark.parametrize("name", RECIPES)
def test_cooling_down_ends_at_zero_and_the_pretraining_does_not(name):
    low, high, cooling, _ = (stage.config.train for stage in recipe(name))
    assert cooling.cooling_steps == cooling.num_steps
    assert low.cooling_steps == high.cooling_steps == 0


def test_the_rotary_ratios_grow_as_the_grid_of_latents_does():
    low, high = (stage.config for stage in recipe("toy")[:2])
    assert low.model.rope_ratios == (1, 1, 1)
    assert high.model.rope_ratios == (9 / 5, 48 / 32, 48 / 32)
    again = grown(high.model, low.clip, high.clip, low.tokenizer.temporal_factor)
    assert again.rope_ratios == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("name", ["32", "48"])
def test_toy_buckets_have_about_as_many_pixels_each(name):
    areas = [height * width for height, width in BUCKETS[name]]
    assert max(areas) <= 1.35 * min(areas)


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(UserError, match=r"'soup'.*toy, 7b, 14b"):
        recipe("soup")


@pytest.mark.parametrize("name", PAPER)
def test_cooling_down_leaves_out_what_is_blurred(name):
    """Squares of 32 pixels, sharp and blurred over 21 pixels."""
    squares = torch.rand(3, 1, 11, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sharp = squares.repeat_interleave(32, 2).repeat_interleave(32, 3)
    blurred = torch.nn.functional.avg_pool2d(sharp, 21, stride=1)
    least = next(stage for stage in recipe(name) if stage.name == "cooling-down").config.data.min_sharpness
    assert sharpness(blurred) < least < sharpness(sharp)
