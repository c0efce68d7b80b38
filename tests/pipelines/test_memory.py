"""The memory plan against what is really alive."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as nnf

from cosmos_ref.conditioning.condition import give_frames, text_condition
from cosmos_ref.config import PRESETS, latent_shape
from cosmos_ref.errors import UserError
from cosmos_ref.model.initialization import build_denoiser, new_model
from cosmos_ref.pipelines.memory import GIB, check_memory, denoiser_working, plan_memory
from cosmos_ref.pipelines.sample import guided, schedule
from cosmos_ref.pipelines.world_model import DTYPES
from tests.tokenizer.live_bytes import LiveBytes

WEIGHTS = {"text_encoder": 9 * GIB, "denoiser": 14 * GIB, "tokenizer": GIB // 5}


def alive_while_sampling(config, denoiser, device):
    """Most bytes alive in preparing and calling the guided denoiser once, noise and condition included."""
    sigmas = schedule(config.diffusion, config.sample)
    with LiveBytes() as live, torch.device(device):
        noise = torch.empty(1, *latent_shape(config, config.clip))
        text = torch.zeros(1, config.text.length, config.text.width)
        condition = text_condition(text, noise, torch.full((1,), config.clip.fps))
        if config.model.video2world:
            given = torch.ones(1, dtype=torch.long)
            condition = give_frames(condition, torch.zeros_like(noise), given, torch.ones(1), torch.zeros_like(noise))
        guided(denoiser, noise, sigmas, condition, torch.zeros_like(text), 1.0)(noise, sigmas[0].item())
    return live.peak


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [32, 64])
def test_the_plan_of_a_small_model_holds_and_is_not_half_as_much_again(precision, size):
    config = PRESETS["tiny"]
    clip, sample = replace(config.clip, height=size, width=size), replace(config.sample, precision=precision)
    config = replace(config, clip=clip, sample=sample)
    denoiser, _ = new_model(config, torch.Generator().manual_seed(0))
    denoiser.to(DTYPES[precision]).requires_grad_(False)
    alive = alive_while_sampling(config, denoiser, "cpu")
    assert alive <= denoiser_working(config) <= 1.5 * alive


@pytest.mark.parametrize("name", ["7b", "14b-video2world"])
def test_the_plan_of_a_released_model_holds_and_is_not_a_tenth_more(name):
    """On the meta device, where nothing is allocated but everything counted; attention is that of no device there."""
    config = PRESETS[name]
    denoiser = build_denoiser(config).to(torch.bfloat16).requires_grad_(False)
    for block in denoiser.network.blocks:
        block.self_attention.attend = lambda q, k, v: torch.empty_like(q)
    with mock.patch.object(nnf, "scaled_dot_product_attention", lambda q, k, v: torch.empty_like(q)):
        alive = alive_while_sampling(config, denoiser, "meta")
    assert alive <= denoiser_working(config) <= 1.1 * alive


def test_offloading_leaves_one_part_at_a_time():
    config = PRESETS["7b"]
    kept, offloaded = (plan_memory(config, WEIGHTS, offload, 200 * GIB).stages for offload in ("none", "cpu"))
    for stage, alone in zip(kept, offloaded, strict=True):
        assert stage.weights + stage.others == sum(WEIGHTS.values())
        assert alone.others == 0 and alone.working == stage.working


def test_less_memory_makes_the_tokenizer_work_in_smaller_pieces():
    config = PRESETS["7b"]
    much, little = (plan_memory(config, WEIGHTS, "disk", budget) for budget in (400 * GIB, 12 * GIB))
    assert little.tokenizer.latent_frames < much.tokenizer.latent_frames == 16
    assert little.stages[-1].peak <= 12 * GIB


def test_what_does_not_fit_is_refused_with_what_would_help():
    plan = plan_memory(PRESETS["7b"], WEIGHTS, "none", 40 * GIB)
    check_memory(plan_memory(PRESETS["7b"], WEIGHTS, "disk", 40 * GIB), 40 * GIB)
    with pytest.raises(
        UserError, match=r"denoiser, tokenizer: up to 39.\d GiB are needed, and 30.0 may be used; try --offload"
    ):
        check_memory(plan, 30 * GIB)
